"""Run with `python -m unittest train.test_train` in weights-tools (needs torch and transformers; under a minute on one core)."""

import argparse
import pathlib
import tempfile
import unittest

import numpy as np
import torch
from torch import nn

from scenes import language, world

from . import fit, loop, matching, models, texts
from .pool import Batch, facts_of, make_block, mirrored, scene_of


class Pool(unittest.TestCase):
    def test_facts_keep_what_language_needs(self):
        for i in range(50):
            scene = world.sample_scene(0, "val", i)
            back = scene_of(facts_of(scene))
            for caption in language.captions(scene):
                self.assertTrue(language.check_caption(back, caption).true)

    def test_mirrored_twice_is_the_same_and_once_exchanges_left_and_right(self):
        block = make_block(0, "val", 0, 16)
        arrays = [block[k] for k in ("pixels", "owners", "facts")]
        once = mirrored(*arrays)
        twice = mirrored(*once)
        for a, b in zip(arrays, twice):
            np.testing.assert_allclose(a, b, atol=1e-4)
        for facts in once[2]:
            x = [o.x for o in scene_of(facts).objects]
            self.assertEqual(x, sorted(x))
        for facts, owners in zip(once[2], once[1]):
            self.assertEqual(set(np.unique(owners)) - {-1}, set(range(len(scene_of(facts).objects))))


class Models(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.vocabulary, cls.bert = texts.load_tokenizers(pathlib.Path(cls.folder.name))
        cls.modules = fit.build_modules(argparse.Namespace(seed=0), cls.vocabulary)
        cls.batch = Batch(**make_block(0, "val", 0, 6))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_words_are_single_tokens(self):
        for word in (*world.SHAPES, *world.COLORS, *world.SIZES, "yes", "no", *"01234"):
            self.assertEqual(len(self.vocabulary(" " + word, add_special_tokens=False)["input_ids"]), 1, word)
        ids = self.vocabulary("a red circle")["input_ids"]
        self.assertEqual(ids[0], texts.BOS)
        self.assertEqual(self.vocabulary.convert_tokens_to_ids("<image>"), len(self.vocabulary) - 1)
        self.assertEqual(len(self.vocabulary) % 8, 0)

    def test_both_models_fit_into_nine_megabytes(self):
        count = models.parameter_count(self.modules["model"]) + models.parameter_count(models.build_retrieval(len(self.bert)))
        self.assertLess(2 * count, 8.9e6)

    def test_packed_texts_give_the_loss_of_single_texts(self):
        device = loop.device()
        model = self.modules["model"].eval()
        text = texts.packed_texts(self.vocabulary, self.batch.facts, np.random.default_rng(0), fit.TEXT_LENGTH)
        text = {k: v.to(device) for k, v in text.items()}
        pixels, _, _ = fit.tensors(self.batch, device)
        with torch.no_grad():
            packed, _ = fit.language_loss(model, fit.see_images(model, pixels)[1], text)
            total = weights = 0.0
            for row in range(len(pixels)):
                for segment in range(1, int(text["segments"][row].max()) + 1):
                    mine = text["segments"][row] == segment
                    if not mine.any():
                        continue
                    image = torch.full((models.NUM_QUERY_TOKENS,), model.config.image_token_index, device=device)
                    ids = torch.cat([image, text["ids"][row][mine]])[None]
                    out = model(pixel_values=pixels[row : row + 1], input_ids=ids, attention_mask=torch.ones_like(ids))
                    logits, labels = out.logits[0, models.NUM_QUERY_TOKENS :], text["labels"][row][mine]
                    learned, weight = labels != texts.IGNORED, text["weights"][row][mine]
                    loss = nn.functional.cross_entropy(logits[learned], labels[learned], reduction="none")
                    total += float((loss * weight[learned]).sum())
                    weights += float(weight[learned].sum())
        self.assertAlmostEqual(float(packed), total / weights, places=4)

    def test_false_captions_are_false(self):
        rng = np.random.default_rng(0)
        for i in range(100):
            scene = world.sample_scene(0, "val", i)
            verdict = language.check_caption(scene, matching.false_caption(rng, scene))
            self.assertTrue(verdict.parsed and not verdict.true)

    def test_training_resumes_where_it_stopped(self):
        def trainer(steps):
            torch.manual_seed(1)
            modules = nn.ModuleDict({"model": nn.Linear(3, 1)})
            path = pathlib.Path(self.folder.name) / "line.pt"
            return loop.Trainer(modules, path, learning_rate=0.1, steps=steps, warmup=1, decay=2, batch_size=4), modules

        def run(trainer, modules):
            def loss_of(batch):
                return modules["model"](batch).square().mean(), {}

            batch = lambda step: torch.full((4, 3), float(step % 3))  # noqa: E731
            trainer.run(batch, loss_of, dict, workers=0, log_every=100, evaluate_every=100, save_every=3)

        path = pathlib.Path(self.folder.name) / "line.pt"
        first, modules = trainer(9)
        run(first, modules)
        path.unlink()
        whole = modules["model"].weight.clone()
        part, modules = trainer(9)
        part.steps, part.decay = 6, 0
        run(part, modules)
        rest, modules = trainer(9)
        self.assertEqual(rest.step, 6)
        run(rest, modules)
        torch.testing.assert_close(whole, modules["model"].weight)


if __name__ == "__main__":
    unittest.main()
