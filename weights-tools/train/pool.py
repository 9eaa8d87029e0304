"""A pool of drawn scenes, kept in memory: pixels at the model's input size and the facts as small arrays.

Drawing costs more than a training step can wait for, so scenes are drawn once, in blocks of BLOCK, and kept as files beside the
training state. Mirroring doubles the pool: every shape is symmetric, so a mirrored scene is a true scene of the same world.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib

import numpy as np
import torch
from PIL import Image

from scenes import draw, world

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
MAX_OBJECTS = 4
BLOCK = 4096
# Columns of the facts: shape, colour and size are numbers into the world's tuples; the rest is in canvas pixels.
SHAPE, COLOR, SIZE, X, Y, RADIUS = range(6)


def facts_of(scene: world.Scene) -> np.ndarray:
    """[MAX_OBJECTS, 6] float32, objects from left to right; rows without an object are -1."""
    facts = np.full((MAX_OBJECTS, 6), -1, dtype=np.float32)
    for row, o in zip(facts, scene.objects):
        row[:] = (
            world.SHAPES.index(o.shape),
            world.COLORS.index(o.color),
            world.SIZES.index(o.size),
            o.x,
            o.y,
            o.radius,
        )
    return facts


def scene_of(facts: np.ndarray) -> world.Scene:
    """The objects again, from a row of facts. Only what captions and questions speak of survives the way."""
    return world.Scene(
        tuple(
            world.Object(world.SHAPES[int(f[SHAPE])], world.COLORS[int(f[COLOR])], world.SIZES[int(f[SIZE])], *map(float, f[X:]))
            for f in facts
            if f[SHAPE] >= 0
        )
    )


def make_block(seed: int, split: str, start: int, count: int) -> dict[str, np.ndarray]:
    """Scenes start .. start + count of a split, as arrays."""
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    owners = np.empty((count, GRID, GRID), dtype=np.int8)
    facts = np.empty((count, MAX_OBJECTS, 6), dtype=np.float32)
    for i in range(count):
        scene = world.sample_scene(seed, split, start + i)
        pixels[i] = np.asarray(draw.draw(scene).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
        owners[i] = draw.patch_owners(scene, GRID)
        facts[i] = facts_of(scene)
    return {"pixels": pixels, "owners": owners, "facts": facts}


ARRAYS = ("pixels", "owners", "facts")


def block_files(folder: pathlib.Path, seed: int, split: str, block: int, count: int) -> dict[str, pathlib.Path]:
    """The files of a block, drawn unless they are there already."""
    files = {name: folder / f"{split}-s{seed}-b{block:04d}-n{count}-{name}.npy" for name in ARRAYS}
    if not all(path.exists() for path in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in make_block(seed, split, block * BLOCK, count).items():
            partial = files[name].with_suffix(".partial")
            with open(partial, "wb") as file:
                np.save(file, array)
            partial.rename(files[name])
    return files


@dataclasses.dataclass
class Batch:
    """Some scenes: uint8 pixels [n, 64, 64, 3], int8 owners [n, 8, 8], float32 facts [n, 4, 6]."""

    pixels: np.ndarray
    owners: np.ndarray
    facts: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, rows: slice) -> Batch:
        """A run of the scenes."""
        return Batch(self.pixels[rows], self.owners[rows], self.facts[rows])


class Pool:
    """All scenes of one split, as blocks of mapped files: processes share them, and nothing is copied before it is used."""

    def __init__(self, folder: pathlib.Path, split: str, count: int, seed: int = 0, workers: int = 2):
        """Draws the blocks that are not there yet with `workers` processes."""
        self.count = count
        sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
        with concurrent.futures.ProcessPoolExecutor(workers) as executor:
            n = len(sizes)
            files = list(executor.map(block_files, [folder] * n, [seed] * n, [split] * n, range(n), sizes))
        self.blocks = [{name: np.load(path, mmap_mode="r") for name, path in block.items()} for block in files]

    def take(self, rows) -> Batch:
        """The scenes with these numbers."""
        return Batch(*(np.stack([self.blocks[i // BLOCK][name][i % BLOCK] for i in rows]) for name in ARRAYS))

    def facts(self, rows, flip: np.ndarray) -> np.ndarray:
        """Facts [n, 4, 6] of these scenes, those of `flip` mirrored."""
        facts = np.stack([self.blocks[i // BLOCK]["facts"][i % BLOCK] for i in rows])
        facts[flip] = mirrored_facts(facts[flip])
        return facts

    def choose(self, step: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The scenes of a training step: a new permutation every epoch; half of them mirrored (the second array)."""
        places = (divmod(position, self.count) for position in range(step * size, (step + 1) * size))
        rows = np.array([epoch_order(self.count, seed, epoch)[offset] for epoch, offset in places])
        return rows, np.random.default_rng([seed, step]).random(size) < 0.5

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The batch of a training step."""
        rows, flip = self.choose(step, size, seed)
        picked = self.take(rows)
        picked.pixels[flip], picked.owners[flip], picked.facts[flip] = mirrored(
            picked.pixels[flip], picked.owners[flip], picked.facts[flip]
        )
        return picked


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the scenes in an epoch; only the latest two are remembered."""
    key = (count, seed, epoch)
    if key not in _orders:
        while len(_orders) > 1:
            _orders.pop(next(iter(_orders)))
        _orders[key] = np.random.default_rng([seed, 7, epoch]).permutation(count)
    return _orders[key]


def mirrored(pixels: np.ndarray, owners: np.ndarray, facts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right exchanged: objects change places in the order, too."""
    objects = (facts[:, :, SHAPE] >= 0).sum(axis=1)
    owners = owners[:, :, ::-1]
    owners = np.where(owners >= 0, objects[:, None, None] - 1 - owners, owners).astype(np.int8)
    return pixels[:, :, ::-1], owners, mirrored_facts(facts)


def mirrored_facts(facts: np.ndarray) -> np.ndarray:
    """The facts [n, 4, 6] of mirrored scenes."""
    objects = (facts[:, :, SHAPE] >= 0).sum(axis=1)
    order = (objects[:, None] - 1 - np.arange(MAX_OBJECTS)) % MAX_OBJECTS
    facts = np.take_along_axis(facts, order[..., None], axis=1)
    facts[..., X] = np.where(facts[..., SHAPE] >= 0, world.CANVAS - facts[..., X], -1)
    return facts


# The published preprocessing's mean and deviation.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def pixel_values(pixels: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [n, 64, 64, 3] to normalised float32 [n, 3, 64, 64]."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return ((x.float() / 255 - MEAN.to(device)) / STD.to(device)).permute(0, 3, 1, 2).contiguous()
