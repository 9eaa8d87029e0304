"""The two demo models, as transformers' own Blip2 classes, and the heads that only training needs.

Sizes keep both models with their tokenizers below 9 MB in fp16. Widths are multiples of 8.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

from scenes import world
from scenes.language import RELATION_GAP

from .pool import IMAGE_SIZE, MAX_OBJECTS, PATCH_SIZE, SHAPE, SIZE, X, Y

WIDTH = 128
HEADS = 4
NUM_QUERY_TOKENS = 8
RETRIEVAL_WIDTH = 64
# What a caption may say beside its objects: nothing, a relation, a place, an order, a number (matching.form_of).
FORMS = 16


def vision_config(layers: int = 5) -> Blip2VisionConfig:
    """ReLU, because its gradient is several times cheaper on a CPU; initialised with 0.02 (the class default is 1e-10)."""
    return Blip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="relu",
        initializer_range=0.02,
    )


def qformer_config(vocab_size: int = 8, with_text: bool = False) -> Blip2QFormerConfig:
    """Three layers, cross-attention in the first and the third, as published (every second layer)."""
    return Blip2QFormerConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH if not with_text else 2 * WIDTH,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
        cross_attention_frequency=2,
        encoder_hidden_size=WIDTH,
        use_qformer_text_input=with_text,
    )


def text_config(vocab_size: int, newline_id: int) -> OPTConfig:
    """OPT as published, small. Generation ends with a newline, as in the published checkpoints."""
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=96,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.02,
        bos_token_id=2,
        pad_token_id=1,
        eos_token_id=newline_id,
        tie_word_embeddings=True,
    )


def build_generative(vocab_size: int, newline_id: int, image_token_id: int) -> Blip2ForConditionalGeneration:
    """The model for captions and answers, freshly initialised."""
    config = Blip2Config(
        vision_config=vision_config().to_dict(),
        qformer_config=qformer_config().to_dict(),
        text_config=text_config(vocab_size, newline_id).to_dict(),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=image_token_id,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = Blip2ForConditionalGeneration(config)
    # transformers starts the queries at zero, where they would all stay equal.
    nn.init.normal_(model.query_tokens, std=0.02)
    return model


def build_retrieval(vocab_size: int) -> Blip2ForImageTextRetrieval:
    """The model for ITC and ITM, freshly initialised."""
    config = Blip2Config(
        vision_config=vision_config().to_dict(),
        qformer_config=qformer_config(vocab_size, with_text=True).to_dict(),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_text_hidden_size=RETRIEVAL_WIDTH,
        attn_implementation="eager",
    )
    model = Blip2ForImageTextRetrieval(config)
    nn.init.normal_(model.query_tokens, std=0.02)
    return model


class Attributes(nn.Module):
    """Reads shape, colour, size and number from the top (each with "none" as its last class) and further numbers from a vector."""

    def __init__(self, further: int):
        super().__init__()
        self.sizes = [len(world.SHAPES) + 1, len(world.COLORS) + 1, len(world.SIZES) + 1, MAX_OBJECTS + 1, further]
        self.linear = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(x).float().split(self.sizes, dim=-1)


class Auxiliary(nn.Module):
    """Thrown away on export: what is under each patch, and which object each of the first four queries stands for.

    The first four queries are the objects from left to right, so language finds every object at a fixed place.
    """

    def __init__(self):
        super().__init__()
        self.patch = Attributes(further=MAX_OBJECTS + 1)  # which object from the left
        self.slot = Attributes(further=2)  # x and y

    @staticmethod
    def labels(facts: torch.Tensor) -> torch.Tensor:
        """Shape, colour, size and number from the top [n, rows, 4] of facts [n, rows, 6]; the last class of each is "none"."""
        none = torch.tensor([len(world.SHAPES), len(world.COLORS), len(world.SIZES), MAX_OBJECTS], device=facts.device)
        y = torch.where(facts[..., SHAPE] >= 0, facts[..., Y], torch.inf)
        above = (y[:, None, :] < y[:, :, None]).sum(-1)
        labels = torch.cat([facts[..., : SIZE + 1].long(), above[..., None]], dim=-1)
        return torch.where(facts[..., SHAPE, None] >= 0, labels, none)

    def losses(
        self, patches: torch.Tensor, queries: torch.Tensor, owners: torch.Tensor, facts: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """patches [n, 64, WIDTH], queries [n, 8, WIDTH], owners [n, 64] int64, facts [n, 4, 6]: the loss and the hit rates."""
        rates = {}
        ranks = torch.where(owners >= 0, owners, MAX_OBJECTS)
        # A row of "none" behind the objects serves the patches without one.
        rows = self.labels(nn.functional.pad(facts, (0, 0, 0, 1), value=-1.0))
        patch_labels = rows.gather(1, ranks[..., None].expand(-1, -1, 4))
        seen = ranks < MAX_OBJECTS
        weight = torch.where(seen, 1.0, 0.2)
        loss = patches.new_zeros((), dtype=torch.float32)
        for i, (name, logits) in enumerate(zip(("shape", "color", "size", "height", "rank"), self.patch(patches))):
            target = patch_labels[..., i] if i < 4 else ranks
            terms = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
            loss = loss + (terms * weight).sum() / weight.sum()
            rates[f"patch_{name}"] = (logits.argmax(-1) == target)[seen].float().mean()
        slot_loss, slot_rates = self.slot_losses(queries, facts)
        return loss + slot_loss, rates | slot_rates

    def slot_losses(self, queries: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """queries [n, 8, WIDTH] against facts [n, 4, 6]."""
        return self.object_losses(self.slot, queries, facts)

    @classmethod
    def object_losses(
        cls, head: Attributes, queries: torch.Tensor, facts: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What a head reads of the objects from the first queries; `scene` is the share of scenes with every attribute right."""
        rates, loss = {}, queries.new_zeros((), dtype=torch.float32)
        labels = cls.labels(facts)
        present = facts[..., SHAPE] >= 0
        all_right = torch.ones_like(present)
        *logits, place = head(queries[:, :MAX_OBJECTS])
        for i, (name, logit) in enumerate(zip(("shape", "color", "size", "height"), logits)):
            loss = loss + nn.functional.cross_entropy(logit.flatten(0, 1), labels[..., i].flatten())
            hit = logit.argmax(-1) == labels[..., i]
            rates[f"slot_{name}"] = hit[present].float().mean()
            if name != "height":
                all_right &= hit
        target = facts[..., [X, Y]] / world.CANVAS
        loss = loss + 10 * (place[present] - target[present]).square().mean()
        rates["scene"] = all_right.all(dim=1).float().mean()
        return loss, rates


