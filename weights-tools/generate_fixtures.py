"""Writes tests/data/generate/*.json: runs of transformers' `generate` for the Rust tests to replay.

The language model is a table: the logits after a sequence are `by_last[last id] + by_position[i]`, `i`
the number of generated tokens. The tables are whole numbers; a logit is their sum times `scale`, a power
of two, so that it is the same float32 everywhere. Greedy and beam search run through `generate`; for
sampling the distribution after transformers' warpers is stored, as draws cannot be compared.

    python weights-tools/generate_fixtures.py [--out tests/data/generate]

Needs torch and transformers 5.23.
"""

import argparse
import contextlib
import itertools
import json
import pathlib

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation import logits_process as processors
from transformers.modeling_outputs import CausalLMOutputWithPast

SCALE = 1 / 128
VOCABULARY = 29
POSITIONS = 24
PAD, EOS, OTHER_EOS = 1, 2, 7


def make_table(seed, spread, eos_bias):
    """Logits as whole numbers; `eos_bias` makes the end tokens likelier or rarer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, width):
        return (torch.randn(rows, VOCABULARY, generator=generator) * width / SCALE).round().int()

    by_last, by_position = draw(VOCABULARY, spread), draw(POSITIONS, spread / 2)
    for token in (EOS, OTHER_EOS):
        by_position[:, token] += int(eos_bias / SCALE)
    return {"by_last": by_last.tolist(), "by_position": by_position.tolist()}


TABLES = [make_table(1, 1.5, 0.0), make_table(2, 0.8, 0.7), make_table(3, 2.5, -1.0), make_table(4, 1.2, 1.8)]


class TableModel(PreTrainedModel, GenerationMixin):
    """A language model without weights or cache: `forward` looks logits up."""

    config_class = PreTrainedConfig
    _supports_cache_class = False

    def __init__(self, config, table):
        super().__init__(config)
        self.by_last = torch.tensor(table["by_last"], dtype=torch.float32)
        self.by_position = torch.tensor(table["by_position"], dtype=torch.float32)
        # A module needs a parameter for `generate` to find its device; it also embeds ids as one-hot rows.
        self.embedding = torch.nn.Embedding(VOCABULARY, VOCABULARY)
        self.embedding.weight.data = torch.eye(VOCABULARY)
        self.prompt_length = 0

    def get_input_embeddings(self):
        return self.embedding

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, attention_mask=None, **_):
        if inputs_embeds is not None:  # the prompt came as embeddings: the ids are only what was generated
            prompt = inputs_embeds.argmax(-1)
            input_ids = torch.cat([prompt, input_ids], dim=1)
        return {"input_ids": input_ids}

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, return_dict=True, **_):
        position = min(input_ids.shape[1] - self.prompt_length, POSITIONS - 1)
        logits = (self.by_last[input_ids[:, -1]] + self.by_position[position]) * SCALE
        return CausalLMOutputWithPast(logits=logits[:, None])


def make_models():
    config = PreTrainedConfig(vocab_size=VOCABULARY, num_hidden_layers=1)
    config.is_encoder_decoder = False
    return [TableModel(config, table).eval() for table in TABLES]


def run(model, prompts, as_embeddings, options):
    """One dict a prompt: what `generate` returns for it, padding cut."""
    config = GenerationConfig(
        do_sample=False,
        pad_token_id=PAD,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ids = torch.tensor(prompts)
    model.prompt_length = ids.shape[1]
    inputs = {"inputs_embeds": model.embedding(ids)} if as_embeddings else {"input_ids": ids}
    with torch.no_grad():
        out = model.generate(
            generation_config=config, attention_mask=torch.ones_like(ids), **inputs
        )
    start = 0 if as_embeddings else ids.shape[1]
    beams, texts = options.get("num_beams", 1), options.get("num_return_sequences", 1)
    eos = options.get("eos_token_id", [])
    eos = eos if isinstance(eos, list) else [eos]

    def cut(row):
        """Up to and with the first end token."""
        tokens = row[start:].tolist()
        return next((tokens[: i + 1] for i, t in enumerate(tokens) if t in eos), tokens)

    sequences = [cut(row) for row in out.sequences]
    if beams > 1:
        scores = out.sequences_scores.tolist()
    else:
        # The sum of log-probabilities after the processors.
        transition = model.compute_transition_scores(
            out.sequences[:, start:] if as_embeddings else out.sequences, out.scores, normalize_logits=True
        )
        scores = [float(row[: len(s)].sum()) for row, s in zip(transition, sequences)]
    grouped = [
        {
            "tokens": sequences[i : i + texts],
            "scores": [round(s, 6) for s in scores[i : i + texts]],
            # How many steps the search took; in a batch the longest decides, so nothing is known of one.
            "steps": len(out.scores) if len(prompts) == 1 else None,
        }
        for i in range(0, len(sequences), texts)
    ]
    return grouped


def option_grid():
    """The options tried: every beam count with every length penalty and stop rule, and single changes."""
    common = {"max_new_tokens": 12, "eos_token_id": EOS}
    for beams, penalty, early in itertools.product(
        (2, 3, 5, 10), (-1.0, 0.0, 1.0, 2.0), (True, False, "never")
    ):
        yield {**common, "num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    changes = [
        {},
        {"repetition_penalty": 1.15},
        {"repetition_penalty": 0.8},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 5},
        {"min_new_tokens": 12},
        {"eos_token_id": [EOS, OTHER_EOS]},
        {"eos_token_id": [EOS, OTHER_EOS, 11], "min_new_tokens": 3, "repetition_penalty": 1.3},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 20, "repetition_penalty": 1.15, "no_repeat_ngram_size": 2, "min_new_tokens": 8},
        {"suppress_tokens": [3, 4, 5]},
    ]
    for change, beams in itertools.product(changes, (1, 2, 3, 5, 10)):
        yield {**common, "num_beams": beams, **change}
    for beams, texts, penalty in ((2, 2, 1.0), (3, 2, 0.0), (5, 5, 1.0), (5, 3, -1.0), (10, 10, 2.0), (10, 4, 0.6)):
        for early in (True, False, "never"):
            yield {
                **common,
                "num_beams": beams,
                "num_return_sequences": texts,
                "length_penalty": penalty,
                "early_stopping": early,
            }
    yield {"max_new_tokens": 9, "num_beams": 3}  # no end token at all
    yield {"max_new_tokens": 9, "num_beams": 1}
    rules = [
        {"sequence_bias": [[[4], 2.5], [[4, 9], -3.0], [[9, 4], 4.0], [[12], -10.0]]},
        {"sequence_bias": [[[EOS], -5.0]], "repetition_penalty": 1.2},
        {"bad_words_ids": [[4], [5, 9], [9, 3, 8], [EOS]]},
        {"bad_words_ids": [[t] for t in range(8, 20)], "no_repeat_ngram_size": 2},
        {"begin_suppress_tokens": [3, 4, 5, 6, 8, 9, 10, 11, 12, 13]},
        {"forced_eos_token_id": EOS, "max_new_tokens": 6},
        {"forced_eos_token_id": 9, "max_new_tokens": 4, "begin_suppress_tokens": [EOS]},
    ]
    for change, beams in itertools.product(rules, (1, 2, 5)):
        yield {**common, "num_beams": beams, **change}
    for change, beams in itertools.product(({}, {"begin_suppress_tokens": [4, 9, 20]}), (1, 3)):
        yield {**common, "num_beams": beams, "forced_bos_token_id": 6, **change}


@contextlib.contextmanager
def ties_to_lowest_index():
    """torch.topk leaves the order of equal values open; in here the lowest index comes first, as in Rust."""
    original = torch.topk

    def topk(values, k):
        ordered, indices = torch.sort(values, dim=-1, descending=True, stable=True)
        return torch.return_types.topk((ordered[..., :k], indices[..., :k]))

    torch.topk = topk
    try:
        yield
    finally:
        torch.topk = original


def search_cases():
    """Each option set runs on one of the models in turn, on a batch of prompts of equal length."""
    models = make_models()
    prompt_sets = [([[0, 5, 9], [0, 12, 3]], False), ([[0, 20]], True), ([[4]], False), ([[8, 8, 3, 8]], True)]
    cases, dropped = [], 0
    for number, options in enumerate(option_grid()):
        for which in (number % 4, (number + 1) % 4, (number + 2) % 4):
            prompts, as_embeddings = prompt_sets[(number // 4 + which) % 4]
            if "forced_bos_token_id" in options:  # transformers forces it after one id, the decoder's start
                prompts, as_embeddings = prompt_sets[2]
            results = run(models[which], prompts, as_embeddings, options)
            with ties_to_lowest_index():
                without_ties = run(models[which], prompts, as_embeddings, options)
            for prompt, result, same in zip(prompts, results, without_ties):
                if result["tokens"] != same["tokens"]:
                    dropped += 1
                    continue
                case = {"table": which, "prompt": prompt, "embeddings": as_embeddings, "options": options}
                cases.append({**case, **result})
    print(f"{dropped} cases dropped: there torch.topk's order of exact ties decides")
    return cases


def warp_cases():
    """Probabilities after temperature, top-k and top-p, transformers' warpers in `generate`'s order."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(12, generator=generator) * 2 for _ in range(3)]
    rows.append(torch.tensor([1.0, 0.5, 1.0, 0.5, 0.5, -1.0, 1.0, 0.5, 0.25, 0.25, -3.0, 0.5]))  # ties
    rows.append(torch.tensor([float("-inf"), 0.3, float("-inf"), 2.0, 1.9, -0.5, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]))
    rows.append(torch.tensor([0.0] * 4 + [float("-inf")] * 8))  # cumulative sums that equal 1 - top_p
    cases = []
    grid = itertools.product(range(len(rows)), (0.4, 1.0, 1.7), (0, 1, 4, 50), (0.05, 0.5, 0.9, 1.0))
    for number, (row, temperature, k, p) in enumerate(grid):
        if number % 2 and k == 50:
            continue
        scores = (rows[row][None] * 4096).round() / 4096
        if temperature != 1.0:
            scores = processors.TemperatureLogitsWarper(temperature)(None, scores)
        if k:
            scores = processors.TopKLogitsWarper(k)(None, scores)
        if p < 1.0:
            scores = processors.TopPLogitsWarper(p)(None, scores)
        probabilities = [round(x, 7) for x in scores.softmax(-1)[0].tolist()]
        cases.append({"row": row, "temperature": temperature, "top_k": k, "top_p": p, "probabilities": probabilities})
    warpers = {
        "min_p": (processors.MinPLogitsWarper, (0.02, 0.2, 0.7, 1.0)),
        "typical_p": (processors.TypicalLogitsWarper, (0.1, 0.5, 0.9, 0.99)),
        "epsilon_cutoff": (processors.EpsilonLogitsWarper, (0.01, 0.1, 0.5)),
        "eta_cutoff": (processors.EtaLogitsWarper, (0.01, 0.2, 0.9)),
    }
    single = [{name: value} for name, (_, values) in warpers.items() for value in values]
    all_four = {"min_p": 0.05, "typical_p": 0.95, "epsilon_cutoff": 0.02, "eta_cutoff": 0.3}
    for row, temperature, more in itertools.product(range(len(rows)), (0.7, 1.0), [*single, all_four]):
        scores = processors.TemperatureLogitsWarper(temperature)(None, (rows[row][None] * 4096).round() / 4096)
        k, p = (4, 0.9) if len(more) > 1 else (0, 1.0)
        if k:
            scores = processors.TopPLogitsWarper(p)(None, processors.TopKLogitsWarper(k)(None, scores))
        for name, value in more.items():
            scores = warpers[name][0](value)(None, scores)
        probabilities = [round(x, 7) for x in scores.softmax(-1)[0].tolist()]
        case = {"row": row, "temperature": temperature, "top_k": k, "top_p": p, **more}
        cases.append({**case, "probabilities": probabilities})
    # -inf is not JSON: null stands for it.
    stored = [[None if x == float("-inf") else round(x * 4096) / 4096 for x in r.tolist()] for r in rows]
    return {"rows": stored, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data/generate"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    searches = {
        "transformers": transformers.__version__,
        "scale": SCALE,
        "tables": TABLES,
        "cases": search_cases(),
    }
    for name, content in (("search.json", searches), ("warp.json", warp_cases())):
        # One case a line keeps the diffs readable.
        text = json.dumps(content, separators=(",", ":")).replace('{"table"', '\n{"table"').replace('{"row"', '\n{"row"')
        (out / name).write_text(text + "\n")
        print(f"{out / name}: {len(content['cases'])} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
