"""Fifty test scenes with what transformers says of them: the data of tests/demo.rs.

`python -m train.demo_slice ../demo ../tests/data/demo` (in weights-tools) writes the pictures and demo.json: for each scene
the greedy caption, whether it is exactly true, and for one question each the greedy answer and whether it is right. truth.json
has what is true, for tests/quant.rs: five captions of each scene and all its questions with their answers.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import torch
from PIL import Image
from scenes import draw, language, world
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from .evaluate import ANSWER_TOKENS, CAPTION_TOKENS, generate

SPLIT = "test"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def pixel_values(image: Image.Image, size: int) -> torch.Tensor:
    """[3, size, size] as transformers' Pillow path makes it."""
    small = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(((small / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=50)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = Blip2ForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    vocabulary = PreTrainedTokenizerFast(tokenizer_file=str(arguments.model / "tokenizer.json"), pad_token="<pad>")

    scenes = [world.sample_scene(0, SPLIT, index) for index in range(arguments.count)]
    names = [f"scene_{index:02}.png" for index in range(arguments.count)]
    for scene, name in zip(scenes, names):
        draw.draw(scene).save(arguments.out / name, optimize=True)
    size = model.config.vision_config.image_size
    pixels = torch.stack([pixel_values(Image.open(arguments.out / name), size) for name in names])
    # The types of questions take turns, so that the fifty cover all of them.
    questions = []
    for index, scene in enumerate(scenes):
        possible = language.questions(scene)
        questions.append(possible[index % len(possible)])
    with torch.no_grad():
        captions = generate(model, vocabulary, pixels, [""] * len(scenes), CAPTION_TOKENS)
        prompts = [f"Question: {question.text} Answer:" for question in questions]
        answers = generate(model, vocabulary, pixels, prompts, ANSWER_TOKENS)
    rows = [
        {
            "image": name,
            "caption": caption,
            "caption_true": language.check_caption(scene, caption).complete,
            "question": question.text,
            "type": question.type,
            "answer": answer,
            "answer_right": answer == question.answer,
        }
        for name, scene, caption, question, answer in zip(names, scenes, captions, questions, answers)
    ]
    (arguments.out / "demo.json").write_text(json.dumps(rows, indent=1) + "\n")
    truth = [
        {
            "image": name,
            "captions": language.captions(scene),
            "questions": [[question.text, question.answer] for question in language.questions(scene)],
        }
        for name, scene in zip(names, scenes)
    ]
    (arguments.out / "truth.json").write_text("[\n" + ",\n".join(map(json.dumps, truth)) + "\n]\n")
    print(f"{sum(row['caption_true'] for row in rows)} of {len(rows)} captions true,"
          f" {sum(row['answer_right'] for row in rows)} answers right")


if __name__ == "__main__":
    main()
