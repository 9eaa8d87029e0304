"""How true are the captions, how right the answers, how good the retrieval: by transformers, with greedy search.

`python -m train.evaluate FOLDER --split test --count 1000` measures an exported model on scenes drawn for the purpose.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib

import numpy as np
import torch

from scenes import draw, language, world

from .models import NUM_QUERY_TOKENS

CAPTION_TOKENS = 40
ANSWER_TOKENS = 6


def generate(model, vocabulary, pixels: torch.Tensor, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy texts for images [n, 3, 64, 64] and one prompt each, as Blip2Processor and generate() would give them."""
    encoded = vocabulary(prompts, padding=True, padding_side="left", return_tensors="pt")
    image = torch.full((len(prompts), NUM_QUERY_TOKENS), model.config.image_token_index)
    ids = torch.cat([image, encoded["input_ids"]], dim=1).to(pixels.device)
    mask = torch.cat([torch.ones_like(image), encoded["attention_mask"]], dim=1).to(pixels.device)
    out = model.generate(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=model.config.text_config.eos_token_id,
        pad_token_id=model.config.text_config.pad_token_id,
    )
    return [t.strip() for t in vocabulary.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


class Score:
    """Counts of captions and answers, right and all."""

    def __init__(self):
        self.right: collections.Counter[str] = collections.Counter()
        self.all: collections.Counter[str] = collections.Counter()

    def add(self, name: str, right: bool) -> None:
        self.right[name] += right
        self.all[name] += 1

    def caption(self, scene: world.Scene, text: str) -> None:
        """A caption counts as true if every fact that it states is; as complete if it also names every object."""
        verdict = language.check_caption(scene, text)
        self.add("caption_true", verdict.true)
        self.add("caption_complete", verdict.complete)
        self.add("caption_parsed", verdict.parsed)
        self.add(f"caption_true_{len(scene.objects)}", verdict.true)
        if scene.has_held_out:
            self.add("caption_true_held_out", verdict.true)

    def answer(self, question: language.Question, text: str) -> None:
        right = text == question.answer
        self.add("vqa", right)
        self.add(f"vqa_{question.type}", right)

    def figures(self) -> dict[str, float]:
        return {name: self.right[name] / self.all[name] for name in sorted(self.all)}


def score_batch(model, vocabulary, pixels: torch.Tensor, scenes: list[world.Scene], score: Score) -> list[dict]:
    """Captions of images and answers to one question of each type; adds to the score and returns what was said."""
    said = []
    captions = generate(model, vocabulary, pixels, [""] * len(scenes), CAPTION_TOKENS)
    asked = [(i, q) for i, scene in enumerate(scenes) for q in language.questions(scene)]
    prompts = [f"Question: {q.text} Answer:" for _, q in asked]
    answers = generate(model, vocabulary, pixels[[i for i, _ in asked]], prompts, ANSWER_TOKENS)
    for scene, caption in zip(scenes, captions):
        score.caption(scene, caption)
        said.append({"index": scene.index, "caption": caption, "true": language.check_caption(scene, caption).true})
    for (i, q), answer in zip(asked, answers):
        score.answer(q, answer)
        said[i].setdefault("answers", []).append([q.type, q.text, answer, q.answer])
    return said


@torch.no_grad()
def figures_on_pool(model, vocabulary, batch) -> dict[str, float]:
    """Captions and answers for scenes of the training pool's kind, while training."""
    from .loop import device
    from .pool import pixel_values, scene_of

    model.eval()
    score = Score()
    for start in range(0, len(batch), 64):
        part = batch.part(slice(start, start + 64))
        scenes = [scene_of(facts) for facts in part.facts]
        score_batch(model, vocabulary, pixel_values(part.pixels, device()), scenes, score)
    model.train()
    return score.figures()


def pixels_of(processor, scenes: list[world.Scene]) -> torch.Tensor:
    """Pictures of scenes, through the exported preprocessing."""
    return processor(images=[draw.draw(s) for s in scenes], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def evaluate_generative(folder: pathlib.Path, scenes: list[world.Scene], said_path: pathlib.Path | None) -> dict[str, float]:
    """Captions and answers of an exported model."""
    from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    score, said = Score(), []
    for start in range(0, len(scenes), 50):
        part = scenes[start : start + 50]
        said += score_batch(model, vocabulary, pixels_of(processor, part), part, score)
    if said_path:
        said_path.write_text("".join(json.dumps(s) + "\n" for s in said))
    return score.figures()


@torch.no_grad()
def evaluate_retrieval(folder: pathlib.Path, scenes: list[world.Scene], top: int) -> dict[str, float]:
    """Recall@1 both ways: ITC picks the `top` candidates, ITM re-ranks them (its logit plus the ITC score, as LAVIS); and ITM alone."""
    from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForImageTextRetrieval

    from . import matching

    model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    tokens = torch.cat(
        [
            model.vision_model(pixel_values=pixels_of(processor, scenes[i : i + 100])).last_hidden_state
            for i in range(0, len(scenes), 100)
        ]
    )
    captions = [language.captions(s) for s in scenes]
    figures = matching.recall(model, vocabulary, tokens, captions, matching.truth_table(scenes, captions), top)
    return figures | matching.match_figures(model, vocabulary, tokens, scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--split", choices=world.SPLITS, default="test")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top", type=int, default=16, help="candidates that ITM re-ranks")
    parser.add_argument("--said", type=pathlib.Path, help="write what the model said, one JSON line a scene")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenes = [world.sample_scene(args.seed, args.split, i) for i in range(args.count)]
    kind = json.loads((args.folder / "config.json").read_text())["architectures"][0]
    if kind == "Blip2ForImageTextRetrieval":
        figures = evaluate_retrieval(args.folder, scenes, args.top)
    else:
        figures = evaluate_generative(args.folder, scenes, args.said)
    print(json.dumps({k: round(100 * float(np.asarray(v)), 2) for k, v in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
