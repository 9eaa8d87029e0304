"""Drawing a scene: background, objects, then brightness, blur and JPEG noise.

Objects are drawn at OVERSAMPLE times the size and reduced, so edges are smooth and positions are not bound to pixels.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world import CANVAS, COLORS, RGB, Object, Scene, random_stream

OVERSAMPLE = 3
# A background is at least this far (Euclidean, in RGB) from the colour of every object on it.
MIN_CONTRAST = 75.0


@functools.cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape in the unit circle, y downwards. Circle and ring are drawn otherwise."""
    if shape == "square":
        s = 0.78
        return ((-s, -s), (s, -s), (s, s), (-s, s))
    if shape == "triangle":
        return ((0.0, -0.95), (0.9, 0.72), (-0.9, 0.72))
    if shape == "diamond":
        return ((0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0))
    if shape == "star":
        points = []
        for i in range(10):
            radius = 1.0 if i % 2 == 0 else 0.42
            turn = math.pi * i / 5
            points.append((radius * math.sin(turn), -radius * math.cos(turn)))
        return tuple(points)
    if shape == "cross":
        a, b = 0.95, 0.32
        return ((-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b))
    if shape == "heart":
        # The well known parametric heart curve, scaled into the unit circle.
        points = []
        for i in range(36):
            t = 2 * math.pi * i / 36
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 17, -(y + 2) / 17))
        return tuple(points)
    raise ValueError(f"no outline for shape {shape!r}")


def object_mask(obj: Object) -> tuple[Image.Image, tuple[int, int]]:
    """Coverage of one object (0..255) in a small picture, and the canvas position of its top left pixel."""
    left, top = int(obj.x - obj.radius) - 1, int(obj.y - obj.radius) - 1
    side = int(2 * obj.radius) + 4
    cx, cy, r = (obj.x - left) * OVERSAMPLE, (obj.y - top) * OVERSAMPLE, obj.radius * OVERSAMPLE
    mask = Image.new("L", (side * OVERSAMPLE, side * OVERSAMPLE), 0)
    pen = ImageDraw.Draw(mask)
    if obj.shape in ("circle", "ring"):
        r *= 0.92
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
        if obj.shape == "ring":
            r *= 0.55
            pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=0)
    else:
        sin, cos = math.sin(math.radians(obj.angle)), math.cos(math.radians(obj.angle))
        pen.polygon([(cx + r * (x * cos - y * sin), cy + r * (x * sin + y * cos)) for x, y in outline(obj.shape)], fill=255)
    return mask.reduce(OVERSAMPLE), (left, top)


def background_color(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A muted colour that stands out from every object of the scene."""
    used = np.array([RGB[o.color] for o in scene.objects], dtype=np.float64)
    for _ in range(200):
        color = rng.uniform(50, 215) + rng.uniform(-35, 35, size=3)
        if np.sqrt(((used - color) ** 2).sum(axis=1)).min() >= MIN_CONTRAST:
            break
    return np.clip(color, 0, 255)


@functools.cache
def grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers of the canvas, float32."""
    rows, columns = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    return rows, columns


def pattern(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A pattern in -1..1, [CANVAS, CANVAS], that a textured background adds to its colour."""
    rows, columns = grid()
    turn = rng.uniform(0, math.pi)
    along = columns * np.float32(math.cos(turn)) + rows * np.float32(math.sin(turn))
    if kind == "gradient":
        along -= along.mean()
        return along / np.abs(along).max()
    step = np.float32(rng.uniform(7, 16))
    across = rows * np.float32(math.cos(turn)) - columns * np.float32(math.sin(turn))
    if kind == "striped":
        return np.where(along % step < step / 2, np.float32(1), np.float32(-1))
    if kind == "checkered":
        return np.where((along % step < step / 2) == (across % step < step / 2), np.float32(1), np.float32(-1))
    if kind == "dotted":
        u, v = along % step - step / 2, across % step - step / 2
        return np.where(u * u + v * v < (step / 4) ** 2, np.float32(1), np.float32(-0.3))
    raise ValueError(f"no pattern for background {kind!r}")


def draw_background(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The background alone, uint8 [CANVAS, CANVAS, 3]."""
    color = background_color(rng, scene)
    if scene.background == "plain":
        return np.broadcast_to(color.astype(np.uint8), (CANVAS, CANVAS, 3)).copy()
    if scene.background == "noisy":
        strength = int(rng.integers(8, 26))
        noise = rng.integers(-strength, strength + 1, size=(CANVAS, CANVAS, 3), dtype=np.int16)
        return np.clip(color.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    # Textures and gradients stay within a contrast that no object could be mistaken for.
    shift = rng.uniform(-1, 1, size=3) * 6 + rng.uniform(8, 20)
    field = pattern(rng, scene.background)[..., None] * shift.astype(np.float32)
    return np.clip(field + color.astype(np.float32), 0, 255).astype(np.uint8)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, CANVAS x CANVAS: a pure function of the scene and its (seed, split, index)."""
    rng = random_stream(scene.seed, scene.split, scene.index, 1)
    picture = Image.fromarray(draw_background(rng, scene))
    for obj in paint_order(scene):
        color = np.clip(np.array(RGB[obj.color]) + rng.integers(-12, 13, size=3), 0, 255)
        mask, corner = object_mask(obj)
        picture.paste(tuple(int(c) for c in color), (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    brightness = rng.uniform(0.8, 1.12)
    picture = picture.point([min(255, int(v * brightness + 0.5)) for v in range(256)] * 3)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    # Every picture has been through JPEG once; the file is then kept without loss, so that decoders cannot differ.
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return Image.open(buffer).convert("RGB")


def paint_order(scene: Scene) -> list[Object]:
    """Large objects first, so that a small one is never hidden by a large one."""
    return sorted(scene.objects, key=lambda o: -o.radius)


def patch_owners(scene: Scene, patches: int, min_share: float = 0.12) -> np.ndarray:
    """Which object is under each patch: int8 [patches, patches], the object's number from the left, or -1 for none.

    A patch belongs to the visible object that covers most of it, if that is at least `min_share` of the patch.
    """
    side = CANVAS // patches
    shares = np.zeros((len(scene.objects) + 1, patches, patches), dtype=np.float32)
    owner = np.full((CANVAS, CANVAS), len(scene.objects), dtype=np.int8)
    for obj in paint_order(scene):
        mask, (left, top) = object_mask(obj)
        inside = np.asarray(mask)[max(0, -top) : CANVAS - top, max(0, -left) : CANVAS - left] >= 128
        top, left = max(0, top), max(0, left)
        owner[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = scene.objects.index(obj)
    for i in range(len(scene.objects)):
        shares[i] = (owner == i).reshape(patches, side, patches, side).mean(axis=(1, 3))
    best = shares[:-1].argmax(axis=0)
    covered = shares[:-1].max(axis=0) >= min_share
    return np.where(covered, best, -1).astype(np.int8)


__all__ = ["COLORS", "draw", "patch_owners", "paint_order"]
