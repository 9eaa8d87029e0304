"""Run with `python -m unittest scenes.test_scenes` in weights-tools."""

import dataclasses
import json
import pathlib
import tempfile
import unittest

import numpy as np

from scenes import draw, language, layouts, looks, world
from scenes.__main__ import answers, check, scene_from


def scenes(split: str, count: int) -> list[world.Scene]:
    return [world.sample_scene(0, split, i) for i in range(count)]


class World(unittest.TestCase):
    def test_a_scene_is_a_function_of_seed_split_and_index(self):
        self.assertEqual(world.sample_scene(3, "val", 17), world.sample_scene(3, "val", 17))
        self.assertNotEqual(world.sample_scene(3, "val", 17).objects, world.sample_scene(3, "test", 17).objects)
        self.assertNotEqual(world.sample_scene(3, "val", 17).objects, world.sample_scene(4, "val", 17).objects)

    def test_pictures_repeat_exactly(self):
        scene = world.sample_scene(0, "train", 5)
        self.assertTrue(np.array_equal(np.asarray(draw.draw(scene)), np.asarray(draw.draw(scene))))

    def test_held_out_combinations_appear_in_test_alone(self):
        self.assertFalse(any(s.has_held_out for s in scenes("train", 2000) + scenes("val", 500)))
        self.assertEqual([s.has_held_out for s in scenes("test", 40)], [i % 4 == 0 for i in range(40)])

    def test_no_two_objects_share_a_name_and_all_lie_inside(self):
        for scene in scenes("test", 500):
            self.assertEqual(len({o.name for o in scene.objects}), len(scene.objects))
            self.assertEqual(list(scene.objects), sorted(scene.objects, key=lambda o: o.x))
            for o in scene.objects:
                self.assertTrue(o.radius <= o.x <= world.CANVAS - o.radius and o.radius <= o.y <= world.CANVAS - o.radius)

    def test_every_object_owns_a_patch(self):
        for scene in scenes("train", 300):
            owned = set(np.unique(draw.patch_owners(scene, 8))) - {-1}
            self.assertEqual(owned, set(range(len(scene.objects))))


class Language(unittest.TestCase):
    def test_captions_are_true_and_differ(self):
        for scene in scenes("test", 1000):
            said = language.captions(scene)
            self.assertEqual(len(set(said)), 5)
            for caption in said:
                verdict = language.check_caption(scene, caption)
                self.assertTrue(verdict.parsed and verdict.true, caption)

    def test_inventories_become_false_when_a_word_changes(self):
        for scene in scenes("test", 300):
            first = scene.objects[0]
            for change in (
                {"color": world.COLORS[world.COLORS.index(first.color) - 1]},
                {"shape": world.SHAPES[world.SHAPES.index(first.shape) - 1]},
                {"size": world.SIZES[world.SIZES.index(first.size) - 1]},
            ):
                other = dataclasses.replace(scene, objects=(dataclasses.replace(first, **change), *scene.objects[1:]))
                said = language.captions(other)[1]  # the inventory with sizes
                verdict = language.check_caption(scene, said)
                self.assertTrue(verdict.parsed and not verdict.true, said)

    def test_missing_surplus_and_misplaced_objects_are_false(self):
        a = world.Object("circle", "red", "large", 30, 30, 22)
        b = world.Object("star", "blue", "small", 90, 40, 13)
        scene = world.Scene((a, b))
        for text, true in {
            "a red circle and a blue star": True,
            "a blue star and a red circle": True,
            "a large red circle and a small blue star": True,
            "a red circle": False,
            "a red circle, a red circle and a blue star": False,
            "from left to right: a blue star, a red circle": False,
            "three shapes: a red circle and a blue star": False,
            "two shapes: a red circle and a blue star": True,
            "the red circle is left of the blue star": True,
            "the red circle is right of the blue star": False,
            "the red circle is above the blue star": False,  # too close in height to say
            "the red star is left of the blue star": False,
            "a large red circle in the top left": True,
            "a large red circle in the top right": False,
        }.items():
            verdict = language.check_caption(scene, text)
            self.assertTrue(verdict.parsed, text)
            self.assertEqual(verdict.true, true, text)

    def test_other_sentences_are_not_parsed(self):
        scene = world.sample_scene(0, "val", 0)
        for text in ("", "a dog", "a red", "a red circle and", "the red circle is left of", "circle red a"):
            self.assertFalse(language.check_caption(scene, text).parsed, text)

    def test_yes_and_no_are_about_as_frequent(self):
        answers: dict[str, list[str]] = {}
        for scene in scenes("val", 1500):
            for q in language.questions(scene):
                answers.setdefault(q.type, []).append(q.answer)
        self.assertEqual(set(answers), set(language.QUESTION_TYPES))
        for kind in ("exist", "relation"):
            share = answers[kind].count("yes") / len(answers[kind])
            self.assertTrue(0.4 < share < 0.6, (kind, share))
        self.assertTrue(0.25 < answers["compare"].count("yes") / len(answers["compare"]) < 0.6)


