"""Scenes as data sets: pictures and the JSON layouts of COCO captions, VQAv2 and Karpathy's retrieval split."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from . import draw, language, world

ANSWER_TYPES = {"count": "number", "exist": "yes/no", "relation": "yes/no", "compare": "yes/no"}


def file_name(scene: world.Scene) -> str:
    """The name ends in the image id with 12 digits, as COCO's, because readers of VQAv2 find the picture by it."""
    return f"scenes_{scene.split}_{scene.index:012d}.png"


def coco_captions(scenes: list[world.Scene]) -> dict:
    """COCO's caption annotations."""
    return {
        "info": {"description": "generated scenes with true captions"},
        "licenses": [],
        "type": "captions",
        "images": [{"id": s.index, "file_name": file_name(s), "width": world.CANVAS, "height": world.CANVAS} for s in scenes],
        "annotations": [
            {"id": 5 * s.index + i, "image_id": s.index, "caption": caption}
            for s in scenes
            for i, caption in enumerate(language.captions(s))
        ],
    }


def vqa(scenes: list[world.Scene]) -> tuple[dict, dict]:
    """VQAv2's questions and annotations. All ten answers are the one right answer; the question type is the world's own."""
    questions, annotations = [], []
    for scene in scenes:
        for i, q in enumerate(language.questions(scene)):
            key = {"image_id": scene.index, "question_id": scene.index * 1000 + i}
            questions.append(key | {"question": q.text})
            annotations.append(
                key
                | {
                    "question_type": q.type,
                    "answer_type": ANSWER_TYPES.get(q.type, "other"),
                    "multiple_choice_answer": q.answer,
                    "answers": [{"answer": q.answer, "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)],
                }
            )
    return {"questions": questions}, {"annotations": annotations}


def pairs(scenes: list[world.Scene]) -> list[dict]:
    """The same questions as `blip2-wgpu vqa --pairs` takes them, with what is right."""
    return [
        {"image": f"images/{file_name(s)}", "question": q.text, "type": q.type, "answer": q.answer}
        for s in scenes
        for q in language.questions(s)
    ]


def karpathy(scenes: list[world.Scene], split: str) -> list[dict]:
    """Karpathy's retrieval layout: one entry a caption for training, one entry a picture with all captions otherwise."""
    entries = [{"image": f"images/{file_name(s)}", "caption": language.captions(s), "image_id": s.index} for s in scenes]
    if split != "train":
        return [{"image": e["image"], "caption": e["caption"]} for e in entries]
    return [e | {"caption": caption} for e in entries for caption in e["caption"]]


def facts(scenes: list[world.Scene]) -> list[dict]:
    """The truth itself, for whoever wants to check a sentence against it."""
    return [{"image_id": s.index, "image": file_name(s)} | dataclasses.asdict(s) | {"held_out": s.has_held_out} for s in scenes]


def write(folder: pathlib.Path, split: str, count: int, seed: int = 0, start: int = 0) -> None:
    """Pictures in `images/` and all the JSON files."""
    scenes = [world.sample_scene(seed, split, i) for i in range(start, start + count)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        draw.draw(scene).save(folder / "images" / file_name(scene), optimize=True)
    questions, annotations = vqa(scenes)
    files = {
        f"captions_{split}.json": coco_captions(scenes),
        f"vqa_{split}_questions.json": questions,
        f"vqa_{split}_annotations.json": annotations,
        f"karpathy_{split}.json": karpathy(scenes, split),
        f"karpathy_{split}_gt.json": coco_captions(scenes),
        f"facts_{split}.json": facts(scenes),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content) + "\n")
    lines = [json.dumps(pair) + "\n" for pair in pairs(scenes)]
    (folder / f"vqa_{split}_pairs.jsonl").write_text("".join(lines))
