"""What is said about a scene: captions, the parser that turns a caption back into facts, and questions with answers.

The grammar is small and every sentence of it is either true or false of a scene:

    inventory   = object | object {", " object} " and " object           "a red circle, a blue star and a green cross"
    object      = ("a" | "an") [size] color shape
    caption     = inventory                                              all objects of the scene, in any order
                | "a picture of " inventory                              the same
                | "from left to right: " object {", " object}            all objects, in that order
                | number (" shape: " | " shapes: ") inventory            all objects, and their number
                | "the " color shape relation "the " color shape         two objects
                | "only " object                                         the single object of a scene
                | object " in the " place                                some object is in that part of the picture

An inventory is true only if it names every object of the scene once and no other.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from .world import CANVAS, COLORS, RELATION_GAP, SHAPES, SIZES, Object, Scene, random_stream

NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# An object is "in the top left" and so on when its centre is clear of both middle lines by half the gap of a relation.
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle")


def phrase(obj: Object, with_size: bool = False) -> str:
    """ "a red circle", "an orange star" or "a large orange star"."""
    words = [obj.size] if with_size else []
    words += [obj.color, obj.shape]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def joined(phrases: list[str]) -> str:
    """ "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def holds(first: Object, relation: str, second: Object) -> bool | None:
    """Whether "first relation second" is true; None if the two are too close along that axis to say."""
    distance = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }[relation]
    return None if abs(distance) < RELATION_GAP else distance > 0


def place_of(obj: Object) -> str | None:
    """The part of the picture an object is in; None near a border between parts."""
    dx, dy = obj.x - CANVAS / 2, obj.y - CANVAS / 2
    if max(abs(dx), abs(dy)) <= RELATION_GAP / 2:
        return "middle"
    if min(abs(dx), abs(dy)) < RELATION_GAP:
        return None
    return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"


def true_relations(scene: Scene) -> list[str]:
    """All relation captions that are true of the scene."""
    return [
        f"the {a.name} is {relation} the {b.name}"
        for a in scene.objects
        for b in scene.objects
        for relation in RELATIONS
        if a is not b and holds(a, relation, b)
    ]