class PairAuxiliary(nn.Module):
    """Thrown away on export: teaches ITM to see, to read, to find and to compare, a layer for each.

    After the first layer, query k knows the image's k-th object. After the second, it knows the text's k-th object, and which of
    the text's objects its own one is; the fifth query knows what the text says beside its objects. At the end, query k knows which
    of its object's attributes agree with the text's k-th object (where the text lists all objects, and so from left to right); and
    where the text is about two objects of the image, the sixth query knows where the first is of the second: left, right or
    neither, above, below or neither.
    """

    def __init__(self):
        super().__init__()
        self.sizes = [len(world.SHAPES) + 1, len(world.COLORS) + 1, len(world.SIZES) + 1]
        self.claims = nn.Linear(WIDTH, sum(self.sizes))
        self.form = nn.Linear(WIDTH, FORMS)
        self.agree = nn.Linear(WIDTH, 3)
        self.seen = Attributes(further=2)
        self.named = nn.Linear(WIDTH, MAX_OBJECTS + 1)
        self.where = nn.Linear(WIDTH, 6)

    @staticmethod
    def directions(facts: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Along x and y [n, 2], whether the first of two objects (rows [n, 2] of facts [n, 4, 6]) is before (2), behind (1) or neither."""
        first, second = facts[..., [X, Y]].gather(1, rows[..., None].expand(-1, -1, 2)).unbind(1)
        distance = second - first
        return torch.where(distance.abs() < RELATION_GAP, 0, 1 + (distance > 0).long())

    def losses(
        self, states: list[torch.Tensor], facts: torch.Tensor, claims: torch.Tensor, form: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Hidden states of pairs, the facts of their images [n, 4, 6], and the claims [n, 4, 3] and forms [n] of their texts."""
        read, found = states[1], states[-1][:, :MAX_OBJECTS]
        objects = Auxiliary.labels(facts)[..., :3]
        none = torch.tensor([s - 1 for s in self.sizes], device=facts.device)
        loss, rates = Auxiliary.object_losses(self.seen, states[0], facts)
        loss = loss + nn.functional.cross_entropy(self.form(read[:, MAX_OBJECTS]).float(), form)
        all_right = torch.ones_like(claims[..., 0], dtype=torch.bool)
        for i, logits in enumerate(self.claims(read[:, :MAX_OBJECTS]).float().split(self.sizes, dim=-1)):
            loss = loss + nn.functional.cross_entropy(logits.flatten(0, 1), claims[..., i].flatten())
            hit = logits.argmax(-1) == claims[..., i]
            all_right &= hit
        # An attribute agrees if it is the same or, of a named object, left unsaid. [n, claim, object, 3]
        unsaid = (claims == none) & (claims[..., :1] != none[0])
        fits = (claims[:, :, None] == objects[:, None]) | unsaid[:, :, None]
        same = fits.diagonal(dim1=1, dim2=2).transpose(1, 2)
        agree = self.agree(found).float()
        # Nothing to compare where neither has an object, and where the text does not list all objects.
        listed = ((form == 0) | (form >= 10))[:, None] & ((claims[..., 0] != none[0]) | (objects[..., 0] != none[0]))
        loss = loss + nn.functional.binary_cross_entropy_with_logits(agree[listed], same[listed].float())
        is_named = fits.all(-1) & (claims[..., :1] != none[0])
        target = torch.where(is_named.any(1), is_named.float().argmax(1), MAX_OBJECTS)
        named = self.named(read[:, :MAX_OBJECTS]).float()
        present = objects[..., 0] != none[0]
        loss = loss + nn.functional.cross_entropy(named[present], target[present])
        two = is_named[:, :2].any(2).all(1) & (form >= 1) & (form <= 4)
        direction = self.directions(facts[two], is_named[two, :2].float().argmax(2))
        where = self.where(states[-1][:, MAX_OBJECTS + 1][two]).float().view(-1, 2, 3)
        # The sum's gradient stays defined when no text of the batch is about two objects.
        loss = loss + nn.functional.cross_entropy(where.flatten(0, 1), direction.flatten(), reduction="sum") / max(1, 2 * len(where))
        return loss, {
            "seen": rates["scene"],
            "where": (where.argmax(-1) == direction).float().mean(),
            "pair": loss,
            "claims": all_right.all(1).float().mean(),
            "agree": ((agree > 0) == same)[listed].float().mean(),
            "named": (named.argmax(-1) == target)[present].float().mean(),
        }


def parameter_count(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
