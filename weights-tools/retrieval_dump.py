#!/usr/bin/env python3
"""Dumps what transformers computes for a retrieval checkpoint (Blip2ForImageTextRetrieval): features and scores.

Everything runs in float32 on the stored (float16) weights, with plain ("eager") attention. Each text is run by itself,
so that no padding is involved. The format is described in README.md.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    Blip2TextModelWithProjection,
    Blip2VisionModelWithProjection,
)

from reference_dump import Recorder, preprocess, thin

DEFAULT_TEXTS = [
    "a photo of a cat sitting on a red chair",
    "a boat",
    "two people standing in the rain with a blue umbrella and a yellow bus parked next to the street",
    "A Dog, running: on the GRASS?",
    "hill",
]


def image_features(model, vision, pixel_values):
    """ViT tokens, Q-Former output and projected queries of one image [3, S, S]; every stage as [1, rows, width]."""
    recorder = Recorder()
    for index, layer in enumerate(model.vision_model.encoder.layers):
        recorder.watch(layer, f"vit.block.{index}")
    for index, layer in enumerate(model.qformer.encoder.layer):
        recorder.watch(layer, f"qformer.layer.{index}")
    tokens = model.vision_model(pixel_values=pixel_values[None]).last_hidden_state
    queries = model.qformer(
        query_embeds=model.query_tokens, encoder_hidden_states=tokens,
        encoder_attention_mask=torch.ones(tokens.shape[:-1], dtype=torch.long),
    ).last_hidden_state
    recorder.close()
    return {
        **recorder.values,
        "vit.output": tokens,
        "qformer.output": queries,
        "image_embeds": vision(pixel_values=pixel_values[None]).image_embeds,
    }


def text_features(model, text_model, ids):
    """Every stage of one text as [rows, width]; `text_embeds` are those of all positions, the first is the text's."""
    recorder = Recorder()
    recorder.watch(model.qformer.layernorm, "embeddings")
    for index, layer in enumerate(model.qformer.encoder.layer):
        recorder.watch(layer, f"layer.{index}")
    model.qformer(query_embeds=model.embeddings(input_ids=ids), query_length=0, attention_mask=torch.ones_like(ids))
    recorder.close()
    output = text_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return {name: value[0] for name, value in recorder.values.items()} | {
        "output": output.last_hidden_state[0], "text_embeds": output.text_embeds[0]}


def match_stages(model, pixel_values, ids):
    """The queries through every layer of the joint pass with a text, each as [queries, width]."""
    recorder = Recorder()
    for index, layer in enumerate(model.qformer.encoder.layer):
        recorder.watch(layer, f"layer.{index}")
    logits = match(model, pixel_values, ids, True)
    recorder.close()
    queries = model.query_tokens.shape[1]
    return {name: value[0, :queries] for name, value in recorder.values.items()}, logits


def match(model, pixel_values, ids, head):
    output = model(pixel_values=pixel_values[None], input_ids=ids, attention_mask=torch.ones_like(ids),
                   use_image_text_matching_head=head)
    return output.logits_per_image[0]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("out", type=Path, help="dump to write (.safetensors)")
    parser.add_argument("--image", type=Path, nargs="+", required=True)
    parser.add_argument("--text", action="append", help="may be given several times")
    parser.add_argument("--scores-only", action="store_true", help="leave out blocks and layers")
    parser.add_argument("--no-pixels", action="store_true", help="leave out the pixels: the pictures must lie beside the dump")
    parser.add_argument("--rows", type=int, help="store about so many rows of a stage (ViT tokens, queries); of texts' outputs the first")
    return parser.parse_args()


@torch.inference_mode()
def main():
    args = parse_args()
    transformers.logging.set_verbosity_error()
    texts = args.text or DEFAULT_TEXTS
    load = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = Blip2ForImageTextRetrieval.from_pretrained(args.model, **load).eval()
    vision = Blip2VisionModelWithProjection.from_pretrained(args.model, **load).eval()
    text_model = Blip2TextModelWithProjection.from_pretrained(args.model, **load).eval()
    # Where an image token is configured, transformers cuts placeholders off the ids; here there are none.
    model.config.image_token_index = None
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    image_config = json.loads((args.model / "preprocessor_config.json").read_text())
    size = model.config.vision_config.image_size

    tensors, images, per_image = {}, [], []
    for path in args.image:
        _, _, pixel_values = preprocess(path, size, image_config)
        images.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        per_image.append({"pixel_values": pixel_values[None], **image_features(model, vision, pixel_values)})
    tensors.update({name: torch.cat([stages[name] for stages in per_image]) for name in per_image[0]})

    records = []
    itc = torch.empty(len(images), len(texts))
    itm = torch.empty(len(images), len(texts), 2)
    for number, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        records.append({"text": text, "input_ids": ids[0].tolist()})
        stages = text_features(model, text_model, ids)
        tensors.update({f"text.{number}.{name}": value for name, value in stages.items()})
        for image in range(len(images)):
            pixel_values = tensors["pixel_values"][image]
            itc[image, number] = match(model, pixel_values, ids, False)[0]
            stages, itm[image, number] = match_stages(model, pixel_values, ids)
            tensors.update({f"pair.{image}.{number}.{name}": value for name, value in stages.items()})
    tensors.update({"itc": itc, "itm": itm})
    if args.scores_only:
        tensors = {name: value for name, value in tensors.items() if "layer." not in name and "block." not in name}
    row_steps = {}
    if args.rows:
        row_steps = thin(tensors, [name for name in per_image[0] if name != "pixel_values"], args.rows)
        for name in [name for name in tensors if name.startswith("pair.")]:
            pair = {name: tensors[name][None]}
            row_steps.update(thin(pair, [name], args.rows))
            tensors[name] = pair[name][0]
        tensors.update({name: tensors[name][:1] for name in tensors if name.endswith("text_embeds")})
    if args.no_pixels:
        del tensors["pixel_values"]
    for image, row in zip(images, itm.softmax(-1)[..., 1]):
        print(image["file"], [round(value, 4) for value in row.tolist()])
    print("itc", [[round(value, 4) for value in row] for row in itc.tolist()])

    dump = {
        "format_version": 1, "model": args.model.resolve().name, "image_size": size, "row_steps": row_steps,
        "images": images, "texts": records,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, args.out, metadata={"blip2_retrieval_reference": json.dumps(dump)})
    print(f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size / 1e6:.3f} MB")


if __name__ == "__main__":
    main()
