#!/usr/bin/env python3
"""Makes random BLIP-2 checkpoints in the Hugging Face folder layout.

Presets: `tiny` (a few hundred KB, for tests), `tiny-t5` (with T5 in OPT's place), `tiny-itm` (the retrieval model), `micro`,
`micro-t5` and `micro-itm` (some ten KB, to convert), `opt-2.7b`, `opt-6.7b`, `flan-t5-xl` and `flan-t5-xxl` (the published
sizes, or their widths with fewer layers). Names and shapes come from transformers' own model classes, built without memory on
the "meta" device; each tensor is drawn, rounded to float16 and written before the next, so the full size needs about
half a GB of RAM. Same arguments, same bytes, but for trained Unigram and WordPiece tokenizers: one that lies in the folder is kept.

Random weights are only a useful test if a wrong engine gives a different text, so the scales are chosen to keep
the outputs far from degenerate (see `TensorMaker`). README.md says how to run this.
"""

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, OPTConfig, T5Config
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# What the small tokenizer learns its merges from: captions, questions and answers of the usual kind.
TRAINING_TEXT = """
a photo of a cat sitting on a red chair
a photo of a dog running on the grass
a photo of two people standing in the rain with a blue umbrella
a small boat on the water in front of a green hill
the man is riding a brown horse on the beach
there are three cups and a white plate on the table
a picture of a yellow bus parked next to the street
Question: what is this? Answer: a cat
Question: what color is the car? Answer: red
Question: how many people are in the photo? Answer: three
Question: is there a dog in the picture? Answer: yes
Question: where is the boat? Answer: on the water
"""


def train_tokenizer(vocab_size):
    """A byte-level BPE with OPT's special ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3; `</s>` starts every text.

    `<image>` is appended as the last token, as the published BLIP-2 checkpoints have it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.strip().splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def write_trained_tokenizer(folder, vocab_size):
    """Trains the small tokenizer and writes tokenizer.json, vocab.json, merges.txt and the two config files."""
    tokenizer = train_tokenizer(vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer.model.save(str(folder))
    write_json(folder / "special_tokens_map.json", {
        "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
    })
    specials = {"0": "<s>", "1": "<pad>", "2": "</s>", "3": "<unk>", str(tokenizer.token_to_id("<image>")): "<image>"}
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            token_id: {"content": content, "lstrip": False, "normalized": False, "rstrip": False,
                       "single_word": False, "special": True}
            for token_id, content in specials.items()
        },
        "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "errors": "replace",
        "tokenizer_class": "GPT2Tokenizer",
    })


def write_unigram_tokenizer(folder, vocab_size):
    """A small Unigram tokenizer as T5's: `<pad>` 0, `</s>` 1 (which ends every text), `<unk>` 2; `<image>` last."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))  # training it again may order ties otherwise
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
    ])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=["<pad>", "</s>", "<unk>"],
                                      unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT.strip().splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", {
        "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    return tokenizer


def copy_tokenizer(source, folder):
    """Copies the tokenizer's files, whichever of them there are."""
    for file in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / file).exists():
            shutil.copyfile(source / file, folder / file)


