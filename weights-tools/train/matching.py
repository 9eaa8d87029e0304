"""The retrieval model: its losses (ITC, ITM, and facts of image, text and pair as a third task) and its recall."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from scenes import language, world

from . import models
from .models import FORMS
from .loop import device
from .pool import MAX_OBJECTS, pixel_values, scene_of

# ITC's softmax starts at this temperature, as published; it is learned.
TEMPERATURE = 0.07
# Nearly true captions for each image and step.
NEAR = 2
# Weights of the facts of the image, and of those of text and pair.
FACTS_WEIGHT, PAIR_WEIGHT = 0.3, 0.5


def build_modules(vocab_size: int) -> nn.ModuleDict:
    """The retrieval model, whose vision encoder stays frozen, and what only its training needs."""
    model = models.build_retrieval(vocab_size)
    model.vision_model.requires_grad_(False)
    auxiliary = models.Auxiliary()
    auxiliary.patch.requires_grad_(False)
    temperature = nn.ParameterDict({"log": nn.Parameter(torch.tensor(TEMPERATURE).log())})
    return nn.ModuleDict({"model": model, "auxiliary": auxiliary, "pair": models.PairAuxiliary(), "temperature": temperature})


def take_over(modules: nn.ModuleDict, taught: nn.ModuleDict) -> None:
    """Begins with the generative model's trained vision encoder.

    Whatever else of its Q-Former fits (queries and attention; the feed-forward widths differ) is where training starts.
    """
    source = taught["model"].state_dict()
    target = modules["model"].state_dict()
    for name in target:
        if name.startswith(("vision_model.", "qformer.", "query_tokens")) and name in source:
            if source[name].shape == target[name].shape:
                target[name] = source[name].clone()
    modules["model"].load_state_dict(target)
    modules["auxiliary"].load_state_dict(taught["auxiliary"].state_dict())


def cleaned(rng: np.random.Generator, text: str) -> str:
    """The systems clean texts differently: sometimes without the colon (LAVIS), sometimes without any punctuation (mmpretrain)."""
    way = rng.random()
    if way < 0.25:
        text = text.replace(":", "")
    if way < 0.15:
        text = text.replace(",", "")
    return text


def changed_scene(rng: np.random.Generator, scene: world.Scene) -> world.Scene:
    """The scene with one attribute of one object changed, two objects' colours or places exchanged, or an object moved, missing or added."""
    objects = list(scene.objects)
    i = int(rng.integers(len(objects)))
    a = objects[i]
    kinds = ["color", "shape", "size"]
    kinds += ["colors", "places", "missing"] if len(objects) > 1 else ["moved"]
    kinds += ["added"] if len(objects) < MAX_OBJECTS else []
    kind = language.pick(rng, kinds)
    values = {"color": world.COLORS, "shape": world.SHAPES, "size": world.SIZES}
    if kind in values:
        others = [v for v in values[kind] if v != getattr(a, kind)]
        objects[i] = dataclasses.replace(a, **{kind: language.pick(rng, others)})
    elif kind in ("colors", "places"):
        j = (i + 1 + int(rng.integers(len(objects) - 1))) % len(objects)
        b = objects[j]
        if kind == "colors":
            objects[i], objects[j] = dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color)
        else:
            objects[i], objects[j] = dataclasses.replace(a, x=b.x, y=b.y), dataclasses.replace(b, x=a.x, y=a.y)
    elif kind == "missing":
        del objects[i]
    else:
        x, y = rng.uniform(a.radius, world.CANVAS - a.radius, size=2)
        other = dataclasses.replace(a, x=float(x), y=float(y))
        if kind == "added":
            objects.append(dataclasses.replace(other, color=language.pick(rng, world.COLORS), shape=language.pick(rng, world.SHAPES)))
        else:
            objects[i] = other
    return world.Scene(tuple(sorted(objects, key=lambda o: o.x)))


def false_relation(rng: np.random.Generator, scene: world.Scene) -> str | None:
    """The opposite of a true relation, if there is one to state: only "left" and "right", "above" and "below" are wrong."""
    true = language.true_relations(scene)
    if not true:
        return None
    stated = language.parse_caption(language.pick(rng, true))
    (_, *a), (_, *b) = stated.claims
    return f"the {' '.join(a)} is {language.RELATIONS[stated.relation]} the {' '.join(b)}"


