#!/usr/bin/env python3
"""Writes tests/data/tiny_vqa.json: answers of transformers' `generate`, asked as transformers, LAVIS and mmpretrain do.

One entry an image, preset and question: the prompt that the system would build, and what `generate` gives for it with
the system's settings. LAVIS and mmpretrain end a text at a line break, which is the checkpoint's own stop token too.
They hand `generate` embeddings only, which without penalties gives the same text as ids.
"""

import argparse
import json
import re
import string
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import Blip2Processor

from reference_dump import StagedModel, StoredVision, generate, image_stages, preprocess

QUESTIONS = [
    "what is this?",
    "What's in the picture - a (red) house, or two, no?",
    "IS  it   Red!",
    "is there a boat on the water and a house with a door?",
]

# Answers as short as these come from beams that ended: the penalties show.
SEARCH = {"num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1}
PRESETS = {
    "hf": {"template": "Question: {} Answer:", "settings": {"max_new_tokens": 20}},
    "hf 5 beams": {"template": "Question: {} Answer:", "settings": {"max_new_tokens": 20, "num_beams": 5}},
    "lavis": {"template": "Question: {} Short answer:", "settings": {**SEARCH, "length_penalty": 0.0}},
    "mmpretrain": {"template": "Question: {} Answer:", "settings": {**SEARCH, "length_penalty": -1.0}, "size": 224},
}


def clean(preset, question):
    if preset == "lavis":
        question = re.sub(r"([.!\"()*#:;~])", "", question.lower()).rstrip(" ")
        return " ".join(question.split(" ")[:50])
    if preset == "mmpretrain":
        question = question.strip().translate(str.maketrans("", "", string.punctuation))
        return re.sub(r"\s{2,}", " ", question).lower()
    return question


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--image", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    args.every, args.last_only = 1, True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    processor = Blip2Processor.from_pretrained(args.model)
    staged = StagedModel(args.model)
    own_size = staged.config.vision_config.image_size
    staged.load("vision_model.", "qformer.", "query_tokens", "language_projection.", "language_model.")
    image_config = json.loads((args.model / "preprocessor_config.json").read_text())
    vision = staged.model.vision_model
    entries = []
    for name, preset in PRESETS.items():
        size = preset.get("size", own_size)
        for path in args.image:
            _, _, pixels = preprocess(path, size, image_config)
            staged.model.vision_model = vision
            stages, _ = image_stages(staged, pixels, size != own_size, args)
            staged.model.vision_model = StoredVision(stages["vit.output"])
            for question in QUESTIONS:
                prompt = preset["template"].format(clean(name, question))
                encoded = processor(images=Image.new("RGB", (size, size)), text=prompt, return_tensors="pt")
                encoded = {key: encoded[key] for key in ("input_ids", "attention_mask")}
                prompt_tokens = encoded["input_ids"].shape[1] - staged.config.num_query_tokens
                if name == "lavis":  # truncation=True, max_length=32, of the text alone
                    most = staged.config.num_query_tokens + 32
                    encoded = {key: value[:, :most] for key, value in encoded.items()}
                sequences, _ = generate(staged, processor, pixels, size != own_size, encoded, preset["settings"])
                best = sequences[0]
                entries.append({
                    "preset": name,
                    "image": path.name,
                    "question": question,
                    "prompt": prompt,
                    "prompt_tokens": prompt_tokens,
                    "tokens": best["tokens"],
                    "text": best["text"].strip(),
                    "score": round(best["score"], 6),
                })
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    args.out.write_text(f"[\n{lines}\n]\n")
    print(f"{args.out}: {len(entries)} answers by transformers {transformers.__version__}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