def write_wordpiece_tokenizer(folder, vocab_size):
    """A BERT-style lower-casing WordPiece tokenizer for the retrieval model: [CLS] text [SEP]."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()  # as above
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT.strip().splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer.model.save(str(folder))
    write_json(folder / "tokenizer_config.json", {
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "mask_token": "[MASK]", "do_lower_case": True, "tokenizer_class": "BertTokenizer",
    })
    return tokenizer.get_vocab_size()


@dataclass(frozen=True)
class Gains:
    """How strong the parts of a layer are: standard deviations of their outputs for inputs of unit variance.

    Attention adds nearly the same vector to all tokens, so in a deep model it has to be weak and sharp beside the
    feed-forward part, or all tokens end up equal. A few layers bear, and to pass on the image need, more of it.
    """

    query_key: float
    attention_out: float
    cross_query_key: float
    cross_out: float
    decoder_query_key: float


SHALLOW = Gains(query_key=1.5, attention_out=1.0, cross_query_key=1.5, cross_out=3.0, decoder_query_key=1.4)
# Sharper still (3.0) and the model turns chaotic: a relative change of 1e-4 in the pixels grew to 0.17 in the logits of
# a narrow model of full depth, against 0.002 here, and float32 rounding could no longer be told from an error.
DEEP = Gains(query_key=2.2, attention_out=0.4, cross_query_key=2.2, cross_out=1.0, decoder_query_key=2.2)


class TensorMaker:
    """Draws each tensor by its name, at scales that keep a deep random network alive.

    All values are slices of one block of normal numbers, taken at a random offset and with a random sign: a
    multiplication and a copy a value, instead of a draw. The block's length is prime, so no two rows line up.

    The scales, with the reason of each:
    * linear weights N(0, gain² / fan_in): unit-variance input, output of standard deviation `gain`;
    * queries and keys have a larger gain, so that attention picks tokens instead of averaging all of them (`Gains`);
    * rows of the second feed-forward matrix sum to zero: after ReLU or GELU every unit has a positive mean, which
      would otherwise add the same vector to every token, and after dozens of layers all tokens and all images would
      look alike;
    * attention, and cross-attention above all, as `Gains` says, so that the text depends on the image;
    * the decoder's final layer norm has weights of both signs: with a tied head, a token would else predict itself;
    * the stop token's row leans towards the final layer norm's bias, so that it is chosen now and then;
    * rows of special tokens, of lone unprintable bytes and of ids beyond the tokenizer are small: such tokens are
      hardly ever chosen, so that the text can be read.
    """

    BLOCK = 67_108_859  # the largest prime below 2^26

    def __init__(self, config, seed, unlikely_tokens, eos_lean, gains, small_block=False):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        block = 1_048_573 if small_block else self.BLOCK
        self.normals = torch.randn(block, generator=self.generator)
        self.unlikely_tokens = unlikely_tokens
        self.eos_lean = eos_lean
        self.gains = gains
        self.final_norm_bias = None

    def normal(self, shape, std):
        """Normal numbers of the given shape: slices of the block, wrapping round."""
        count = math.prod(shape)
        block = self.normals.numel()
        offset = int(torch.randint(block, (1,), generator=self.generator))
        sign = 1 - 2 * int(torch.randint(2, (1,), generator=self.generator))
        out = torch.empty(count)
        done = 0
        while done < count:
            piece = min(count - done, block - offset)
            torch.mul(self.normals[offset:offset + piece], sign * std, out=out[done:done + piece])
            done, offset = done + piece, 0
        return out.view(shape)

    def linear(self, shape, gain):
        """A matrix (or convolution kernel) [out, in…] whose output has standard deviation `gain`."""
        return self.normal(shape, gain / math.sqrt(math.prod(shape[1:])))

    def make(self, name, shape):
        """The tensor `name` in float32; the caller rounds it to float16."""
        if name.startswith("language_model.") and self.config.text_config.model_type == "t5":
            return self.make_t5(name.removeprefix("language_model."), shape)
        if name.startswith("language_model."):
            return self.make_opt(name.removeprefix("language_model.model.decoder."), shape)
        if is_norm(name):
            return self.norm(name, shape)
        if name.endswith("qkv.bias"):
            bias = self.normal(shape, 0.1)
            third = shape[0] // 3
            bias[third:2 * third] = 0.0  # keys have no bias in the published model: the file stores zeros
            return bias
        if name.endswith(".bias"):
            return self.normal(shape, 0.1)
        if name == "query_tokens":
            return self.normal(shape, 0.5)
        if name.endswith("class_embedding"):
            return self.normal(shape, 0.5)
        if name.endswith(("position_embedding", "position_embeddings.weight")):
            return self.normal(shape, 0.3)
        if name.endswith("word_embeddings.weight"):
            return self.normal(shape, 1.0)
        if name.endswith("qkv.weight"):
            weight = self.linear(shape, 1.0)
            weight[:2 * shape[0] // 3] *= self.gains.query_key
            return weight
        if name.endswith(("mlp.fc2.weight", "output_query.dense.weight")) or name.endswith(".output.dense.weight") \
                and "attention" not in name:
            return self.zero_row_sums(shape, 1.0)
        if "crossattention.attention.query" in name or "crossattention.attention.key" in name:
            return self.linear(shape, self.gains.cross_query_key)
        if "crossattention.output" in name:
            return self.linear(shape, self.gains.cross_out)
        if name.endswith(("self_attn.projection.weight", "attention.output.dense.weight")):
            return self.linear(shape, self.gains.attention_out)
        return self.linear(shape, 1.0)

    def make_opt(self, name, shape):
        """The decoder's tensors; `name` without the common prefix."""
        if name == "final_layer_norm.bias":
            self.final_norm_bias = self.normal(shape, 0.3)
            return self.final_norm_bias
        if name == "final_layer_norm.weight":
            return self.norm(name, shape) * self.normal(shape, 1.0).sign()
        if is_norm(name):
            return self.norm(name, shape)
        if name.endswith(".bias"):
            return self.normal(shape, 0.1)
        if name == "embed_tokens.weight":
            return self.token_embeddings(shape)
        if name == "embed_positions.weight":
            return self.normal(shape, self.logit_spread() / math.sqrt(shape[1]))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return self.linear(shape, self.gains.decoder_query_key)
        if name.endswith("out_proj.weight"):
            return self.linear(shape, self.gains.attention_out)
        if name.endswith("fc2.weight"):
            return self.zero_row_sums(shape, 1.0)
        return self.linear(shape, 1.0)

    def make_t5(self, name, shape):
        """T5's tensors: no biases, scores that nobody scales, and an output head of its own."""
        text = self.config.text_config
        if is_norm(name):
            return 1.0 + self.normal(shape, 0.1)
        if name.endswith("relative_attention_bias.weight"):
            return self.normal(shape, 1.0)
        if name == "shared.weight":
            return self.normal(shape, 1.0)
        if name == "lm_head.weight":
            head = self.linear(shape, self.logit_spread())
            head[self.unlikely_tokens] *= 0.1
            # The end's row: larger, so that it is chosen now and then.
            head[text.eos_token_id] *= self.eos_lean
            head[text.pad_token_id] = 0.0
            return head
        if name.endswith(("q.weight", "k.weight")):
            return self.linear(shape, self.gains.decoder_query_key / text.d_kv ** 0.25)
        if "EncDecAttention.o." in name:
            return self.linear(shape, 2.0 * self.gains.attention_out)
        if name.endswith(".o.weight"):
            return self.linear(shape, self.gains.attention_out)
        return self.linear(shape, 1.5 if "wi_" in name else 1.0)

    def logit_spread(self):
        """Standard deviation of the logits: wide enough that one token leads clearly, whatever the vocabulary."""
        return 0.8 * math.sqrt(2 * math.log(self.config.text_config.vocab_size))

    def token_embeddings(self, shape):
        """[vocab, hidden]; also the output head. Needs the final norm's bias, so `tensor_names` puts that first."""
        text = self.config.text_config
        std = self.logit_spread() / math.sqrt(shape[1])
        table = self.normal(shape, std)
        bias = self.final_norm_bias
        table[text.eos_token_id] += self.eos_lean * self.logit_spread() * bias / bias.square().sum()
        table[self.unlikely_tokens] *= 0.1
        table[text.pad_token_id] = 0.0
        return table

    def zero_row_sums(self, shape, gain):
        weight = self.linear(shape, gain)
        return weight - weight.mean(dim=1, keepdim=True)

    def norm(self, name, shape):
        weight = self.normal(shape, 0.1)
        return 1.0 + weight if name.endswith(".weight") else weight


