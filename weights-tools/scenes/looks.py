"""`python -m scenes.looks FACTS MAPS`: how often a word's brightest patch lies on the object that the word names.

MAPS are lines of `cargo run --example explain`. A word counts where its caption's object (size, colour, shape) is
one of the scene; a patch lies on an object if it touches the circle that the object is drawn in.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pathlib

from .world import CANVAS, COLORS, SHAPES, SIZES


def patches_on(obj: dict, grid: int) -> set[int]:
    """The patches that touch the object's circle."""
    side = CANVAS / grid

    def distance(column: int, row: int) -> float:
        nearest = (min(max(obj["x"], column * side), (column + 1) * side), min(max(obj["y"], row * side), (row + 1) * side))
        return math.dist(nearest, (obj["x"], obj["y"]))

    return {row * grid + column for row in range(grid) for column in range(grid) if distance(column, row) <= obj["radius"]}


def phrases(words: list[dict]):
    """Each [size] colour shape of a caption as {kind: word}."""
    found: dict = {}
    for word in words:
        text = word["text"].strip(",.")
        for kind, known in (("size", SIZES), ("color", COLORS), ("shape", SHAPES)):
            if text in known:
                found[kind] = {**word, "text": text}
        if "shape" in found:
            yield found
            found = {}


def looks(facts: list[dict], lines: list[dict]) -> tuple[dict, float]:
    """(kind of word → [hits, words], share of a scene's patches that lie on the object meant)."""
    scenes = {pathlib.Path(entry["image"]).name: entry["objects"] for entry in facts}
    counts, shares = collections.defaultdict(lambda: [0, 0]), []
    for line in lines:
        for phrase in phrases(line["words"]):
            meant = [o for o in scenes[pathlib.Path(line["image"]).name] if all(o[k] == w["text"] for k, w in phrase.items())]
            if len(meant) != 1:
                continue
            here = patches_on(meant[0], line["grid"])
            shares.append(len(here) / line["grid"] ** 2)
            for kind, word in phrase.items():
                brightest = max(range(len(word["patches"])), key=word["patches"].__getitem__)
                counts[kind][0] += brightest in here
                counts[kind][1] += 1
    return dict(counts), sum(shares) / max(len(shares), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=pathlib.Path)
    parser.add_argument("maps", type=pathlib.Path)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.maps.read_text().splitlines()]
    counts, chance = looks(json.loads(args.facts.read_text()), lines)
    for kind, (hits, words) in counts.items():
        print(f"{kind}: {hits} of {words} words ({hits / words:.1%})")
    print(f"by chance: {chance:.1%}")


if __name__ == "__main__":
    main()
