#!/usr/bin/env python3
"""Writes a checkpoint in the Hugging Face layout as LAVIS or mmpretrain would have saved it, to test `convert` with.

The names are those of the reference systems' modules, read from their sources (LAVIS: `blip2_opt.py`, `blip2_qformer.py`,
`eva_vit.py`, `Qformer.py`, `runner_base.py` for what is saved; mmpretrain: `blip2_caption.py`, `blip2_retriever.py`,
`beit.py`, `vision_transformer.py`, `linear_head.py`, `itm_head.py`). README.md says how to run this.
"""

import argparse
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file

VISION, QFORMER, LANGUAGE = "vision_model.", "qformer.", "language_model."


def eva_names(tensors, layers, mmpretrain):
    """The vision transformer without its last norm: names without prefix; q and v biases apart, keys without."""
    rename = [
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.projection" if mmpretrain else "patch_embed.proj"),
        ("encoder.layers", "layers" if mmpretrain else "blocks"),
        ("layer_norm", "ln" if mmpretrain else "norm"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("mlp.fc1", "ffn.layers.0.0" if mmpretrain else "mlp.fc1"),
        ("mlp.fc2", "ffn.layers.1" if mmpretrain else "mlp.fc2"),
    ]
    result = OrderedDict()
    for name, tensor in tensors.items():
        if not name.startswith(VISION) or "post_layernorm" in name:
            continue
        name = name.removeprefix(VISION)
        for theirs, ours in rename:
            name = name.replace(theirs, ours)
        if name.endswith("attn.qkv.bias"):
            q, k, v = tensor.chunk(3)
            assert not k.any(), "keys have no bias in the reference systems"
            result[name.replace("qkv.bias", "q_bias")] = q.clone()
            result[name.replace("qkv.bias", "v_bias")] = v.clone()
        else:
            result[name] = tensor
    return result


def surplus_block(vision, layers, mmpretrain):
    """One block more than the model runs, as EVA-CLIP's file and mmpretrain's caption checkpoint have it."""
    blocks = "layers" if mmpretrain else "blocks"
    first, extra = f"{blocks}.0.", f"{blocks}.{layers}."
    return {extra + name.removeprefix(first): tensor + 1 for name, tensor in vision.items() if name.startswith(first)}


def qformer_names(tensors, prefix):
    """The Q-Former as a BertLMHeadModel."""
    result = OrderedDict()
    for name, tensor in tensors.items():
        if name.startswith("embeddings."):
            result[f"{prefix}bert.{name}"] = tensor
        elif name.startswith(QFORMER):
            name = name.removeprefix(QFORMER)
            name = name.replace("attention.attention.", "attention.self.")
            name = "embeddings.LayerNorm." + name.removeprefix("layernorm.") if name.startswith("layernorm.") else name
            result[f"{prefix}bert.{name}"] = tensor
    return result


def prediction_head(tensors, prefix, width):
    """The Q-Former's word predictions, which retrieval checkpoints keep; the decoder is the word embedding itself."""
    words = tensors["embeddings.word_embeddings.weight"]
    return {
        f"{prefix}cls.predictions.bias": words[:, 0].clone(),
        f"{prefix}cls.predictions.transform.dense.weight": torch.eye(width),
        f"{prefix}cls.predictions.transform.dense.bias": torch.zeros(width),
        f"{prefix}cls.predictions.transform.LayerNorm.weight": torch.ones(width),
        f"{prefix}cls.predictions.transform.LayerNorm.bias": torch.zeros(width),
        f"{prefix}cls.predictions.decoder.weight": words,
        f"{prefix}cls.predictions.decoder.bias": words[:, 0].clone(),
    }


def renamed(tensors, pairs):
    """Tensors whose names begin with the first of a pair, with the second instead."""
    return {ours + name.removeprefix(theirs): tensor
            for theirs, ours in pairs for name, tensor in tensors.items() if name.startswith(theirs)}


def foreign(tensors, config, mmpretrain, vision, surplus):
    """A state dict without the language model; with the vision transformer if `vision`."""
    retrieval = "itm_head.weight" in tensors
    layers = config["vision_config"]["num_hidden_layers"]
    result = OrderedDict(query_tokens=tensors["query_tokens"])
    if vision:
        vit = eva_names(tensors, layers, mmpretrain)
        if surplus:
            vit.update(surplus_block(vit, layers, mmpretrain))
        result.update({("vision_backbone." if mmpretrain else "visual_encoder.") + name: t for name, t in vit.items()})
    prefix = "multimodal_backbone." if mmpretrain else "Qformer."
    result.update(qformer_names(tensors, prefix))
    positions = config["qformer_config"]["max_position_embeddings"]
    result[f"{prefix}bert.embeddings.position_ids"] = torch.arange(positions).expand((1, -1))
    if retrieval:
        result["temp"] = torch.tensor(0.07)
        result.update(prediction_head(tensors, prefix, config["qformer_config"]["hidden_size"]))
    pairs = [("vision_model.post_layernorm.", "ln_vision_backbone." if mmpretrain else "ln_vision.")]
    if mmpretrain:
        pairs += [("language_projection.", "vision_neck.fc."), ("vision_projection.", "vision_neck.fc."),
                  ("text_projection.", "text_neck.fc."), ("itm_head.", "multimodal_head.fc.")]
    else:
        language = "t5_proj." if config["text_config"]["model_type"] == "t5" else "opt_proj."
        pairs += [("language_projection.", language), ("vision_projection.", "vision_proj."),
                  ("text_projection.", "text_proj."), ("itm_head.", "itm_head.")]
    result.update(renamed(tensors, pairs))
    return result


def with_metadata(state):
    """A state dict as `module.state_dict()` gives it: with versions in an attribute."""
    state = OrderedDict(state)
    state._metadata = OrderedDict([("", {"version": 1})])
    return state


def lavis_container(state):
    """What LAVIS's runner saves: model, optimizer, settings."""
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    return {"model": state, "optimizer": optimizer, "config": {"run": {"amp": True}}, "scaler": None, "epoch": 4}


def mmpretrain_container(state):
    """What mmengine saves, as far as published files keep it."""
    return {"meta": {"mmengine_version": "0.7.3", "epoch": 0, "seed": 1}, "state_dict": state}


def write_language_model(tensors, model, folder):
    """OPT alone as facebook/opt-* has it: pytorch_model.bin with names from `decoder.`, its configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = LANGUAGE + "model."
    opt = OrderedDict((name.removeprefix(prefix), t) for name, t in tensors.items() if name.startswith(prefix))
    torch.save(opt, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = json.loads((model / "config.json").read_text())["text_config"]
    config.update(architectures=["OPTForCausalLM"], eos_token_id=2)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(model / file, folder / file)


def write_t5(tensors, model, folder):
    """Flan-T5 alone as google/flan-t5-* has it: pytorch_model.bin with one table under three names, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    t5 = OrderedDict((name.removeprefix(LANGUAGE), t) for name, t in tensors.items() if name.startswith(LANGUAGE))
    t5.update({f"{stack}.embed_tokens.weight": t5["shared.weight"] for stack in ("encoder", "decoder")})
    torch.save(t5, folder / "pytorch_model.bin")
    config = json.loads((model / "config.json").read_text())["text_config"]
    config.update(architectures=["T5ForConditionalGeneration"])
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / file, folder / file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder in the Hugging Face layout (one file of weights)")
    parser.add_argument("folder", type=Path, help="where the files go")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    tensors = load_file(args.model / "model.safetensors")
    layers = config["vision_config"]["num_hidden_layers"]
    args.folder.mkdir(parents=True, exist_ok=True)
    old = {"_use_new_zipfile_serialization": False}

    def state(mmpretrain, vision, surplus=False):
        return with_metadata(foreign(tensors, config, mmpretrain, vision, surplus))

    if "itm_head.weight" in tensors:
        torch.save(lavis_container(state(False, False)), args.folder / "lavis_stage1.pth")
        torch.save(state(False, True), args.folder / "lavis_retrieval.pth", **old)
        torch.save(mmpretrain_container(state(True, True)), args.folder / "mmpretrain_retrieval.pth")
        return
    if config["text_config"]["model_type"] == "t5":
        torch.save(lavis_container(state(False, False)), args.folder / "lavis_flant5.pth")
        write_t5(tensors, args.model, args.folder / "t5")
        return
    torch.save(lavis_container(state(False, False)), args.folder / "lavis_pretrained.pth")
    full = OrderedDict((name, t.float() if t.is_floating_point() else t) for name, t in state(False, True).items())
    torch.save({"model": full}, args.folder / "lavis_caption.pth", **old)
    torch.save(mmpretrain_container(state(True, True, surplus=True)), args.folder / "mmpretrain_caption.pth")
    vit = eva_names(tensors, layers, False)
    vit.update(surplus_block(vit, layers, False))
    vit.update({"norm.weight": torch.ones(2), "head.weight": torch.ones(2), "mask_token": torch.ones(2)})
    torch.save(vit, args.folder / "eva_vit.pth")
    write_language_model(tensors, args.model, args.folder / "opt")


if __name__ == "__main__":
    main()
