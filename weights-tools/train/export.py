"""Writes a trained model as a folder in the published layout: `python -m train.export STATE OUT --work DIR`.

config.json, generation_config.json, model.safetensors (fp16), tokenizer.json, preprocessor_config.json, processor_config.json.
The kind of model (captions or retrieval) follows from the state file.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
from transformers import Blip2Processor, GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from . import evaluate, models, texts
from .pool import IMAGE_SIZE, MEAN, STD

IMAGE_MEAN, IMAGE_STD = ([round(float(v), 8) for v in values] for values in (MEAN, STD))


def image_processor() -> BlipImageProcessorPil:
    """The published preprocessing at this model's size: squash by Pillow's bicubic, no crop."""
    return BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=3,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
    )


def trained_weights(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """The model's part of a state file, averaged where it was trained."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = state["modules"] | state["average"]
    return {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}


def write_preprocessor(folder: pathlib.Path) -> None:
    """preprocessor_config.json with the keys and the class name of the published files."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    config = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGE_MEAN,
        "image_processor_type": "BlipImageProcessor",
        "image_std": IMAGE_STD,
        "processor_class": "Blip2Processor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": size,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def export(state_path: pathlib.Path, folder: pathlib.Path, work: pathlib.Path) -> None:
    """Writes the folder."""
    weights = trained_weights(state_path)
    opt_vocabulary, bert_vocabulary = texts.load_tokenizers(work)
    generative = "language_projection.weight" in weights
    if generative:
        vocabulary, end = opt_vocabulary, texts.newline_id(opt_vocabulary)
        model = models.build_generative(len(vocabulary), end, vocabulary.convert_tokens_to_ids("<image>"))
        model.generation_config = GenerationConfig(
            bos_token_id=texts.BOS, eos_token_id=end, pad_token_id=texts.PAD, max_new_tokens=evaluate.CAPTION_TOKENS
        )
    else:
        vocabulary = bert_vocabulary
        model = models.build_retrieval(len(vocabulary))
    model.load_state_dict(weights)
    for layer in model.vision_model.encoder.layers:
        # The same number added to every score of a row does nothing in a softmax: a key bias is noise, and zero as published.
        width = layer.self_attn.qkv.bias.shape[0] // 3
        layer.self_attn.qkv.bias.data[width : 2 * width] = 0
    model.half().save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    Blip2Processor(image_processor(), vocabulary, num_query_tokens=models.NUM_QUERY_TOKENS).save_pretrained(folder)
    write_preprocessor(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the training folder, for the tokenizers")
    args = parser.parse_args()
    export(args.state, args.out, args.work)
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size:9d} {path.name}")


if __name__ == "__main__":
    main()