def is_norm(name):
    """Whether the tensor belongs to a layer norm."""
    module = name.rpartition(".")[0]
    return "norm" in module.rpartition(".")[2].lower()


def tiny_config(vocab_size=408, image_token=400, eos=None):
    """Widths are multiples of 8 but no powers of two; head sizes 12, 8 and 12, multiples of 4 as all published ones are;
    3 × 3 patches and the class token."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=48, intermediate_size=56, num_hidden_layers=3,
                                        num_attention_heads=4, image_size=42, patch_size=14),
        qformer_config=Blip2QFormerConfig(vocab_size=vocab_size, hidden_size=24, num_hidden_layers=4,
                                          num_attention_heads=3, intermediate_size=40, max_position_embeddings=64),
        text_config=OPTConfig(vocab_size=vocab_size, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                              ffn_dim=72, max_position_embeddings=64, word_embed_proj_dim=48, eos_token_id=eos),
        num_query_tokens=8, image_token_index=image_token, image_text_hidden_size=24,
    )


def tiny_t5_config(vocab_size, image_token):
    """As `tiny_config` with a T5: heads (2 × 12) narrower together than the residual stream, unequal stacks, few buckets."""
    config = tiny_config(vocab_size, image_token)
    text = T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=12, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, tie_word_embeddings=False,
    )
    return Blip2Config(vision_config=config.vision_config, qformer_config=config.qformer_config, text_config=text,
                       num_query_tokens=8, image_token_index=image_token, image_text_hidden_size=24)


def micro_config(vocab_size, image_token, eos=None):
    """Nothing but the structure: widths 16 and 8, two layers, 2 × 2 patches and the class token."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                        num_attention_heads=2, image_size=28, patch_size=14),
        qformer_config=Blip2QFormerConfig(vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2,
                                          num_attention_heads=2, intermediate_size=24, max_position_embeddings=40),
        text_config=OPTConfig(vocab_size=vocab_size, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                              ffn_dim=16, max_position_embeddings=64, word_embed_proj_dim=8, eos_token_id=eos),
        num_query_tokens=4, image_token_index=image_token, image_text_hidden_size=8,
    )


