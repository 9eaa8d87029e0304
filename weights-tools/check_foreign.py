#!/usr/bin/env python3
"""Loads what make_foreign.py wrote into LAVIS's and mmpretrain's own modules and compares their outputs with transformers'.

Every tensor must be asked for and every one asked for be there; image features must be equal to rounding (the norm after
the vision transformer has epsilon 1e-5 there and 1e-6 in transformers, which shows in the sixth digit). What the reference
systems import beside their models and what transformers 5 no longer has is replaced by stand-ins.
"""

import argparse
import importlib
import importlib.machinery
import sys
import types
from functools import partial
from pathlib import Path

import torch
import transformers.modeling_utils
from torch import nn
from transformers import BertConfig, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

# The sizes of make_checkpoint.py's `micro`.
WIDTH, LAYERS, HEADS, INNER, IMAGE, PATCH, QUERIES, TEXT_POSITIONS, DECODER = 16, 2, 2, 24, 28, 14, 4, 40, 8
TOLERANCE = 5e-5


def module(name, path=None, **members):
    """A stand-in for a module; a package if it has a path."""
    stand_in = types.ModuleType(name)
    stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
    if path:
        stand_in.__path__ = [str(path)]
    stand_in.__dict__.update(members)
    sys.modules[name] = stand_in
    return stand_in


class PreTrainedModel(nn.Module):
    """What the reference systems' Q-Former uses of transformers 4's class."""

    def __init__(self, config=None, *_, **__):
        super().__init__()
        self.config = config

    def init_weights(self):
        pass

    def get_head_mask(self, _, layers, *__):
        return [None] * layers

    def invert_attention_mask(self, mask):
        return (1.0 - mask[:, None, None, :].float()) * -1e4

    dtype = property(lambda self: torch.float32)
    device = property(lambda self: torch.device("cpu"))


class OldTransformers:
    """transformers with the names that version 4 had, while the reference systems are imported."""

    def __enter__(self):
        utils = transformers.modeling_utils
        self.model = utils.PreTrainedModel
        utils.PreTrainedModel = PreTrainedModel
        utils.apply_chunking_to_forward = lambda forward, _, __, *inputs: forward(*inputs)
        utils.find_pruneable_heads_and_indices = utils.prune_linear_layer = None

    def __exit__(self, *_):
        transformers.modeling_utils.PreTrainedModel = self.model


def bert_config(words):
    config = BertConfig(vocab_size=words, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                        intermediate_size=INNER, max_position_embeddings=TEXT_POSITIONS, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)
    settings = dict(encoder_width=WIDTH, add_cross_attention=True, cross_attention_freq=2, query_length=QUERIES,
                    position_embedding_type="absolute", chunk_size_feed_forward=0, output_attentions=False,
                    output_hidden_states=False, use_cache=False, is_decoder=False)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def without_text(qformer):
    """As the generative models of both systems strip it."""
    qformer.cls = None
    qformer.bert.embeddings.word_embeddings = None
    qformer.bert.embeddings.position_embeddings = None
    for layer in qformer.bert.encoder.layer:
        layer.output = None
        layer.intermediate = None


def features(norm, vit, qformer, query_tokens, pixels):
    image = norm(vit(pixels))
    queries = query_tokens.expand(len(pixels), -1, -1)
    mask = torch.ones(image.shape[:2])
    output = qformer.bert(query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=mask, return_dict=True)
    return image, output.last_hidden_state


class Lavis(nn.Module):
    """`Blip2Qformer` or, without text, `Blip2OPT` without its language model."""

    def __init__(self, clone, text, words):
        super().__init__()
        module("timm")
        module("timm.models")
        module("timm.models.layers", drop_path=lambda x, *_: x, trunc_normal_=nn.init.trunc_normal_,
               to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x))
        module("timm.models.registry", register_model=lambda f: f)
        module("lavis", clone / "lavis")
        module("lavis.common", clone / "lavis/common")
        module("lavis.common.dist_utils", download_cached_file=None)
        module("lavis.models", clone / "lavis/models")
        module("lavis.models.blip2_models", clone / "lavis/models/blip2_models")
        with OldTransformers():
            eva = importlib.import_module("lavis.models.eva_vit")
            bert = importlib.import_module("lavis.models.blip2_models.Qformer")
        self.visual_encoder = eva.VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, use_mean_pooling=False, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS,
            mlp_ratio=INNER / WIDTH, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        self.ln_vision = nn.LayerNorm(WIDTH)
        self.query_tokens = nn.Parameter(torch.zeros(1, QUERIES, WIDTH))
        self.Qformer = bert.BertLMHeadModel(bert_config(words))
        if text:
            self.vision_proj, self.text_proj = nn.Linear(WIDTH, DECODER), nn.Linear(WIDTH, DECODER)
            self.itm_head = nn.Linear(WIDTH, 2)
            self.temp = nn.Parameter(torch.tensor(0.07))
        else:
            without_text(self.Qformer)
            self.opt_proj = nn.Linear(WIDTH, DECODER)

    def features(self, pixels):
        return features(self.ln_vision, self.visual_encoder, self.Qformer, self.query_tokens, pixels)


