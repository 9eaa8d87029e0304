"""`python -m scenes write OUT --split test --count 1000`: pictures and JSON files of a split.
`python -m scenes check FACTS RESULTS`: how many captions of a results file are exactly true.
`python -m scenes answers PAIRS RESULTS`: how many answers of `blip2-wgpu vqa --pairs PAIRS --json` are right."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib

from . import language, layouts, world


def scene_from(entry: dict) -> world.Scene:
    """A scene back from an entry of facts_*.json."""
    fields = {k: entry[k] for k in ("background", "seed", "split", "index")}
    return world.Scene(tuple(world.Object(**o) for o in entry["objects"]), **fields)


def read_results(file: pathlib.Path) -> list[dict]:
    """COCO's [{"image_id", "caption"}], or the lines of `blip2-wgpu caption … --json`, whose image names end in the id."""
    text = file.read_text()
    if text.lstrip().startswith("["):
        return json.loads(text)
    lines = map(json.loads, text.splitlines())
    return [{"image_id": int(pathlib.Path(line["image"]).stem.split("_")[-1]), "caption": line["pred_caption"]} for line in lines]


def check(facts: pathlib.Path, results: pathlib.Path) -> dict:
    """Shares of true and of complete captions."""
    entries = {e["image_id"]: e for e in json.loads(facts.read_text())}
    right, all_ = collections.Counter(), collections.Counter()
    for result in read_results(results):
        entry = entries[result["image_id"]]
        verdict = language.check_caption(scene_from(entry), result["caption"])
        for name in ("all", "held_out" if entry["held_out"] else "seen", f"{len(entry['objects'])}_objects"):
            all_[name] += 1
            right[name] += verdict.true
        right["complete"] += verdict.complete
        right["parsed"] += verdict.parsed
    all_["complete"] = all_["parsed"] = all_["all"]
    return {name: {"percent": round(100 * right[name] / all_[name], 2), "captions": all_[name]} for name in sorted(all_)}


def answers(pairs: pathlib.Path, results: pathlib.Path) -> dict:
    """Shares of right answers, of all and of each type."""
    right, all_ = collections.Counter(), collections.Counter()
    asked, said = ([json.loads(line) for line in file.read_text().splitlines()] for file in (pairs, results))
    for pair, answer in zip(asked, said, strict=True):
        assert (pair["image"], pair["question"]) == (answer["image"], answer["question"]), "not the answers to these pairs"
        for name in ("all", pair["type"]):
            all_[name] += 1
            right[name] += answer["pred_answer"] == pair["answer"]
    return {name: {"percent": round(100 * right[name] / all_[name], 2), "answers": all_[name]} for name in sorted(all_)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("out", type=pathlib.Path)
    write.add_argument("--split", choices=world.SPLITS, default="test")
    write.add_argument("--count", type=int, default=1000)
    write.add_argument("--start", type=int, default=0)
    write.add_argument("--seed", type=int, default=0)
    checking = commands.add_parser("check")
    checking.add_argument("facts", type=pathlib.Path)
    checking.add_argument("results", type=pathlib.Path)
    answering = commands.add_parser("answers")
    answering.add_argument("pairs", type=pathlib.Path)
    answering.add_argument("results", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "write":
        layouts.write(args.out, args.split, args.count, args.seed, args.start)
    elif args.command == "answers":
        print(json.dumps(answers(args.pairs, args.results), indent=1))
    else:
        print(json.dumps(check(args.facts, args.results), indent=1))


if __name__ == "__main__":
    main()