def captions(scene: Scene, rng: np.random.Generator | None = None) -> list[str]:
    """Five differently worded true captions. The same for every call with the same scene, unless `rng` is given."""
    rng = rng or random_stream(scene.seed, scene.split, scene.index, 2)
    plain = [phrase(o) for o in scene.objects]
    sized = [phrase(o, with_size=True) for o in scene.objects]
    count = len(scene.objects)
    number = f"{NUMBERS[count]} shape{'' if count == 1 else 's'}: {joined(plain)}"
    if count == 1:
        place = place_of(scene.objects[0])
        further = f"{sized[0]} in the {place}" if place else f"a picture of {plain[0]}"
        return [plain[0], sized[0], f"only {plain[0]}", number, further]
    relations = true_relations(scene)
    # Centres differ by 8 pixels along x at least, but a relation needs 16 along some axis; there may be none to state.
    further = relations[rng.integers(len(relations))] if relations else f"a picture of {joined(plain)}"
    return [joined(plain), joined(sized), f"from left to right: {', '.join(plain)}", number, further]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a caption: is it a sentence of the grammar, is it true, and does it name every object of the scene?"""

    parsed: bool
    true: bool
    complete: bool


_OBJECT = re.compile(rf"(?:an? )(?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
_NAME = rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_RELATION = re.compile(rf"the {_NAME} is ({'|'.join(RELATIONS)}) the {_NAME}")
_NUMBER = re.compile(rf"({'|'.join(NUMBERS)}) shapes?: (.+)")
_PLACE = re.compile(rf"(.+) in the ({'|'.join(PLACES)})")


def parse_objects(text: str, commas_only: bool = False) -> list[tuple[str | None, str, str]] | None:
    """(size or None, colour, shape) of each object of an inventory; None if the text is not one."""
    parts = re.split(", " if commas_only else ", | and ", text)
    found = [_OBJECT.fullmatch(part) for part in parts]
    return None if None in found else [m.groups() for m in found]  # type: ignore[union-attr]


def matches(claim: tuple[str | None, str, str], obj: Object) -> bool:
    """Whether the words fit the object."""
    size, color, shape = claim
    return (color, shape) == (obj.color, obj.shape) and size in (None, obj.size)


def is_inventory(claims: list[tuple[str | None, str, str]], objects: tuple[Object, ...]) -> bool:
    """Whether the claims name every object once, in any order, and nothing else."""
    left = list(objects)
    for claim in claims:
        fitting = [o for o in left if matches(claim, o)]
        if not fitting:
            return False
        left.remove(fitting[0])
    return not left


@dataclasses.dataclass(frozen=True)
class Statement:
    """A parsed caption: the objects it names and what else it says. At most one of relation, place and the rest is set."""

    claims: tuple[tuple[str | None, str, str], ...]  # (size or None, colour, shape)
    relation: str | None = None
    place: str | None = None
    number: int | None = None
    ordered: bool = False


def parse_caption(text: str) -> Statement | None:
    """What a caption states; None if it is not a sentence of the grammar."""
    text = " ".join(text.lower().split()).rstrip(".").rstrip()
    if m := _RELATION.fullmatch(text):
        return Statement(((None, m[1], m[2]), (None, m[4], m[5])), relation=m[3])
    if m := _PLACE.fullmatch(text):
        claims = parse_objects(m[1])
        return Statement(tuple(claims), place=m[2]) if claims is not None and len(claims) == 1 else None
    number = None
    if m := _NUMBER.fullmatch(text):
        number, text = NUMBERS.index(m[1]), m[2]
    ordered = text.startswith("from left to right: ")
    for start in ("from left to right: ", "a picture of ", "only "):
        text = text.removeprefix(start)
    claims = parse_objects(text, commas_only=ordered)
    return None if claims is None else Statement(tuple(claims), number=number, ordered=ordered)


def is_true(scene: Scene, statement: Statement) -> bool:
    """Whether everything that a caption states is so."""
    claims = statement.claims
    if statement.relation:
        first, second = (scene.find(color=color, shape=shape) for _, color, shape in claims)
        return bool(first and second) and holds(first[0], statement.relation, second[0]) is True
    if statement.place:
        return any(matches(claims[0], o) and place_of(o) == statement.place for o in scene.objects)
    true = is_inventory(list(claims), scene.objects) and statement.number in (None, len(scene.objects))
    if statement.ordered:
        true = true and all(matches(c, o) for c, o in zip(claims, scene.objects))
    return true


def check_caption(scene: Scene, text: str) -> Verdict:
    """Parses a caption back into facts and compares them with the scene."""
    statement = parse_caption(text)
    if statement is None:
        return Verdict(False, False, False)
    true = is_true(scene, statement)
    names_all = not (statement.relation or statement.place) or len(statement.claims) == len(scene.objects)
    return Verdict(True, true, true and names_all)


QUESTION_TYPES = ("color", "shape", "size", "count", "exist", "relation", "compare")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its one right answer. Numbers are digits, as the VQAv2 annotations have them."""

    type: str
    text: str
    answer: str


def pick(rng: np.random.Generator, things):
    """One of a sequence, evenly."""
    return things[int(rng.integers(len(things)))]


def yes(truth: bool) -> str:
    """The answer to a yes/no question."""
    return "yes" if truth else "no"


def ask_color(rng: np.random.Generator, scene: Scene) -> Question | None:
    """About an object that its shape alone, or shape and size, points at."""
    ways = [(f"the {o.shape}", o) for o in scene.objects if len(scene.find(shape=o.shape)) == 1]
    ways += [(f"the {o.size} {o.shape}", o) for o in scene.objects if len(scene.find(shape=o.shape, size=o.size)) == 1]
    if not ways:
        return None
    what, obj = pick(rng, ways)
    return Question("color", pick(rng, (f"what color is {what}?", f"what is the color of {what}?")), obj.color)


def ask_shape(rng: np.random.Generator, scene: Scene) -> Question | None:
    """About an object that its colour alone, or colour and size, points at."""
    ways = [(f"the {o.color} shape", o) for o in scene.objects if len(scene.find(color=o.color)) == 1]
    ways += [(f"the {o.size} {o.color} shape", o) for o in scene.objects if len(scene.find(color=o.color, size=o.size)) == 1]
    if len(scene.objects) == 1:
        ways.append(("the shape", scene.objects[0]))
    if not ways:
        return None
    what, obj = pick(rng, ways)
    return Question("shape", pick(rng, (f"what is {what}?", f"what kind of shape is {what}?")), obj.shape)


