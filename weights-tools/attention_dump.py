#!/usr/bin/env python3
"""Dumps the attention that transformers computes (`output_attentions=True`), for `--explain` and `blip2-wgpu parity`.

Everything runs in float32 on the stored (float16) weights with plain ("eager") attention; weights are the mean over
heads. The maps of the generated tokens come from `generate` itself, step by step. The format is described in README.md.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from reference_dump import preprocess, trim
from safetensors.torch import save_file
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Processor


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder (a small one: it is loaded in float32)")
    parser.add_argument("out", type=Path, help="dump to write (.safetensors)")
    parser.add_argument("--image", type=Path, nargs="+", required=True)
    parser.add_argument("--prompt", action="append", default=[], help="of a generative model; may be given several times")
    parser.add_argument("--text", action="append", default=[], help="of a retrieval model; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--threads", type=int, help="torch threads")
    return parser.parse_args()


def over_heads(attentions):
    """A tuple of [1, heads, rows, keys] a layer → [layers, rows, keys]."""
    return torch.stack([attention[0].mean(0) for attention in attentions])


def pairs(args, image_config):
    """A retrieval model: cross-attention of the queries while they read each text beside each image."""
    model = Blip2ForImageTextRetrieval.from_pretrained(
        args.model, attn_implementation="eager", dtype=torch.float32).eval()
    # Where an image token is configured, transformers cuts placeholders off the ids; here there are none.
    model.config.image_token_index = None
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    size = model.config.vision_config.image_size
    outputs = []
    model.qformer.register_forward_pre_hook(
        lambda _module, inputs, kwargs: (inputs, {**kwargs, "output_attentions": True}), with_kwargs=True)
    model.qformer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.cross_attentions))
    tensors = {}
    for image, path in enumerate(args.image):
        _, _, pixel_values = preprocess(path, size, image_config)
        for number, text in enumerate(args.text):
            ids = tokenizer(text, return_tensors="pt")
            model(pixel_values=pixel_values[None], input_ids=ids["input_ids"], attention_mask=ids["attention_mask"],
                  use_image_text_matching_head=True)
            tensors[f"explain.image.{image}.text.{number}"] = over_heads(outputs.pop()).mean(0)[:, 1:]
    return tensors, {"image_size": size, "texts": args.text}


def generative(args, image_config):
    """A generative model: cross-attention of the queries, and the decoder's attention to them while it generates."""
    model = Blip2ForConditionalGeneration.from_pretrained(
        args.model, attn_implementation="eager", dtype=torch.float32).eval()
    processor = Blip2Processor.from_pretrained(args.model)
    size, queries = model.config.vision_config.image_size, model.config.num_query_tokens
    stop = model.config.text_config.eos_token_id

    tensors = {}
    prompts = [{"prompt": prompt, "generated": []} for prompt in args.prompt]
    for number, path in enumerate(args.image):
        stages = {}
        _, _, pixel_values = preprocess(path, size, image_config)
        stages["pixel_values"] = pixel_values
        features = model.vision_model(pixel_values[None]).last_hidden_state
        cross = model.qformer(
            query_embeds=model.query_tokens, encoder_hidden_states=features, output_attentions=True,
        ).cross_attentions
        frequency = model.config.qformer_config.cross_attention_frequency
        for index, weights in enumerate(over_heads(cross)):
            stages[f"qformer.layer.{index * frequency}.cross_attention"] = weights
        # The mean over layers, without the class token.
        query_maps = stages["explain.queries"] = over_heads(cross).mean(0)[:, 1:]
        for index, record in enumerate(prompts):
            encoded = processor(images=Image.new("RGB", (size, size)), text=record["prompt"], return_tensors="pt")
            encoded = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
            record["input_ids"] = encoded["input_ids"][0].tolist()
            output = model.generate(
                pixel_values=pixel_values[None], **encoded, do_sample=False, max_new_tokens=args.max_new_tokens,
                return_dict_in_generate=True, output_attentions=True)
            tokens = trim(output.sequences[0, len(record["input_ids"]):].tolist(), {stop})
            record["generated"].append(tokens)
            for layer, weights in enumerate(over_heads(output.attentions[0])):
                stages[f"prompt.{index}.opt.layer.{layer}.attention"] = weights[:, :queries]
            # Each token was predicted by the last row of its step: its attention to the queries, then through them.
            rows = [over_heads(step).mean(0)[-1, :queries] for step in output.attentions[:len(tokens)]]
            tensors[f"explain.image.{number}.prompt.{index}.tokens"] = torch.stack(rows) @ query_maps
            print(f"{path.name} {record['prompt']!r}: {tokens}", flush=True)
        for name, value in stages.items():
            tensors.setdefault(name, []).append(value)
    tensors = {name: torch.stack(value) if isinstance(value, list) else value for name, value in tensors.items()}
    return tensors, {"image_size": size, "prompts": prompts, "max_new_tokens": args.max_new_tokens}


@torch.inference_mode()
def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    image_config = json.loads((args.model / "preprocessor_config.json").read_text())
    kind = json.loads((args.model / "config.json").read_text())["architectures"][0]
    tensors, record = (pairs if "Retrieval" in kind else generative)(args, image_config)
    dump = {
        "format_version": 1,
        "model": args.model.resolve().name,
        "images": [{"file": path.name} for path in args.image],
        **record,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "command": " ".join([Path(sys.argv[0]).name, *(Path(word).name if "/" in word else word for word in sys.argv[1:])]),
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, args.out, metadata={"blip2_reference": json.dumps(dump)})
    print(f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
