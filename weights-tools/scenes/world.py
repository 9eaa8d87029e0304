"""The world: what a scene may hold, and the seeded sampling of one scene.

A scene is a pure function of (seed, split, index). Nothing else, neither the time nor the order of calls, has a part in it.
Coordinates are pixels of a square canvas of CANVAS pixels, x to the right and y downwards.
"""

from __future__ import annotations

import dataclasses

import numpy as np

CANVAS = 128

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "gradient", "noisy", "striped", "checkered", "dotted")

RGB = {
    "red": (215, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 50),
    "green": (40, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 80, 210),
    "purple": (125, 50, 165),
    "pink": (245, 135, 185),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}

# Radius of the circle around an object, in canvas pixels. The gap keeps the word for the size unambiguous.
RADIUS = {"small": (12.0, 15.0), "large": (21.0, 26.0)}
# Share of scenes with 1, 2, 3 and 4 objects.
COUNT_SHARES = (0.2, 0.25, 0.3, 0.25)
# Captions list objects from left to right, so two centres are never closer than this along x.
MIN_DX = 8.0
# A relation along an axis is stated or asked only when the centres are at least this far apart along it.
RELATION_GAP = 16.0
# Centres keep at least this share of the sum of the radii: objects may touch and overlap a little.
MIN_SEPARATION = 0.92

SPLITS = ("train", "val", "test")
# One colour for each shape that training and validation never show together.
HELD_OUT = frozenset((SHAPES[i], COLORS[(3 * i + 1) % len(COLORS)]) for i in range(len(SHAPES)))
# Every fourth test scene holds at least one held-out combination; the other test scenes hold none.
HELD_OUT_EVERY = 4


@dataclasses.dataclass(frozen=True)
class Object:
    """One object: its words, its centre, its radius and its rotation in degrees."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        """Colour and shape. No two objects of a scene share both, so the name points at one object."""
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects from left to right. `split`, `index` and `seed` say where the scene comes from."""

    objects: tuple[Object, ...]
    background: str = "plain"
    seed: int = 0
    split: str = "train"
    index: int = 0

    def find(self, shape: str | None = None, color: str | None = None, size: str | None = None) -> list[Object]:
        """The objects that have all the attributes given."""
        return [
            o
            for o in self.objects
            if (shape is None or o.shape == shape)
            and (color is None or o.color == color)
            and (size is None or o.size == size)
        ]

    @property
    def has_held_out(self) -> bool:
        """Whether some object is a combination that training never shows."""
        return any((o.shape, o.color) in HELD_OUT for o in self.objects)


def random_stream(seed: int, split: str, index: int, use: int) -> np.random.Generator:
    """An independent random stream for one use (0 scene, 1 pixels, 2 captions, 3 questions) of one scene.

    The split is part of the key, so the streams of two splits never meet.
    """
    return np.random.default_rng([seed, SPLITS.index(split), index, use])


def sample_names(rng: np.random.Generator, count: int, with_held_out: bool) -> list[tuple[str, str]]:
    """`count` different (shape, colour) pairs; one of them held out if asked for, otherwise none."""
    names: list[tuple[str, str]] = []
    if with_held_out:
        held = sorted(HELD_OUT)
        names.append(held[rng.integers(len(held))])
    while len(names) < count:
        name = (SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))])
        # Some scenes repeat an attribute on purpose, so that counting has something to count.
        if names and rng.random() < 0.25:
            other = names[rng.integers(len(names))]
            name = (other[0], name[1]) if rng.random() < 0.5 else (name[0], other[1])
        if name not in names and name not in HELD_OUT:
            names.append(name)
    order = rng.permutation(count)
    return [names[i] for i in order]


def place(rng: np.random.Generator, count: int) -> list[tuple[str, float, float, float]]:
    """Sizes, radii and centres of `count` objects by rejection: (size, radius, x, y)."""
    while True:
        sizes = [SIZES[i] for i in rng.integers(len(SIZES), size=count)]
        placed: list[tuple[str, float, float, float]] = []
        for size in sizes:
            radius = rng.uniform(*RADIUS[size])
            for x, y in rng.uniform(radius + 1, CANVAS - radius - 1, size=(12, 2)):
                if all(
                    abs(x - px) >= MIN_DX and np.hypot(x - px, y - py) >= MIN_SEPARATION * (radius + pr)
                    for _, pr, px, py in placed
                ):
                    placed.append((size, float(radius), float(x), float(y)))
                    break
            else:
                break
        if len(placed) == count:
            return placed


def sample_scene(seed: int, split: str, index: int, max_objects: int = 4) -> Scene:
    """The scene at `index` of `split`. `max_objects` below 4 gives the easier scenes of a curriculum."""
    rng = random_stream(seed, split, index, 0)
    shares = np.array(COUNT_SHARES[:max_objects])
    count = 1 + int(rng.choice(max_objects, p=shares / shares.sum()))
    names = sample_names(rng, count, with_held_out=split == "test" and index % HELD_OUT_EVERY == 0)
    objects = [
        Object(shape, color, size, round(x, 2), round(y, 2), round(radius, 2), round(float(rng.uniform(-10, 10)), 1))
        for (shape, color), (size, radius, x, y) in zip(names, place(rng, count))
    ]
    objects.sort(key=lambda o: o.x)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Scene(tuple(objects), background, seed, split, index)
