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
from .pool import Batch, Pool, facts_of, make_block, mirrored, pixel_values, scene_of
from .seen import Seen


class Facts(unittest.TestCase):
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
            for text in (matching.false_caption(rng, scene), matching.false_relation(rng, scene)):
                verdict = text and language.check_caption(scene, text)
                self.assertTrue(verdict is None or (verdict.parsed and not verdict.true), text)

    def test_every_caption_has_its_claims_and_form(self):
        a = world.Object("circle", "red", "large", 30, 30, 22)
        b = world.Object("star", "blue", "small", 90, 40, 13)
        for caption, form in zip(language.captions(world.Scene((a, b)), np.random.default_rng(0)), (0, 0, 10, 13, None)):
            stated = language.parse_caption(caption)
            names = [(0, 0), (4, 5)] if "circle" in caption.split("star")[0] else [(4, 5), (0, 0)]
            sizes = [1, 0] if "large" in caption else [2, 2]
            expected = [[shape, color, size] for (shape, color), size in zip(names, sizes)] + 2 * [[8, 10, 2]]
            self.assertEqual(matching.claims_of(stated).tolist(), expected, caption)
            self.assertTrue(matching.form_of(stated) == form or (form is None and 1 <= matching.form_of(stated) <= 4), caption)

    def test_directions_are_those_that_captions_state(self):
        facts, rows, expected = [], [], []
        for i in range(40):
            scene = world.sample_scene(0, "val", i)
            if len(scene.objects) > 1:
                a, b = scene.objects[-1], scene.objects[0]
                facts.append(facts_of(scene))
                rows.append([len(scene.objects) - 1, 0])
                truths = [language.holds(a, relation, b) for relation in ("left of", "above")]
                expected.append([0 if t is None else 1 + t for t in truths])
        found = models.PairAuxiliary.directions(torch.from_numpy(np.stack(facts)), torch.tensor(rows))
        self.assertEqual(found.tolist(), expected)

    def test_a_pair_scores_as_in_transformers_and_its_facts_agree_with_its_truth(self):
        model = models.build_retrieval(len(self.bert)).eval()
        text = matching.make_texts(self.bert, self.batch.facts, np.random.default_rng(0))
        pixels = pixel_values(self.batch.pixels)
        n = len(pixels)
        pick = torch.arange(n * (1 + matching.NEAR)).view(-1, n).t()
        ids, mask = text["text_ids"][pick], text["text_mask"][pick]
        with torch.no_grad():
            states = matching.pair_states(model, model.vision_model(pixel_values=pixels).last_hidden_state, ids, mask)
            mine = matching.itm_of_states(model, states[-1]).view(n, -1, 2)
            for j in range(pick.shape[1]):
                theirs = model(
                    pixel_values=pixels, input_ids=ids[:, j], attention_mask=mask[:, j], use_image_text_matching_head=True
                ).logits_per_image
                torch.testing.assert_close(mine[:, j], theirs, atol=1e-5, rtol=1e-4)
        self.assertTrue(text["true"].gather(1, pick)[:, 0].all() and not text["true"].gather(1, pick)[:, 1:].any())

    def test_tokens_of_the_pool_are_those_of_the_encoder(self):
        model = models.build_retrieval(len(self.bert)).eval().vision_model
        with tempfile.TemporaryDirectory() as folder:
            pool = Pool(pathlib.Path(folder), "val", 5)
            rows, flip = pool.choose(0, 4, 0)
            flip[:2] = [True, False]
            seen = Seen(model, pool, pathlib.Path(folder)).take(rows, flip)
            batch = pool.take(rows)
            facts = pool.facts(rows, flip)
        for i, turned in enumerate(flip):
            arrays = [a[i : i + 1] for a in (batch.pixels, batch.owners, batch.facts)]
            pixels, _, expected = mirrored(*arrays) if turned else arrays
            with torch.no_grad():
                tokens = model(pixel_values=pixel_values(pixels)).last_hidden_state
            torch.testing.assert_close(seen[i : i + 1].float(), tokens, atol=0.1, rtol=0.05)
            np.testing.assert_allclose(facts[i : i + 1], expected, atol=1e-4)

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