def false_caption(rng: np.random.Generator, scene: world.Scene) -> str:
    """A caption that is nearly true: a false relation, or a caption of a changed scene that is false of the real one."""
    if rng.random() < 0.1 and (text := false_relation(rng, scene)):
        return text
    while True:
        captions = language.captions(changed_scene(rng, scene), rng)
        text = captions[int(rng.integers(5))]
        if not language.check_caption(scene, text).true:
            return text


def encode(vocabulary, texts: list[str], prefix: str) -> dict[str, torch.Tensor]:
    """ids and mask, right-padded."""
    encoded = vocabulary(texts, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
    return {f"{prefix}_ids": encoded["input_ids"], f"{prefix}_mask": encoded["attention_mask"]}


def claims_of(statement: language.Statement) -> np.ndarray:
    """[MAX_OBJECTS, 3] shape, colour and size of what a caption names, in its order; "none" as models.Auxiliary.labels has it."""
    claims = np.tile([len(world.SHAPES), len(world.COLORS), len(world.SIZES)], (MAX_OBJECTS, 1))
    for row, (size, color, shape) in zip(claims, statement.claims):
        row[:] = (
            world.SHAPES.index(shape),
            world.COLORS.index(color),
            world.SIZES.index(size) if size else len(world.SIZES),
        )
    return claims


def form_of(statement: language.Statement) -> int:
    """What a caption says beside the objects, as a number below models.FORMS."""
    if statement.relation:
        return 1 + tuple(language.RELATIONS).index(statement.relation)
    if statement.place:
        return 5 + language.PLACES.index(statement.place)
    if statement.ordered:
        return 10
    return 0 if statement.number is None else 11 + statement.number


def make_texts(vocabulary, facts: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One true and NEAR false captions for each scene, what they claim, and which captions are true of which scene [scene, text]."""
    scenes = [scene_of(f) for f in facts]
    captions = [language.captions(s, rng)[int(rng.integers(5))] for s in scenes]
    for _ in range(NEAR):
        captions += [false_caption(rng, s) for s in scenes]
    stated = [language.parse_caption(c) for c in captions]
    return encode(vocabulary, [cleaned(rng, c) for c in captions], "text") | {
        "true": torch.tensor([[language.is_true(s, t) for t in stated] for s in scenes]),
        "claims": torch.from_numpy(np.stack([claims_of(t) for t in stated])),
        "form": torch.tensor([form_of(t) for t in stated]),
    }


def image_queries(model, tokens: torch.Tensor) -> torch.Tensor:
    """Query outputs [n, 8, WIDTH] from image tokens."""
    return model.qformer(
        query_embeds=model.query_tokens.expand(len(tokens), -1, -1), encoder_hidden_states=tokens
    ).last_hidden_state


def image_features(model, queries: torch.Tensor) -> torch.Tensor:
    """Normalised ITC features [n, 8, RETRIEVAL_WIDTH]."""
    return nn.functional.normalize(model.vision_projection(queries).float(), dim=-1)


def text_features(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Normalised ITC features [n, RETRIEVAL_WIDTH] of texts alone."""
    hidden = model.qformer(query_embeds=model.embeddings(input_ids=ids), query_length=0, attention_mask=mask)
    return nn.functional.normalize(model.text_projection(hidden.last_hidden_state[:, 0]).float(), dim=-1)


def itc_scores(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[image, text]: the best query's cosine."""
    return torch.einsum("iqd,td->itq", images, texts).amax(-1)


def pair_states(model, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states [n * p, 8 + length, WIDTH] of every layer for n images [n, 65, WIDTH] with p texts each [n, p, length].

    The Q-Former's own layers; but the keys and values of an image are computed once for all its texts. The last layer's are of
    the queries alone.
    """
    n, p, length = ids.shape
    width = model.query_tokens.shape[1]
    queries = model.query_tokens.expand(n * p, -1, -1)
    hidden = model.qformer.layernorm(model.embeddings(input_ids=ids.flatten(0, 1), query_embeds=queries))
    seen = nn.functional.pad(mask.flatten(0, 1), (width, 0), value=1)
    bias = torch.zeros(seen.shape, device=ids.device, dtype=tokens.dtype).masked_fill(seen == 0, -1e9)[:, None, None]
    states = []
    for layer in model.qformer.encoder.layer:
        hidden = layer.attention(hidden, attention_mask=bias)
        queries = hidden[:, :width]
        if layer.has_cross_attention:
            queries = layer.crossattention(queries.reshape(n, p * width, -1), encoder_hidden_states=tokens)
            queries = queries.view(n * p, width, -1)
        queries, text = layer.feed_forward_chunk_query(queries), hidden[:, width:]
        last = len(states) == len(model.qformer.encoder.layer) - 1
        hidden = queries if last else torch.cat([queries, layer.feed_forward_chunk(text)], dim=1)
        states.append(hidden)
    return states


def itm_logits(model, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[n, 2] for n pairs of image tokens and texts: class 1 is a match."""
    return itm_of_states(model, pair_states(model, tokens, ids[:, None], mask[:, None])[-1])


def itm_of_states(model, queries: torch.Tensor) -> torch.Tensor:
    """[n, 2] from the query outputs of n pairs: the mean over the queries."""
    return model.itm_head(queries).float().mean(dim=1)


def itc_losses(scores: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """ITC of n images and n * (1 + NEAR) texts, of which the first n are the images' own.

    The negatives of an image are all texts of the batch that are not true of it; those of a text are all images it is not true of.
    """
    n = len(scores)
    own = torch.eye(n, scores.shape[1], dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(true & ~own, -1e4)
    target = torch.arange(n, device=scores.device)
    of_text = scores[:, :n].t()
    loss = (nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(of_text, target)) / 2
    return loss, {
        "itc": loss,
        "itc_i2t": (scores.argmax(1) == target).float().mean(),
        "itc_t2i": (of_text.argmax(1) == target).float().mean(),
    }


def losses(modules: nn.ModuleDict, tokens: torch.Tensor, facts: torch.Tensor, text: dict[str, torch.Tensor]):
    """The loss of a batch of n image tokens and its figures. Texts 0..n are the true ones, the others nearly true."""
    model = modules["model"]
    n = len(tokens)
    queries = image_queries(model, tokens)
    ids, mask, true = text["text_ids"], text["text_mask"], text["true"]
    scores = itc_scores(image_features(model, queries), text_features(model, ids, mask)) / modules["temperature"]["log"].exp()
    itc, figures = itc_losses(scores, true)
    # ITM: the true text, the nearly true ones, and one of the batch that ITC takes for close.
    with torch.no_grad():
        wrong = ~true[:, :n]
        likely = scores[:, :n].masked_fill(~wrong, -1e4).softmax(dim=1) + 1e-6 * wrong
        mined = torch.multinomial(likely, 1)[:, 0]
    first = torch.arange(n, device=mined.device)
    pick = torch.stack([*(first + n * i for i in range(1 + NEAR)), mined], dim=1)
    states = pair_states(model, tokens, ids[pick], mask[pick])
    logits = itm_of_states(model, states[-1]).view(n, -1, 2)
    truth = true.gather(1, pick).long()
    weight = torch.tensor([1 / (1 + NEAR), 1.0], device=logits.device)
    itm = nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten(), weight=weight)
    slot_loss, rates = modules["auxiliary"].slot_losses(queries, facts)
    pair_loss, pair_rates = modules["pair"].losses(
        states, facts.repeat_interleave(pick.shape[1], 0), text["claims"][pick].flatten(0, 1), text["form"][pick].flatten()
    )
    hits = (logits.argmax(-1) == truth).float()
    figures |= {
        "itm": itm,
        "itm_true": hits[:, 0].mean(),
        "itm_near": hits[:, 1:-1].mean(),
        "itm_mined": hits[:, -1].mean(),
        "scene": rates["scene"],
    } | pair_rates
    return itc + itm + FACTS_WEIGHT * slot_loss + PAIR_WEIGHT * pair_loss, figures


def truth_table(scenes: list[world.Scene], captions: list[list[str]]) -> torch.Tensor:
    """[scene, text]: which of all captions are true of which scene."""
    stated = [language.parse_caption(c) for own in captions for c in own]
    return torch.tensor([[language.is_true(s, t) for t in stated] for s in scenes])


@torch.no_grad()
def recall(model, vocabulary, tokens: torch.Tensor, captions: list[list[str]], truth: torch.Tensor, top: int) -> dict[str, float]:
    """Recall@1 both ways, ITC alone and re-ranked by ITM, with what a perfect model would reach on captions this ambiguous.

    A perfect model cannot tell true pairs from each other: its expected recall is the share of own pairs among the true ones.
    `..._true` counts an answer as right when it is true, own or not.
    """
    flat = [c for own in captions for c in own]
    owner = torch.arange(len(captions)).repeat_interleave(5)
    images = torch.cat([image_features(model, image_queries(model, t)) for t in tokens.split(256)])
    encoded = encode(vocabulary, flat, "text")
    ids, mask = encoded["text_ids"].to(tokens.device), encoded["text_mask"].to(tokens.device)
    texts = torch.cat([text_features(model, i, m) for i, m in zip(ids.split(512), mask.split(512))])
    itc = itc_scores(images, texts).cpu()
    own = owner[None, :] == torch.arange(len(captions))[:, None]
    figures = {
        "i2t_ceiling": float((own.sum(1) / truth.sum(1)).mean()),
        "t2i_ceiling": float((1 / truth.sum(0)).mean()),
    }

    def note(name: str, image: torch.Tensor, text: torch.Tensor) -> None:
        figures[name] = float(own[image, text].float().mean())
        figures[f"{name}_true"] = float(truth[image, text].float().mean())

    every_image, every_text = torch.arange(len(captions)), torch.arange(len(flat))
    note("itc_i2t", every_image, itc.argmax(1))
    note("itc_t2i", itc.argmax(0), every_text)
    for name, candidates in (("i2t", itc.topk(top, dim=1).indices), ("t2i", itc.t().topk(min(top, len(captions)), dim=1).indices)):
        chosen = []
        for start in range(0, len(candidates), 64):
            these = candidates[start : start + 64]
            query = torch.arange(start, start + len(these))[:, None].expand_as(these)
            image, text = (query, these) if name == "i2t" else (these, query)
            logits = itm_logits(model, tokens[image.flatten()], ids[text.flatten()], mask[text.flatten()])[:, 1].cpu()
            score = logits.view_as(these) + itc[image, text]
            chosen.append(these.gather(1, score.argmax(1, keepdim=True))[:, 0])
        chosen = torch.cat(chosen)
        note(name, *((every_image, chosen) if name == "i2t" else (chosen, every_text)))
    return figures


@torch.no_grad()
def match_figures(model, vocabulary, tokens: torch.Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """ITM's hit rates on the five captions of each scene and on five nearly true ones, all together and by form.

    `match_pair` is the share of true captions that score above the nearly true one of the same number.
    """
    texts, scores = [], []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng([5, i])
        texts += language.captions(scene, rng) + [false_caption(rng, scene) for _ in range(5)]
    encoded = encode(vocabulary, texts, "text")
    ids, mask = encoded["text_ids"].to(tokens.device), encoded["text_mask"].to(tokens.device)
    for start in range(0, len(texts), 640):
        here = slice(start, start + 640)
        logits = itm_logits(model, tokens[start // 10 : start // 10 + 64].repeat_interleave(10, 0), ids[here], mask[here])
        scores.append(logits[:, 1] - logits[:, 0])
    scores = torch.cat(scores).view(-1, 2, 5).cpu()
    forms = torch.tensor([form_of(language.parse_caption(t)) for t in texts]).view(-1, 2, 5)
    figures = {"match_pair": float((scores[:, 0] > scores[:, 1]).float().mean())}
    groups = {"": (0, FORMS), "_list": (0, 1), "_relation": (1, 5), "_place": (5, 10), "_ordered": (10, 11), "_number": (11, FORMS)}
    for which, (name, right) in enumerate((("match_true", scores[:, 0] > 0), ("match_near", scores[:, 1] <= 0))):
        for suffix, (low, high) in groups.items():
            chosen = (forms[:, which] >= low) & (forms[:, which] < high)
            figures[name + suffix] = float(right[chosen].float().mean())
    return figures


def figures_on_pool(modules: nn.ModuleDict, vocabulary, batch) -> dict[str, float]:
    """Recall among the scenes of a batch."""
    model = modules["model"]
    scenes = [scene_of(f) for f in batch.facts]
    captions = [language.captions(s, np.random.default_rng(i)) for i, s in enumerate(scenes)]
    tokens = model.vision_model(pixel_values=pixel_values(batch.pixels, device())).last_hidden_state
    figures = recall(model, vocabulary, tokens, captions, truth_table(scenes, captions), top=8)
    return figures | match_figures(model, vocabulary, tokens, scenes)