def micro_t5_config(vocab_size, image_token):
    """`micro_config` with a T5 whose heads (4 × 4) are wider together than the residual stream."""
    config = micro_config(vocab_size, image_token)
    text = T5Config(
        vocab_size=vocab_size, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, tie_word_embeddings=False,
    )
    return Blip2Config(vision_config=config.vision_config, qformer_config=config.qformer_config, text_config=text,
                       num_query_tokens=4, image_token_index=image_token, image_text_hidden_size=8)


# The published language models: widths, layers, heads, inner widths, vocabularies.
PUBLISHED = {
    "opt-2.7b": {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 10240},
    "opt-6.7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 16384},
    "flan-t5-xl": {"d_model": 2048, "num_layers": 24, "num_heads": 32, "d_ff": 5120},
    "flan-t5-xxl": {"d_model": 4096, "num_layers": 24, "num_heads": 64, "d_ff": 10240},
}
SMALL = ["tiny", "tiny-t5", "tiny-itm", "micro", "micro-t5", "micro-itm"]
OPT_VOCABULARY = 50304
T5_VOCABULARY = 32128


def is_t5(preset):
    """Whether the preset's language model is a T5."""
    return "t5" in preset


def published_config(args, eos=None):
    """The published sizes: ViT-g (39 × 1408/16/6144), Q-Former (12 × 768/12/3072) and a language model of `PUBLISHED`."""
    sizes = dict(PUBLISHED[args.preset])
    if is_t5(args.preset):
        sizes["num_layers"] = sizes["num_decoder_layers"] = args.llm_layers or sizes["num_layers"]
        text = T5Config(vocab_size=args.vocab, d_kv=64, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
                        tie_word_embeddings=False, **sizes)
    else:
        sizes["num_hidden_layers"] = args.llm_layers or sizes["num_hidden_layers"]
        text = OPTConfig(vocab_size=args.vocab, word_embed_proj_dim=sizes["hidden_size"], eos_token_id=eos, **sizes)
    return Blip2Config(
        vision_config=Blip2VisionConfig(num_hidden_layers=args.vit_layers or 39, image_size=args.image_size),
        qformer_config=Blip2QFormerConfig(num_hidden_layers=args.qformer_layers or 12),
        text_config=text, num_query_tokens=32, image_token_index=args.image_token,
    )