def ask_size(rng: np.random.Generator, scene: Scene) -> Question:
    """About any object, by its name."""
    obj = pick(rng, scene.objects)
    return Question("size", pick(rng, (f"what size is the {obj.name}?", f"how big is the {obj.name}?")), obj.size)


def ask_count(rng: np.random.Generator, scene: Scene) -> Question:
    """Of all shapes, or of those of a kind, a colour or a size; the kind is often, but not always, one that is there."""
    obj = pick(rng, scene.objects)
    kind = rng.integers(4)
    if kind == 0:
        what, count = "shapes", len(scene.objects)
    elif kind == 1:
        shape = obj.shape if rng.random() < 0.8 else pick(rng, SHAPES)
        what, count = plural(shape), len(scene.find(shape=shape))
    elif kind == 2:
        color = obj.color if rng.random() < 0.8 else pick(rng, COLORS)
        what, count = f"{color} shapes", len(scene.find(color=color))
    else:
        size = pick(rng, SIZES)
        what, count = f"{size} shapes", len(scene.find(size=size))
    return Question("count", f"how many {what} are there?", str(count))


def plural(shape: str) -> str:
    """The plural of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")


def ask_exist(rng: np.random.Generator, scene: Scene) -> Question:
    """Yes and no alike often; the false ones mostly change one attribute of an object that is there."""
    obj = pick(rng, scene.objects)
    wanted = rng.random() < 0.5
    for _ in range(50):
        color, shape = obj.color, obj.shape
        if not wanted:
            which = rng.random()
            color = pick(rng, COLORS) if which < 0.6 else color
            shape = pick(rng, SHAPES) if which > 0.4 else shape
            if rng.random() < 0.5 and len(scene.objects) > 1:
                # The hardest kind: the colour of one object with the shape of another.
                color, shape = pick(rng, scene.objects).color, pick(rng, scene.objects).shape
        form = rng.integers(3)
        if form == 0:
            what, there = f"{color} shape", bool(scene.find(color=color))
        elif form == 1:
            what, there = shape, bool(scene.find(shape=shape))
        else:
            what, there = f"{color} {shape}", bool(scene.find(color=color, shape=shape))
        if there == wanted:
            break
    article = "an" if what[0] in "aeiou" else "a"
    return Question("exist", f"is there {article} {what}?", yes(there))


def ask_relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Where one object is relative to another; each relation and its opposite alike often."""
    ways = [
        (a, relation, b)
        for a in scene.objects
        for b in scene.objects
        for relation in RELATIONS
        if a is not b and holds(a, relation, b) is not None
    ]
    if not ways:
        return None
    a, relation, b = pick(rng, ways)
    return Question("relation", f"is the {a.name} {relation} the {b.name}?", yes(bool(holds(a, relation, b))))


def ask_compare(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Sizes of two objects, or numbers of two kinds."""
    if len(scene.objects) < 2:
        return None
    i, j = rng.permutation(len(scene.objects))[:2]
    a, b = scene.objects[i], scene.objects[j]
    form = rng.integers(3)
    if form == 0 and a.shape != b.shape:
        more = len(scene.find(shape=a.shape)) > len(scene.find(shape=b.shape))
        return Question("compare", f"are there more {plural(a.shape)} than {plural(b.shape)}?", yes(more))
    if form == 1:
        return Question("compare", f"are the {a.name} and the {b.name} the same size?", yes(a.size == b.size))
    larger = rng.random() < 0.5
    truth = a.size != b.size and (a.size == "large") == larger
    return Question("compare", f"is the {a.name} {'larger' if larger else 'smaller'} than the {b.name}?", yes(truth))


_ASK = dict(zip(QUESTION_TYPES, (ask_color, ask_shape, ask_size, ask_count, ask_exist, ask_relation, ask_compare)))


def question(rng: np.random.Generator, scene: Scene, kind: str) -> Question | None:
    """A question of a type, or None if the scene allows none."""
    return _ASK[kind](rng, scene)


def questions(scene: Scene) -> list[Question]:
    """One question of each type that the scene allows; the same for every call with the same scene."""
    rng = random_stream(scene.seed, scene.split, scene.index, 3)
    asked = [question(rng, scene, kind) for kind in QUESTION_TYPES]
    return [q for q in asked if q is not None]
