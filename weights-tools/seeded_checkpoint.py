#!/usr/bin/env python3
"""Checkpoints with the peculiarities of the larger published models, small and without weights: tests draw these.

A folder gets the configuration files and `tensors.txt`, a line a tensor: name, shape, and three whole numbers `add`,
`most`, `shift`. Element i of tensor `name` is `add + k / 2^shift`, k being a hash of seed, name and i between -most and
most: exact in float16 and the same in any language (`values` here, tests/engine/sizes.rs there). With `--weights` the folder
also gets these tensors and a tokenizer, for reference_dump.py and retrieval_dump.py.

    python weights-tools/seeded_checkpoint.py opt-6.7b-coco OUT [--seed N] [--weights --tokenizer tests/data/tiny]
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, OPTConfig, T5Config
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

from make_checkpoint import SHALLOW, TensorMaker, read_tokenizer, tensor_shapes, write_configs

# Name: pixels, and what reads the queries. All have two layers a stack and two or four heads of the published size.
SIZES = {
    "opt-6.7b": (224, "untied-opt"),
    "opt-6.7b-coco": (364, "opt"),
    "flan-t5-xl-coco": (364, "t5-xl"),
    "flan-t5-xxl": (224, "t5-xxl"),
    "itm-vit-g": (224, "retrieval"),
    "itm-vit-g-coco": (364, "retrieval"),
}

# Of some seeds those without a close call.
SEEDS = {"opt-6.7b": 6, "opt-6.7b-coco": 4, "flan-t5-xl-coco": 2, "flan-t5-xxl": 3}


def image_side(pixels, vocabulary, with_text):
    """ViT-g: heads of 88, mlp 48/11 as wide; the Q-Former: heads of 64, mlp 4 times as wide, 32 queries."""
    return {
        "vision_config": Blip2VisionConfig(hidden_size=176, intermediate_size=768, num_hidden_layers=2,
                                           num_attention_heads=2, image_size=pixels, patch_size=14),
        "qformer_config": Blip2QFormerConfig(vocab_size=vocabulary, hidden_size=128, num_hidden_layers=2,
                                             num_attention_heads=2, intermediate_size=512, encoder_hidden_size=176,
                                             max_position_embeddings=64, use_qformer_text_input=with_text),
        "num_query_tokens": 32,
    }


def text_config(kind, vocabulary, eos):
    """OPT-6.7b: heads of 128, mlp 4 times as wide. Flan-T5: heads of 64 as wide as the model together, mlp 2.5 times."""
    if kind.startswith("t5"):
        heads = {"t5-xl": 2, "t5-xxl": 4}[kind]
        return T5Config(vocab_size=vocabulary, d_model=64 * heads, d_kv=64, d_ff=160 * heads, num_layers=2,
                        num_decoder_layers=2, num_heads=heads, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
                        tie_word_embeddings=False)
    return OPTConfig(vocab_size=vocabulary, hidden_size=256, num_hidden_layers=2, num_attention_heads=2, ffn_dim=1024,
                     max_position_embeddings=160, word_embed_proj_dim=256, eos_token_id=eos,
                     tie_word_embeddings=kind == "opt")


def make_config(name, tokenizer_folder):
    """(configuration, model class) of a size, for the vocabulary of a tokenizer."""
    pixels, kind = SIZES[name]
    if kind == "retrieval":
        known = len((tokenizer_folder / "vocab.txt").read_text().splitlines())
        sides = image_side(pixels, known + 1, True)
        return Blip2Config(**sides, text_config=OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=1,
                                                          num_attention_heads=1, word_embed_proj_dim=16),
                           image_token_index=known, image_text_hidden_size=64), Blip2ForImageTextRetrieval
    if kind.startswith("t5"):
        tokenizer = json.loads((tokenizer_folder / "tokenizer.json").read_text())
        image_token = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<image>")
        eos = 1
    else:
        _, eos, image_token = read_tokenizer(tokenizer_folder)
    vocabulary = -(-(image_token + 1) // 8) * 8
    return Blip2Config(**image_side(pixels, vocabulary, False), text_config=text_config(kind, vocabulary, eos),
                       image_token_index=image_token, image_text_hidden_size=64), Blip2ForConditionalGeneration


def scale(tensor, name):
    """(add, most, shift) of uniform numbers with mean and spread of a tensor that TensorMaker drew."""
    add = round(tensor.mean().item()) if tensor.numel() > 1 else 0
    half_width = math.sqrt(3) * (tensor - add).square().mean().sqrt().item()
    # Around 1, a float16 ends at 2^-10; around 0, `most` takes ten to eleven bits.
    shift = 10 if add else min(24, 10 - math.floor(math.log2(half_width)))
    return add, max(1, round(half_width * 2**shift)), shift


def values(seed, name, shape, add, most, shift):
    """The tensor, by the rule above."""
    with np.errstate(over="ignore"):
        start = np.uint32(2166136261)
        for byte in f"{seed}/{name}".encode():  # FNV-1a
            start = (start ^ np.uint32(byte)) * np.uint32(16777619)
        x = start + np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9)
        for shift_right, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's last step
            x = (x ^ (x >> np.uint32(shift_right))) * np.uint32(factor)
        x ^= x >> np.uint32(16)
    k = (x % np.uint32(2 * most + 1)).astype(np.int64) - most
    return torch.from_numpy(add + k / 2.0**shift).reshape(shape).to(torch.float16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tests/data/tiny, tiny-t5 or tiny-itm")
    parser.add_argument("--weights", action="store_true", help="write the tensors too, and the tokenizer")
    args = parser.parse_args()
    seed = SEEDS.get(args.size, 1) if args.seed is None else args.seed
    args.folder.mkdir(parents=True, exist_ok=True)
    config, model_class = make_config(args.size, args.tokenizer)
    shapes = tensor_shapes(config, model_class)
    if SIZES[args.size][1] == "untied-opt":
        shapes["language_model.lm_head.weight"] = shapes["language_model.model.decoder.embed_tokens.weight"]
    maker = TensorMaker(config, 1, [], 0.0, SHALLOW, small_block=True)
    rules = {name: scale(maker.make(name, shape).float(), name) for name, shape in shapes.items()}
    write_configs(args.folder, config, model_class.__name__)
    lines = [f"{name} {'x'.join(map(str, shapes[name]))} {' '.join(map(str, rule))}" for name, rule in rules.items()]
    (args.folder / "tensors.txt").write_text("\n".join([f"seed {seed}", *lines]) + "\n")
    if args.weights:
        for file in args.tokenizer.glob("*"):
            if "token" in file.name or file.name in ("vocab.json", "merges.txt", "vocab.txt"):
                shutil.copyfile(file, args.folder / file.name)
        tensors = {name: values(seed, name, shapes[name], *rule) for name, rule in rules.items()}
        save_file(tensors, args.folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
