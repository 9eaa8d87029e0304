"""Tokenizers of the two models, and texts as training tensors."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scenes import language, world

from .models import NUM_QUERY_TOKENS
from .pool import scene_of

PAD, BOS = 1, 2
IGNORED = -100
CAPTION_PROMPT = "a photo of"
# transformers' and mmpretrain's prompt first, then LAVIS's.
QUESTION_PROMPTS = ("Question: {} Answer:", "Question: {} Short answer:")


def corpus(scenes: int = 3000) -> list[str]:
    """Texts that hold every word in every position the models meet it in."""
    lines = [CAPTION_PROMPT, *language.NUMBERS, *"0123456789", "yes no", "a photo of an"]
    for index in range(scenes):
        scene = world.sample_scene(0, "train", index)
        for caption in language.captions(scene):
            lines += [caption, " " + caption]
        for q in language.questions(scene):
            lines += [QUESTION_PROMPTS[index % 2].format(q.text) + " " + q.answer, q.text]
    return lines


def opt_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with OPT's layout: <s> 0, <pad> 1, </s> 2 (in front of every text), <unk> 3, <image> last.

    Every word of the world becomes one token; any other text falls back to pieces and bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=4000,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s>:1 $B:1", special_tokens=[("</s>", BOS)]
    )
    # The vocabulary is filled up to one below a multiple of 8; the image token takes the last row.
    filler = -(tokenizer.get_vocab_size() + 1) % 8
    tokenizer.add_special_tokens([f"<unused{i}>" for i in range(filler)])
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece, lower case, with BERT's special tokens; the world's words are whole tokens, the rest is letters."""
    words = sorted({w.lower() for line in corpus() for w in line.replace(":", " ").replace(",", " ").replace("?", " ").split()})
    signs = list(",:?.!'-")
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *letters, *("##" + c for c in letters)]
    vocabulary += [w for w in words if w not in vocabulary]
    vocabulary += [f"[unused{i}]" for i in range(-len(vocabulary) % 8)]
    ids = {w: i for i, w in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def load_tokenizers(work: pathlib.Path) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Both tokenizers, built once and then kept with the training state, so that ids never change under a model."""
    found = []
    for name, build in (("opt_tokenizer", opt_tokenizer), ("bert_tokenizer", bert_tokenizer)):
        folder = work / name
        if not (folder / "tokenizer.json").exists():
            build().save_pretrained(folder)
        found.append(PreTrainedTokenizerFast.from_pretrained(folder))
    return found[0], found[1]


def newline_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a text, as in the published checkpoints."""
    (token,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return token


@dataclasses.dataclass
class Sample:
    """A text and where the model's part of it begins: the prompt is given, the rest (and a newline) is learned."""

    prompt: str
    target: str
    weight: float = 1.0


def caption_sample(rng: np.random.Generator, caption: str) -> Sample:
    """Mostly from nothing; sometimes after "a photo of", the prompt of the systems that use one."""
    return Sample(CAPTION_PROMPT, " " + caption) if rng.random() < 0.1 else Sample("", caption)


def question_sample(rng: np.random.Generator, q: language.Question) -> Sample:
    """Mostly transformers' prompt; sometimes LAVIS's, and sometimes without the question mark, as mmpretrain cleans it."""
    prompt = QUESTION_PROMPTS[int(rng.random() < 0.15)].format(q.text if rng.random() < 0.85 else q.text.rstrip("?"))
    return Sample(prompt, " " + q.answer, weight=2.0)


def samples_of(rng: np.random.Generator, scene: world.Scene, repeat: int = 2) -> list[Sample]:
    """The texts of one scene for one step: a caption, then questions of all types in random order.

    Relations and comparisons, which are learned last, are asked `repeat` times as often as the others.
    """
    samples = [caption_sample(rng, language.pick(rng, language.captions(scene, rng)))]
    for kind in rng.permutation([*language.QUESTION_TYPES, *("relation", "compare") * (repeat - 1)]):
        if q := language.question(rng, scene, str(kind)):
            samples.append(question_sample(rng, q))
    return samples


def pack(tokenizer: PreTrainedTokenizerFast, samples: list[list[Sample]], length: int) -> dict[str, torch.Tensor]:
    """Several texts of one image in one row, so that the image's prefix is computed once for all of them.

    Gives ids, positions, segments, labels and weights, each [n, length]. Positions count on from the prefix in every text;
    a segment (from 1; 0 is padding) is one text, and attention stays inside it. A text that no longer fits is left out.
    """
    flat = [s for row in samples for s in row]
    end = newline_id(tokenizer)
    backend = tokenizer.backend_tokenizer
    prompts = [e.ids for e in backend.encode_batch([s.prompt for s in flat])]
    targets = [e.ids + [end] for e in backend.encode_batch([s.target for s in flat], add_special_tokens=False)]
    n = len(samples)
    ids = np.full((n, length), PAD, dtype=np.int64)
    positions = np.zeros((n, length), dtype=np.int64)
    segments = np.zeros((n, length), dtype=np.int64)
    labels = np.full((n, length), IGNORED, dtype=np.int64)
    weights = np.zeros((n, length), dtype=np.float32)
    number = 0
    for row, texts in enumerate(samples):
        at = 0
        for segment, sample in enumerate(texts, start=1):
            prompt, target = prompts[number], targets[number]
            number += 1
            # The newline is only ever a label: nothing follows it.
            text = prompt + target[:-1]
            here = slice(at, at + len(text))
            if here.stop > length:
                continue
            ids[row, here] = text
            positions[row, here] = NUM_QUERY_TOKENS + np.arange(len(text))
            segments[row, here] = segment
            learned = slice(at + len(prompt) - 1, here.stop)
            labels[row, learned] = target
            weights[row, learned] = sample.weight
            at = here.stop
    arrays = {"ids": ids, "positions": positions, "segments": segments, "labels": labels, "weights": weights}
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def packed_texts(
    tokenizer: PreTrainedTokenizerFast, facts: np.ndarray, rng: np.random.Generator, length: int, repeat: int = 2
) -> dict[str, torch.Tensor]:
    """Random texts about the scenes of a batch, packed."""
    return pack(tokenizer, [samples_of(rng, scene_of(f), repeat) for f in facts], length)