def tensor_shapes(config, model_class):
    """Names and shapes, in the order of the model, without the tied output head (as published)."""
    with torch.device("meta"):
        model = model_class(config)
    left_out = {"language_model.lm_head.weight"}
    if config.text_config.model_type == "t5":
        # One table by three names, and an output head of its own.
        left_out = {f"language_model.{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in left_out}
    # The token embeddings are drawn with the final norm's bias in hand.
    first = "language_model.model.decoder.final_layer_norm.bias"
    return {name: shapes[name] for name in sorted(shapes, key=lambda name: name != first)}


def write_weights(folder, shapes, maker, shard_bytes):
    """Writes model.safetensors, or shards of about `shard_bytes` with an index. One shard in memory at a time."""
    groups, size = [[]], 0
    for name, shape in shapes.items():
        tensor_bytes = 2 * math.prod(shape)
        if groups[-1] and size + tensor_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor_bytes
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: maker.make(name, shapes[name]).to(torch.float16) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in names})
        print(f"{file}: {len(names)} tensors", flush=True)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    if len(groups) > 1:
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return total


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_configs(folder, config, architecture):
    """config.json as transformers writes it, and the processor and generation files as the published ones."""
    config.architectures = [architecture]
    config.dtype = torch.float16
    config.save_pretrained(folder)
    size = config.vision_config.image_size
    write_json(folder / "preprocessor_config.json", {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    })
    write_json(folder / "processor_config.json",
               {"num_query_tokens": config.num_query_tokens, "processor_class": "Blip2Processor"})
    if architecture == "Blip2ForConditionalGeneration":
        text = config.text_config
        ids = {name: getattr(text, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if text.model_type == "t5":
            ids = {"decoder_start_token_id": text.decoder_start_token_id, **ids}
        write_json(folder / "generation_config.json",
                   {"_from_model_config": True, **{name: value for name, value in ids.items() if value is not None}})


def read_tokenizer(folder):
    """The folder's tokenizer and the ids of "\\n" and of `<image>` (the next free id where it has none)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    if len(newline) != 1:
        raise SystemExit(f'{folder}/tokenizer.json: "\\n" must be one token (it ends a caption), it is {newline}')
    image_token = tokenizer.token_to_id("<image>")
    if image_token is None:
        image_token = tokenizer.get_vocab_size()
    return tokenizer, newline[0], image_token


def unlikely_tokens(tokenizer, vocab_size, eos, image_token):
    """Ids that should not appear in a text: special tokens, lone unprintable bytes, ids without a token."""
    def printable(token_id):
        text = tokenizer.decode([token_id])
        return text != "" and "\ufffd" not in text and text.isprintable()
    known = tokenizer.get_vocab_size()
    unlikely = {0, 1, 2, 3, image_token, *range(known, vocab_size)}
    unlikely.update(token_id for token_id in range(known) if not printable(token_id))
    return sorted(unlikely - {eos})


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes (made if missing)")
    parser.add_argument("--preset", choices=[*SMALL, *PUBLISHED], default="tiny")
    parser.add_argument("--seed", type=int, default=None, help="default: the preset's own")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files to copy (OPT)")
    parser.add_argument("--vit-layers", type=int, help="published sizes: fewer ViT blocks")
    parser.add_argument("--qformer-layers", type=int, help="published sizes: fewer Q-Former layers")
    parser.add_argument("--llm-layers", "--opt-layers", type=int, help="published sizes: fewer layers of the language model")
    parser.add_argument("--vocab", type=int, help="published sizes: vocabulary (as published, if not given)")
    parser.add_argument("--image-size", type=int, default=224, help="published sizes: side of the image (-coco: 364)")
    parser.add_argument("--eos-lean", type=float, help="how much the stop token is favoured, in standard deviations of a logit")
    parser.add_argument("--shard-mb", type=int, default=2000, help="size of a shard in MB")
    return parser.parse_args()


def main():
    args = parse_args()
    started = time.time()
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    model_class = Blip2ForConditionalGeneration
    seed, eos_lean, unlikely = 428, 1.8, []  # of some hundred seeds one with texts of all lengths and clear margins
    gains = SHALLOW
    if args.preset.endswith("-itm"):
        model_class = Blip2ForImageTextRetrieval
        sizes, words = (tiny_config, 300) if args.preset == "tiny-itm" else (micro_config, 80)
        known = write_wordpiece_tokenizer(folder, words)
        config = sizes(vocab_size=known + 1, image_token=known)
        config.qformer_config.use_qformer_text_input = True
    elif is_t5(args.preset):
        tokenizer = write_unigram_tokenizer(folder, 100 if args.preset == "micro-t5" else 200)
        args.image_token = tokenizer.token_to_id("<image>")
        vocabulary = -(-tokenizer.get_vocab_size() // 8) * 8
        eos_lean = 1.0
        if args.preset == "micro-t5":
            config = micro_t5_config(vocabulary, args.image_token)
        elif args.preset == "tiny-t5":
            config = tiny_t5_config(vocabulary, args.image_token)
            # Of some dozen seeds one with texts of several lengths.
            seed, gains = 5, replace(SHALLOW, attention_out=1.4)
        else:
            args.vocab = args.vocab or T5_VOCABULARY
            config = published_config(args)
            gains = DEEP
        unlikely = sorted({0, 2, *range(args.image_token, config.text_config.vocab_size)})
    else:
        if args.tokenizer:
            copy_tokenizer(args.tokenizer, folder)
        else:
            write_trained_tokenizer(folder, 263 if args.preset == "micro" else 400)
        tokenizer, eos, args.image_token = read_tokenizer(folder)
        if args.preset == "tiny":
            config = tiny_config(408, args.image_token, eos)
        elif args.preset == "micro":
            config = micro_config(264, args.image_token, eos)
        else:
            args.vocab = args.vocab or OPT_VOCABULARY
            if args.vocab < tokenizer.get_vocab_size():
                raise SystemExit(f"--vocab {args.vocab} is less than the tokenizer's {tokenizer.get_vocab_size()} tokens")
            config = published_config(args, eos)
            eos_lean, gains = 1.8, DEEP
        unlikely = unlikely_tokens(tokenizer, config.text_config.vocab_size, eos, args.image_token)
    seed = seed if args.seed is None else args.seed
    eos_lean = eos_lean if args.eos_lean is None else args.eos_lean
    write_configs(folder, config, model_class.__name__)
    shapes = tensor_shapes(config, model_class)
    maker = TensorMaker(config, seed, unlikely, eos_lean, gains, small_block=args.preset in SMALL)
    if args.preset == "micro-t5":
        # `micro` draws a tensor of OPT first; with one drawn here, too, both have the same image side.
        maker.normal((8,), 1.0)
    total = write_weights(folder, shapes, maker, args.shard_mb * 1_000_000)
    print(f"{folder}: {len(shapes)} tensors, {total / 1e6:.3f} MB, {time.time() - started:.1f} s")


if __name__ == "__main__":
    main()