class Head(nn.Module):
    """`LinearClsHead` and `ITMHead`, as far as they have parameters."""

    def __init__(self, outputs):
        super().__init__()
        self.fc = nn.Linear(WIDTH, outputs)


class Registry:
    def register_module(self, *_, **__):
        return lambda member: member

    def build(self, _):
        return None


class Mmpretrain(nn.Module):
    """`Blip2Retrieval` or, without text, `Blip2Caption` without its language model: one block more, output before the last."""

    def __init__(self, clone, text, words):
        super().__init__()
        root = clone / "mmpretrain"
        module("mmpretrain", root)
        module("mmpretrain.registry", MODELS=Registry(), TOKENIZER=Registry())
        utils = None
        for part in ("models", "models/backbones", "models/multimodal", "models/multimodal/blip",
                     "models/multimodal/blip2", "models/utils"):
            utils = module("mmpretrain." + part.replace("/", "."), root / part)
        with OldTransformers():
            for part in ("helpers", "norm", "layer_scale", "swiglu_ffn", "attention", "embed"):
                members = importlib.import_module(f"mmpretrain.models.utils.{part}")
                utils.__dict__.update({k: v for k, v in vars(members).items() if not k.startswith("_")})
            utils.build_norm_layer = lambda settings, width: nn.LayerNorm(width, eps=settings.get("eps", 1e-5))
            beit = importlib.import_module("mmpretrain.models.backbones.beit")
            bert = importlib.import_module("mmpretrain.models.multimodal.blip2.Qformer")
        arch = dict(embed_dims=WIDTH, num_layers=LAYERS if text else LAYERS + 1, num_heads=HEADS, feedforward_channels=INNER)
        self.vision_backbone = beit.BEiTViT(
            arch=arch, img_size=IMAGE, patch_size=PATCH, out_indices=-1 if text else -2, layer_scale_init_value=0.0,
            use_abs_pos_emb=True, use_rel_pos_bias=False, final_norm=False, use_shared_rel_pos_bias=False, out_type="raw",
            norm_cfg=dict(type="LN", eps=1e-6))
        self.ln_vision_backbone = nn.LayerNorm(WIDTH)
        self.query_tokens = nn.Parameter(torch.zeros(1, QUERIES, WIDTH))
        self.multimodal_backbone = bert.BertLMHeadModel(bert_config(words))
        self.vision_neck = Head(DECODER)
        if text:
            self.text_neck, self.multimodal_head = Head(DECODER), Head(2)
            self.temp = nn.Parameter(torch.tensor(0.07))
        else:
            without_text(self.multimodal_backbone)

    def features(self, pixels):
        def vit(pixels):
            return self.vision_backbone(pixels)[0]
        return features(self.ln_vision_backbone, vit, self.multimodal_backbone, self.query_tokens, pixels)


@torch.no_grad()
def compare(file, model, reference, pixels):
    """Whether the file's tensors are those of the model, and its features those of transformers."""
    checkpoint = torch.load(file, weights_only=False)
    state = checkpoint.get("model", checkpoint.get("state_dict", checkpoint))
    model.eval().load_state_dict(state, strict=True)
    image, queries = model.features(pixels)
    expected = reference.vision_model(pixels).last_hidden_state
    query_tokens = reference.query_tokens.expand(len(pixels), -1, -1)
    output = reference.qformer(query_embeds=query_tokens, encoder_hidden_states=expected).last_hidden_state
    differences = [(image - expected).abs().max().item(), (queries - output).abs().max().item()]
    good = max(differences) < TOLERANCE
    print(f"{file.name}: {len(state)} tensors; largest difference {differences[0]:.1e} (ViT), {differences[1]:.1e} (Q-Former)"
          f"{'' if good else ': NOT EQUAL'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="tests/data/convert")
    parser.add_argument("--lavis", type=Path, help="a clone of salesforce/LAVIS")
    parser.add_argument("--mmpretrain", type=Path, help="a clone of open-mmlab/mmpretrain")
    args = parser.parse_args()
    pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    good = True
    for name, model_class, text in (("micro-itm", Blip2ForImageTextRetrieval, True),
                                    ("micro", Blip2ForConditionalGeneration, False)):
        reference = model_class.from_pretrained(args.folder / name, dtype=torch.float32).eval()
        words = reference.config.qformer_config.vocab_size
        kind = "retrieval" if text else "caption"
        if args.lavis:
            good &= compare(args.folder / f"lavis_{kind}.pth", Lavis(args.lavis, text, words), reference, pixels)
        if args.mmpretrain:
            file = args.folder / f"mmpretrain_{kind}.pth"
            good &= compare(file, Mmpretrain(args.mmpretrain, text, words), reference, pixels)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