class Layouts(unittest.TestCase):
    def test_written_facts_give_the_scenes_back_and_their_captions_check_as_true(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            layouts.write(folder, "test", 9)
            facts = json.loads((folder / "facts_test.json").read_text())
            self.assertEqual([scene_from(e) for e in facts], scenes("test", 9))
            captions = json.loads((folder / "captions_test.json").read_text())["annotations"]
            results = [a for a in captions if a["id"] % 5 == 0]
            (folder / "results.json").write_text(json.dumps(results))
            figures = check(folder / "facts_test.json", folder / "results.json")
            self.assertEqual(figures["all"], {"percent": 100.0, "captions": 9})
            self.assertEqual(figures["held_out"]["captions"], 3)
            results[0]["caption"] = "a dog"
            (folder / "results.json").write_text(json.dumps(results))
            self.assertLess(check(folder / "facts_test.json", folder / "results.json")["parsed"]["percent"], 100)
            questions = json.loads((folder / "vqa_test_questions.json").read_text())["questions"]
            annotations = json.loads((folder / "vqa_test_annotations.json").read_text())["annotations"]
            self.assertEqual([q["question_id"] for q in questions], [a["question_id"] for a in annotations])
            self.assertTrue(all(len(a["answers"]) == 10 for a in annotations))
            pairs = folder / "vqa_test_pairs.jsonl"
            asked = [json.loads(line) for line in pairs.read_text().splitlines()]
            self.assertEqual([q["question"] for q in questions], [pair["question"] for pair in asked])
            said = [pair | {"pred_answer": pair["answer"]} for pair in asked]
            said[0]["pred_answer"] = "a dog"
            (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
            figures = answers(pairs, folder / "answers.jsonl")
            self.assertEqual(figures["all"]["answers"], len(questions))
            self.assertLess(figures["all"]["percent"], 100)
            self.assertEqual(figures[asked[-1]["type"]]["percent"], 100)


class Looks(unittest.TestCase):
    FACTS = [{"image": "a.png", "objects": [
        {"shape": "star", "color": "red", "size": "small", "x": 20.0, "y": 20.0, "radius": 10.0},
        {"shape": "ring", "color": "red", "size": "large", "x": 100.0, "y": 100.0, "radius": 20.0}]}]

    def count(self, *words):
        """Words with the patch of a 4 × 4 grid that is brightest."""
        maps = [{"text": text, "patches": [float(patch == at) for patch in range(16)]} for text, at in words]
        return looks.looks(self.FACTS, [{"image": "x/a.png", "grid": 4, "words": maps}])

    def test_hits_are_counted_by_kind_of_word(self):
        counts, chance = self.count(("a", 3), ("red", 0), ("star,", 15), ("large", 15), ("red", 14), ("ring", 0))
        self.assertEqual(counts, {"color": [2, 2], "shape": [0, 2], "size": [1, 1]})
        self.assertEqual(chance, (1 + 4) / 2 / 16)

    def test_objects_that_are_not_there_do_not_count(self):
        self.assertEqual(self.count(("blue", 0), ("star", 0)), ({}, 0))


if __name__ == "__main__":
    unittest.main()
