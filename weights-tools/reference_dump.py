#!/usr/bin/env python3
"""Dumps what transformers computes, stage by stage, for a BLIP-2 checkpoint with OPT or T5; `blip2-wgpu parity` reads it.

Everything runs in float32 on the stored (float16) weights, with plain ("eager") attention. The image side (ViT and
Q-Former) runs first and leaves memory before the language model is loaded, so the published opt-2.7b peaks
at 12.8 GB. Text comes from `Blip2ForConditionalGeneration.generate` itself, which is given the image features already
computed. The format is described in README.md.
"""

import argparse
import gc
import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.image_transforms import convert_to_rgb
from transformers.modeling_outputs import BaseModelOutputWithPooling

DEFAULT_PROMPTS = ["", "a photo of", "Question: what is this? Answer:"]

# Settings of `generate` for --variants: each is run for every image and prompt.
VARIANTS = [
    {"num_beams": 1, "repetition_penalty": 1.15},
    {"num_beams": 3, "repetition_penalty": 1.15},
    {"num_beams": 1, "repetition_penalty": 0.8},
    {"num_beams": 1, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 1, "no_repeat_ngram_size": 1},
    {"num_beams": 1, "min_new_tokens": 8},
    {"num_beams": 3, "min_new_tokens": 8},
    {"num_beams": 5, "length_penalty": -1.0},
    {"num_beams": 5, "length_penalty": 0.0},
    {"num_beams": 5, "length_penalty": 2.0},
    {"num_beams": 5, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
    {"num_beams": 2},
    {"num_beams": 10},
    {"num_beams": 5, "max_new_tokens": 5},
    {"num_beams": 1, "max_new_tokens": 1},
    # What LAVIS's captioning task asks for.
    {"num_beams": 5, "min_new_tokens": 8, "max_new_tokens": 30, "repetition_penalty": 1.15, "length_penalty": 0.0},
]


class StoredVision(torch.nn.Module):
    """Stands in for the vision model: hands out features computed earlier."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, pixel_values, **_):
        return BaseModelOutputWithPooling(last_hidden_state=self.features.expand(pixel_values.shape[0], -1, -1))


class StagedModel:
    """The checkpoint's model, its parts loaded in float32 when they are needed."""

    def __init__(self, folder):
        self.folder = folder
        self.config = Blip2Config.from_pretrained(folder)
        with torch.device("meta"):
            self.model = Blip2ForConditionalGeneration._from_config(self.config, attn_implementation="eager")
        self.model.eval()
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self.weight_map = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", "pt") as file:
                self.weight_map = {name: "model.safetensors" for name in file.keys()}

    def is_t5(self):
        return self.config.text_config.model_type == "t5"

    def load(self, *prefixes):
        """Reads the tensors whose names start with one of the prefixes, as float32."""
        names = [name for name in self.weight_map if name.startswith(prefixes)]
        for shard in sorted({self.weight_map[name] for name in names}):
            with safe_open(self.folder / shard, "pt") as file:
                part = {name: file.get_tensor(name).float() for name in names if self.weight_map[name] == shard}
            self.model.load_state_dict(part, strict=False, assign=True)
        if "language_model." in prefixes:
            self.tie_embeddings()
        left = [name for name, value in self.model.named_parameters() if name.startswith(prefixes) and value.is_meta]
        if left:
            raise SystemExit(f"{self.folder}: no tensor for {left}")

    def tie_embeddings(self):
        """One table by several names. transformers 5 would tie T5's output head too, though the file has another."""
        language_model = self.model.language_model
        if not self.is_t5():
            language_model.tie_weights()
            return
        for stack in (language_model.encoder, language_model.decoder):
            stack.embed_tokens.weight = language_model.shared.weight
        if language_model.lm_head.weight.is_meta:
            language_model.lm_head.weight = language_model.shared.weight

    def unload_vision(self):
        self.model.vision_model = None
        gc.collect()


class Recorder:
    """Keeps the outputs of chosen modules during a forward pass."""

    def __init__(self):
        self.values = {}
        self.hooks = []

    def watch(self, module, name):
        def keep(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            self.values[name] = output.detach().clone()
        self.hooks.append(module.register_forward_hook(keep))

    def watch_input(self, module, name):
        def keep(_module, inputs):
            self.values[name] = inputs[0].detach().clone()
        self.hooks.append(module.register_forward_pre_hook(keep))

    def close(self):
        for hook in self.hooks:
            hook.remove()


def chosen_layers(count, args):
    """Which layers to store: all, every n-th and the last, or the first, middle and last."""
    if args.last_only:
        return sorted({0, count // 2, count - 1})
    return sorted({*range(0, count, args.every), count - 1})


def preprocess(path, size, config):
    """(RGB, resized RGB, pixel_values): EXIF orientation applied, alpha on white, Pillow's bicubic, normalised.

    The resize is Pillow's, not torchvision's (which transformers 5 takes when it is installed, and which may
    differ by one grey level), so that an engine can be compared bit by bit on the 8-bit image.
    """
    image = ImageOps.exif_transpose(Image.open(path))
    rgb = Image.fromarray(np.asarray(convert_to_rgb(image, return_numpy=True)))
    resized = np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))
    mean, std = np.array(config["image_mean"]), np.array(config["image_std"])
    pixels = ((resized / 255.0 - mean) / std).astype(np.float32).transpose(2, 0, 1)
    return np.asarray(rgb).copy(), resized.copy(), torch.from_numpy(np.ascontiguousarray(pixels))


def image_stages(staged, pixel_values, interpolate, args):
    """ViT, Q-Former and projection for one image [3, H, W]; every stage as [1, tokens, width], in order."""
    model = staged.model
    recorder = Recorder()
    vision, qformer = model.vision_model, model.qformer
    recorder.watch(vision.embeddings.patch_embedding, "vit.patch_embedding")
    recorder.watch(vision.embeddings, "vit.embeddings")
    for layer in chosen_layers(len(vision.encoder.layers), args):
        recorder.watch(vision.encoder.layers[layer], f"vit.block.{layer}")
    recorder.watch(qformer.layernorm, "qformer.embeddings")
    layers = set(chosen_layers(len(qformer.encoder.layer), args)) | {0, 1}
    for layer in sorted(layers):
        recorder.watch(qformer.encoder.layer[layer], f"qformer.layer.{layer}")
    times = {}
    started = time.time()
    features = vision(pixel_values[None], interpolate_pos_encoding=interpolate).last_hidden_state
    times["vit"] = time.time() - started
    started = time.time()
    queries = qformer(
        query_embeds=model.query_tokens, encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(features.shape[:-1], dtype=torch.long),
    ).last_hidden_state
    projected = model.language_projection(queries)
    times["qformer"] = time.time() - started
    recorder.close()
    stages = recorder.values
    stages["vit.patch_embedding"] = stages["vit.patch_embedding"].flatten(2).transpose(1, 2)
    vit = {name: value for name, value in stages.items() if name.startswith("vit.")}
    rest = {name: value for name, value in stages.items() if name.startswith("qformer.")}
    return {**vit, "vit.output": features, **rest, "qformer.output": queries, "projection": projected}, times


def prompt_stages(staged, pixel_values, interpolate, encoded, args):
    """The decoder's prefill on one image and prompt: stages as [1, tokens, width], and the logits."""
    model = staged.model
    if staged.is_t5():
        return t5_prompt_stages(staged, pixel_values, interpolate, encoded, args)
    decoder = model.language_model.model.decoder
    recorder = Recorder()
    # The decoder's first layer gets the token and visual embeddings with the positions added.
    recorder.watch_input(decoder.layers[0], "opt.embeddings_with_positions")
    for layer in chosen_layers(len(decoder.layers), args):
        recorder.watch(decoder.layers[layer], f"opt.layer.{layer}")
    recorder.watch(decoder.final_layer_norm, "opt.final_norm")
    embeddings = []
    hook = decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: embeddings.append(kwargs["inputs_embeds"]), with_kwargs=True)
    started = time.time()
    logits = model(pixel_values=pixel_values[None], interpolate_pos_encoding=interpolate, **encoded).logits
    seconds = time.time() - started
    hook.remove()
    recorder.close()
    stages = {"opt.embeddings": embeddings[0], **recorder.values, "logits": logits[:, -1]}
    if args.all_logits:
        stages["all_logits"] = logits
    return stages, seconds


def t5_prompt_stages(staged, pixel_values, interpolate, encoded, args):
    """As `prompt_stages`, with T5's encoder on image and prompt and the decoder's first step."""
    model = staged.model
    t5 = model.language_model
    recorder = Recorder()
    for name, stack in (("encoder", t5.encoder), ("decoder", t5.decoder)):
        recorder.watch_input(stack.block[0], f"t5.{name}.embeddings")
        for layer in chosen_layers(len(stack.block), args):
            recorder.watch(stack.block[layer], f"t5.{name}.block.{layer}")
    recorder.watch(t5.encoder.final_layer_norm, "t5.encoder.final_norm")
    # What the output head gets: scaled, where the model scales it.
    recorder.watch_input(t5.lm_head, "t5.decoder.final_norm")
    started = time.time()
    start = torch.tensor([[t5.config.decoder_start_token_id]])
    logits = model(pixel_values=pixel_values[None], interpolate_pos_encoding=interpolate, decoder_input_ids=start,
                   **encoded).logits
    seconds = time.time() - started
    recorder.close()
    return {**recorder.values, "logits": logits[:, -1]}, seconds


def trim(tokens, stop_tokens):
    """Generated tokens up to and including the first stop token (what follows is padding)."""
    for position, token in enumerate(tokens):
        if token in stop_tokens:
            return tokens[:position + 1]
    return tokens


def generate(staged, processor, pixel_values, interpolate, encoded, settings):
    """Runs transformers' generate; sequences without the prompt, with scores."""
    started = time.time()
    output = staged.model.generate(
        pixel_values=pixel_values[None], interpolate_pos_encoding=interpolate, **encoded, do_sample=False,
        return_dict_in_generate=True, output_scores=True, output_logits=True, **settings)
    seconds = time.time() - started
    stop = staged.config.text_config.eos_token_id
    stop = set(stop if isinstance(stop, list) else [stop])
    # Behind an encoder the sequence holds the decoder's start token alone.
    prompt_length = 1 if staged.is_t5() else encoded["input_ids"].shape[1]
    sequences = []
    for row, ids in enumerate(output.sequences):
        tokens = trim(ids[prompt_length:].tolist(), stop)
        sequence = {"tokens": tokens, "text": processor.tokenizer.decode(tokens, skip_special_tokens=True)}
        if settings.get("num_beams", 1) > 1:
            sequence["score"] = output.sequences_scores[row].item()
        else:
            # log-probabilities by the model's own logits, before any penalty; `margin`: how far the chosen token's
            # processed score is ahead of the next (a small one may turn by rounding alone).
            sequence["logprobs"] = [step[row].log_softmax(-1)[token].item()
                                    for step, token in zip(output.logits, tokens)]
            sequence["score"] = sum(sequence["logprobs"])
            # The same by the scores after the processors, as transformers' compute_transition_scores has them.
            sequence["processed_score"] = sum(step[row].log_softmax(-1)[token].item()
                                              for step, token in zip(output.scores, tokens))
            best = [step[row].topk(2).values for step, _ in zip(output.scores, tokens)]
            sequence["margins"] = [(pair[0] - pair[1]).item() for pair in best]
        sequences.append(sequence)
    return sequences, seconds


def thin(tensors, names, most):
    """Cuts `names` among `tensors` ([images, rows, width]) to about `most` rows, evenly spaced and the last among them.

    Returns the steps: in a tensor of step n lie the last row, the n-th before it, and so on, in the order of the rows.
    """
    steps = {}
    for name in names:
        rows = tensors[name].shape[1] if tensors[name].dim() == 3 else 0
        if rows > most:
            steps[name] = -(-rows // most)
            tensors[name] = tensors[name].flip(1)[:, ::steps[name]].flip(1)
    return steps


def stack_images(per_image):
    """[{name: [1, …]} for each image] → {name: [images, …]} in order."""
    return {name: torch.cat([stages[name] for stages in per_image]) for name in per_image[0]}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("out", type=Path, help="dump to write (.safetensors)")
    parser.add_argument("--image", type=Path, nargs="+", required=True)
    parser.add_argument("--prompt", action="append", help='may be given several times; default: "", a caption prefix, a question')
    parser.add_argument("--image-size", type=int, help="another input size: position embeddings are interpolated")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--beams", type=int, nargs="*", default=[3, 5])
    parser.add_argument("--every", type=int, default=1, help="store every n-th layer, and the last")
    parser.add_argument("--last-only", action="store_true", help="store only the first, middle and last layer")
    parser.add_argument("--all-logits", action="store_true", help="store the logits of every prompt position")
    parser.add_argument("--no-rgb", action="store_true", help="leave out the decoded images (large photographs)")
    parser.add_argument("--no-pixels", action="store_true", help="leave out all pixels: the pictures must lie beside the dump")
    parser.add_argument("--rows", type=int, help="store about so many rows of a stage (ViT tokens, queries, positions)")
    parser.add_argument("--variants", type=Path, help="also write a JSON of many generation settings here")
    parser.add_argument("--threads", type=int, help="torch threads")
    return parser.parse_args()


@torch.inference_mode()
def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    prompts = args.prompt if args.prompt is not None else DEFAULT_PROMPTS
    staged = StagedModel(args.model)
    processor = Blip2Processor.from_pretrained(args.model)
    image_config = json.loads((args.model / "preprocessor_config.json").read_text())
    size = args.image_size or staged.config.vision_config.image_size
    interpolate = size != staged.config.vision_config.image_size
    times = {}

    started = time.time()
    staged.load("vision_model.", "qformer.", "query_tokens", "language_projection.")
    times["load_image_side"] = time.time() - started
    tensors, images, per_image = {}, [], []
    for number, path in enumerate(args.image):
        rgb, resized, pixel_values = preprocess(path, size, image_config)
        from_processor = processor.image_processor(
            Image.fromarray(rgb), size={"height": size, "width": size}, return_tensors="pt")["pixel_values"][0]
        images.append({
            "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "width": rgb.shape[1], "height": rgb.shape[0],
            "max_difference_to_processor": (from_processor - pixel_values).abs().max().item(),
        })
        if not args.no_rgb and not args.no_pixels:
            tensors[f"image.{number}.rgb"] = torch.from_numpy(rgb)
        if not args.no_pixels:
            tensors[f"image.{number}.resized"] = torch.from_numpy(resized)
        stages, stage_times = image_stages(staged, pixel_values, interpolate, args)
        per_image.append({"pixel_values": pixel_values[None], **stages})
        times.update({f"image.{number}.{name}": seconds for name, seconds in stage_times.items()})
    image_tensors = stack_images(per_image)
    tensors.update(image_tensors)
    stage_names = list(image_tensors)

    staged.unload_vision()
    started = time.time()
    staged.load("language_model.")
    times["load_language_model"] = time.time() - started
    prompt_records, variants = [], []
    for number, prompt in enumerate(prompts):
        per_image, record = [], {"prompt": prompt, "greedy": [], "beams": {str(k): [] for k in args.beams}}
        for image, path in enumerate(args.image):
            label = f"prompt.{number}.image.{image}"
            encoded = processor(images=Image.new("RGB", (size, size)), text=prompt, return_tensors="pt")
            encoded = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
            record["input_ids"] = encoded["input_ids"][0].tolist()
            staged.model.vision_model = StoredVision(image_tensors["vit.output"][image:image + 1])
            inputs = (image_tensors["pixel_values"][image], interpolate, encoded)
            stages, times[f"{label}.prefill"] = prompt_stages(staged, *inputs, args)
            per_image.append(stages)
            settings = {"max_new_tokens": args.max_new_tokens}
            sequences, times[f"{label}.greedy"] = generate(staged, processor, *inputs, settings)
            record["greedy"].append(sequences[0])
            print(f"{path.name} {prompt!r}: {sequences[0]['text']!r} {sequences[0]['tokens']}", flush=True)
            for beams in args.beams:
                settings = {"max_new_tokens": args.max_new_tokens, "num_beams": beams, "num_return_sequences": beams}
                sequences, times[f"{label}.beams.{beams}"] = generate(staged, processor, *inputs, settings)
                record["beams"][str(beams)].append(sequences)
                print(f"  {beams} beams: {sequences[0]['text']!r} {sequences[0]['score']:.4f}", flush=True)
            for variant in VARIANTS if args.variants else []:
                variant = {"max_new_tokens": args.max_new_tokens, **variant}
                sequences, _ = generate(staged, processor, *inputs, variant)
                variants.append({"image": path.name, "prompt": prompt, "settings": variant, "sequences": sequences})
        named = {f"prompt.{number}.{name}": value for name, value in stack_images(per_image).items()}
        tensors[f"prompt.{number}.input_ids"] = torch.tensor(record["input_ids"], dtype=torch.int32)
        tensors.update(named)
        stage_names += list(named)
        prompt_records.append(record)

    row_steps = thin(tensors, [name for name in stage_names if name != "pixel_values"], args.rows) if args.rows else {}
    if args.no_pixels:
        del tensors["pixel_values"]
        stage_names.remove("pixel_values")
    dump = {
        "format_version": 1,
        "model": args.model.resolve().name,
        "image_size": size,
        "row_steps": row_steps,
        "interpolate_pos_encoding": interpolate,
        "images": images,
        "stages": stage_names,
        "prompts": prompt_records,
        "max_new_tokens": args.max_new_tokens,
        "seconds": {name: round(seconds, 4) for name, seconds in times.items()},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "command": " ".join([Path(sys.argv[0]).name, *(Path(word).name if "/" in word else word for word in sys.argv[1:])]),
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, args.out, metadata={"blip2_reference": json.dumps(dump)})
    print(f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size / 1e6:.2f} MB, peak {dump['peak_memory_mb']} MB")
    if args.variants:
        lines = ",\n".join(json.dumps(variant) for variant in variants)
        args.variants.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
