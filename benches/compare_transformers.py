#!/usr/bin/env python3
"""This engine beside transformers on one random checkpoint: the same tokens? how fast?

    python benches/compare_transformers.py --preset tiny --binary target/release/blip2-wgpu       # a minute
    python benches/compare_transformers.py --checkpoint full --batch 1 8 32 --json compare.json

Our program and transformers caption the same pictures with the same prompt, `--tokens` tokens each (the stop token is
forbidden until then, so that all do the same work). What is timed goes from image files to token ids, model loaded and
warm. First our program runs, as a process of its own, and ends before any model is loaded here. transformers runs on
CUDA where there is one, else on the CPU:

* `eager`: attention written out, a growing cache;
* `compiled`: torch's fused attention, a static cache and torch.compile of the decoder's step, the vision model, the
  Q-Former and T5's encoder;
* `sdpa`: the fused attention alone.

A mode that fails is reported, and the others go on. The JSON file is written anew after every measurement.
Needs weights-tools/requirements.txt, and a C++ compiler for `compiled` on a CPU.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / "weights-tools"
MODES = ["eager", "compiled", "sdpa"]  # in this order, should the time run out

# Logits of a float32 run may differ by this much from those of another order of summation; a choice between two
# tokens that are closer may go either way.
GAP_ALLOWED = 1e-2

# Our program as it runs by itself, and without 16-bit products: the second is what is held against float32.
OUR_PATHS = {"as it runs": [], "without f16 products": ["--disable", "f16"]}

# What our program reports about a run with -v.
OUR_TIMINGS = re.compile(
    r"(?P<images>\d+) images? in (?P<total>[\d.]+) s; ViT (?P<vit>[\d.]+) s, Q-Former (?P<qformer>[\d.]+) s, "
    r"prefill (?P<prefill>[\d.]+) s, decode (?P<decode>[\d.]+) s(?: \((?P<steps>\d+) steps?)?")
OUR_LOAD = re.compile(r"loaded on (?P<adapter>.+) in (?P<seconds>[\d.]+) s")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a folder that is there already; else one is made")
    parser.add_argument("--preset", default="opt-2.7b", help="what make_checkpoint.py is to make (tiny, opt-2.7b)")
    parser.add_argument("--tokenizer", type=Path, help="for make_checkpoint.py")
    parser.add_argument("--binary", type=Path, default=REPOSITORY / "target/release/blip2-wgpu", help="our program")
    parser.add_argument("--ours-args", default="", help="more arguments for it, such as '--quant q8'")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES, help="of transformers; none is allowed")
    parser.add_argument("--no-ours", action="store_true", help="leave our program out")
    parser.add_argument("--no-check", action="store_true", help="leave the tokens unchecked")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each; transformers' median counts")
    parser.add_argument("--prompt", default="a photo of")
    parser.add_argument("--check-images", type=int, default=4, help="pictures whose tokens are compared")
    parser.add_argument("--device", default="auto", help="of transformers: auto, cpu, cuda")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"],
                        help="of transformers; auto: float16 on CUDA, on a CPU float32 where it fits")
    parser.add_argument("--check-dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"],
                        help="of the run that tokens are compared with; auto: float32 where it fits, else --dtype")
    parser.add_argument("--reference", type=Path, metavar="DUMP",
                        help="compare tokens with this dump of reference_dump.py (float32) instead: for models too large to run here so")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--work", type=Path, help="folder for checkpoint and pictures (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    # A path that names no folder would be looked for in PATH, and pathlib drops a leading "./".
    args.binary = args.binary.resolve()
    return args


# Pictures

def make_pictures(folder, count):
    """`count` PNG files of smooth random colours, 640 × 480: the same each time."""
    import numpy as np
    from PIL import Image
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path)
    return paths


# Our program

def run_ours(args, checkpoint, paths, batch, prompt=None, least=None, most=None, further=()):
    """Captions `paths` in one process: their tokens, and what -v says."""
    command = [args.binary, "caption", *paths, "--model", checkpoint, "--prompt", args.prompt if prompt is None else prompt,
               "--json", "-v", "--beams", "1", "--batch-size", batch,
               "--max-new-tokens", args.tokens if most is None else most,
               "--min-new-tokens", args.tokens if least is None else least, *args.ours_args.split(), *further]
    started = time.time()
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    seconds = time.time() - started
    if run.returncode != 0:
        raise RuntimeError(f"{args.binary.name} ended with {run.returncode}: {run.stderr.strip()[-2000:]}")
    timings, load = OUR_TIMINGS.search(run.stderr), OUR_LOAD.search(run.stderr)
    if not timings or not load:
        raise RuntimeError(f"no timings in what {args.binary.name} -v printed: {run.stderr.strip()[-2000:]}")
    figures = {name: float(value) for name, value in timings.groupdict().items() if value}
    figures |= {"process": seconds, "load": float(load["seconds"]), "adapter": load["adapter"]}
    return [json.loads(line)["tokens"] for line in run.stdout.splitlines()], figures


def time_ours(args, checkpoint, pictures, batch):
    """Two processes, one with more batches: what the further ones took, so that pipelines and pages are warm."""
    _, once = run_ours(args, checkpoint, pictures[:batch], batch)
    # As many as about ten seconds take; -v rounds its figures.
    rounds = max(1, min(30, int(10 / max(once["total"], 1e-3))))
    rounds = max(rounds, min(args.rounds, 3)) if once["total"] < 60 else 1
    many = [pictures[number % len(pictures)] for number in range(batch * (1 + rounds))]
    _, more = run_ours(args, checkpoint, many, batch)
    further = {name: (more[name] - once[name]) / rounds for name in ("total", "vit", "qformer", "prefill", "decode")}
    return {
        "who": "ours", "mode": args.ours_args, "device": once["adapter"], "dtype": "f16 weights", "batch": batch,
        "seconds": further["total"], "first_token": further["vit"] + further["qformer"] + further["prefill"],
        "step": further["decode"] / max(args.tokens - 1, 1), "stages": further, "rounds": rounds,
        "load": once["load"], "process": once["process"],
    }


# transformers

def available_bytes(device):
    """Memory that is free on `device`."""
    if device == "cuda":
        import torch
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def fits(checkpoint, device, dtype):
    """Whether a model of that type, with a quarter more for what it computes, fits now."""
    stored = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    return stored / 2 * (4 if dtype == "float32" else 2) * 1.25 < available_bytes(device)


class Peer:
    """transformers' model in one type, with the attention of a mode."""

    def __init__(self, checkpoint, device, dtype, mode):
        import torch
        from transformers import Blip2ForConditionalGeneration, Blip2Processor
        self.torch, self.device, self.mode = torch, device, mode
        self.processor = Blip2Processor.from_pretrained(checkpoint)
        self.checkpoint = checkpoint
        started = time.time()
        attention = "eager" if mode == "eager" else "sdpa"
        self.dtype = getattr(torch, dtype)
        self.model = Blip2ForConditionalGeneration.from_pretrained(
            checkpoint, dtype=self.dtype, attn_implementation=attention).eval().to(device)
        self.load_seconds = time.time() - started
        self.settings = {}
        if mode == "compiled":
            from transformers import CompileConfig
            compile_config = CompileConfig(mode="reduce-overhead" if device == "cuda" else "default")
            compile_config._compile_all_devices = True  # generate would compile on accelerators only
            self.settings = {"cache_implementation": "static", "compile_config": compile_config}
            parts = [self.model.vision_model, self.model.qformer]
            if self.model.language_model.config.is_encoder_decoder:
                parts.append(self.model.language_model.get_encoder())
            for part in parts:
                part.forward = torch.compile(part.forward)

    def synchronize(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def encode(self, paths, prompt):
        """Pictures and prompt as the processor makes them, on the device."""
        from PIL import Image
        images = [Image.open(path).convert("RGB") for path in paths]
        encoded = self.processor(images=images, text=[prompt] * len(images), return_tensors="pt")
        encoded["pixel_values"] = encoded["pixel_values"].to(self.dtype)
        return encoded.to(self.device)

    def new_tokens(self, sequences, encoded):
        """What was generated: behind the prompt, or, where an encoder reads the prompt (T5), behind the decoder's start token."""
        encoder_decoder = self.model.language_model.config.is_encoder_decoder
        return sequences[:, 1 if encoder_decoder else encoded["input_ids"].shape[1]:].tolist()

    def generate(self, encoded, tokens, **settings):
        with self.torch.inference_mode():
            return self.model.generate(**encoded, do_sample=False, num_beams=1, max_new_tokens=tokens,
                                       min_new_tokens=tokens, **self.settings, **settings)

    def measure(self, paths, prompt, tokens):
        """Seconds from image files to token ids."""
        self.synchronize()
        started = time.time()
        encoded = self.encode(paths, prompt)
        ids = self.new_tokens(self.generate(encoded, tokens), encoded)
        seconds = time.time() - started
        if any(len(row) != tokens for row in ids):
            raise RuntimeError(f"asked for {tokens} tokens, got {[len(row) for row in ids]}")
        return seconds

    def close(self):
        del self.model
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()


def time_peer(peer, args, pictures, batch, dtype):
    """Medians of whole captions and of captions of one token; what lies between is the further tokens."""
    def median(tokens):
        for _ in range(3 if peer.mode == "compiled" else 1):
            peer.measure(pictures[:batch], args.prompt, tokens)
        return statistics.median(peer.measure(pictures[:batch], args.prompt, tokens) for _ in range(args.rounds))
    seconds, first = median(args.tokens), median(1)
    return {
        "who": "transformers", "mode": peer.mode, "device": peer.device, "dtype": dtype, "batch": batch,
        "seconds": seconds, "first_token": first, "step": (seconds - first) / max(args.tokens - 1, 1),
        "rounds": args.rounds, "load": peer.load_seconds,
    }


def check_reference(args, checkpoint, work):
    """Tokens beside those of a dump, whose pictures are stored at the model's size."""
    from PIL import Image
    from safetensors import safe_open
    results = []
    with safe_open(args.reference, "np") as file:
        dump = json.loads(file.metadata()["blip2_reference"])
        for number, image in enumerate(dump["images"]):
            path = work / f"reference.{number}.png"
            Image.fromarray(file.get_tensor(f"image.{number}.resized")).save(path)
            for prompt in dump["prompts"]:
                greedy = prompt["greedy"][number]
                theirs = greedy["tokens"]
                ours = run_ours(args, checkpoint, [path], 1, prompt["prompt"], 0, dump["max_new_tokens"])[0][0]
                result = {"image": image["file"], "prompt": prompt["prompt"], "ours": ours, "theirs": theirs, "dtype": "float32 (dump)",
                          "equal": ours == theirs, "ok": ours == theirs}
                differing = [step for step, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]]
                if differing:
                    # How far the best two are apart: ours is one of the others.
                    gap = greedy["margins"][differing[0]]
                    result |= {"first_difference": differing[0], "gap": gap, "ok": gap < GAP_ALLOWED}
                results.append(result)
    return results


def difference(scores, theirs, ours, step):
    """How far our token lies behind theirs at `step`, in the logits that the choice was made from (the stop token
    forbidden), which both have the same tokens before. No gap where ours is forbidden or no token at all."""
    logits = scores[step][0].float()
    if ours[step] >= len(logits) or logits[ours[step]] == float("-inf"):
        return {"first_difference": step}
    gap = (logits[theirs[step]] - logits[ours[step]]).item()
    if not gap >= 0:  # nor NaN
        raise RuntimeError(f"token {step}: transformers' {theirs[step]} is not the best of its own logits ({gap:.2e} before "
                           f"our {ours[step]}): they are not of one step")
    return {"first_difference": step, "gap": gap}


def check_tokens(peer, args, pictures, ours, dtype):
    """Each picture by itself: equal tokens, or how far apart the logits are where the first differs.

    `ours` has our tokens of all pictures for each of OUR_PATHS that ran."""
    sys.path.insert(0, str(TOOLS))
    from reference_dump import preprocess
    image_config = json.loads((peer.checkpoint / "preprocessor_config.json").read_text())
    size = peer.model.config.vision_config.image_size
    results = []
    for number, path in enumerate(pictures):
        encoded = peer.encode([path], args.prompt)
        # Pillow's pixels: the processor resizes with torchvision where that is installed, a grey level off.
        encoded["pixel_values"] = preprocess(path, size, image_config)[2][None].to(peer.device, peer.dtype)
        output = peer.generate(encoded, args.tokens, return_dict_in_generate=True, output_scores=True)
        theirs = peer.new_tokens(output.sequences, encoded)[0]
        for name, tokens in ours.items():
            result = {"image": path.name, "path": name, "ours": tokens[number], "theirs": theirs, "dtype": dtype}
            result["equal"] = tokens[number] == theirs
            differing = [step for step, pair in enumerate(zip(tokens[number], theirs)) if pair[0] != pair[1]]
            if differing:
                result |= difference(output.scores, theirs, tokens[number], differing[0])
            result["ok"] = result["equal"] or result.get("gap", float("inf")) < GAP_ALLOWED
            results.append(result)
    return results


# Report

def print_table(rows):
    print(f"\n{'':<36}{'batch':>6}{'s':>10}{'first token s':>15}{'ms a step':>11}{'images/s':>10}{'tokens/s':>10}"
          f"{'theirs/ours':>13}")
    ours = {row["batch"]: row["seconds"] for row in reversed(rows) if row["who"] == "ours" and "seconds" in row}
    for row in rows:
        name = f"{row['who']} {row['mode']} {row['dtype']}".replace("  ", " ")
        if "error" in row:
            print(f"{name:<36}{row['batch']:>6}  {row['error'].splitlines()[-1][:120]}")
            continue
        ratio = row["seconds"] / ours[row["batch"]] if row["batch"] in ours else float("nan")
        # Not above 0 where noise is larger than the further tokens.
        step = f"{row['step'] * 1e3:>11.2f}" if row["step"] > 0 else f"{'-':>11}"
        rate = f"{row['batch'] / row['step']:>10.1f}" if row["step"] > 0 else f"{'-':>10}"
        print(f"{name:<36}{row['batch']:>6}{row['seconds']:>10.3f}{row['first_token']:>15.3f}{step}"
              f"{row['batch'] / row['seconds']:>10.3f}{rate}{ratio:>13.2f}")


def print_checks(checks):
    for check in checks:
        verdict = "equal"
        if not check["equal"]:
            first = check.get("first_difference", min(len(check["ours"]), len(check["theirs"])))  # one ends before the other
            apart = f"logits {check['gap']:.2e} apart" if "gap" in check else "ours cannot be there"
            verdict = f"differ from token {first}, {apart} ({'a tie' if check['ok'] else 'MORE THAN ROUNDING'})"
        path = f", {check['path']}" if "path" in check else ""
        print(f"tokens of {check['image']}{path}, beside transformers' {check['dtype']}: {verdict}")


def environment(args, checkpoint):
    """What the figures depend on."""
    facts = {"date": datetime.date.today().isoformat(), "checkpoint": checkpoint.name, "tokens": args.tokens,
             "prompt": args.prompt, "python": platform.python_version(), "cpus": os.cpu_count()}
    commit = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    facts["commit"] = commit.stdout.strip() or None
    try:
        import torch
        import transformers
        facts |= {"torch": torch.__version__, "transformers": transformers.__version__}
        if torch.cuda.is_available():
            facts["cuda"] = torch.cuda.get_device_name()
    except ImportError as error:
        facts["torch"] = str(error)
    return facts


def last_line(error):
    return "".join(traceback.format_exception_only(error)).strip()


def main():
    args = parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="compare-"))
    checkpoint = args.checkpoint
    if not checkpoint:
        checkpoint = work / args.preset
        if not (checkpoint / "config.json").exists():
            more = ["--tokenizer", args.tokenizer] if args.tokenizer else []
            subprocess.run([sys.executable, TOOLS / "make_checkpoint.py", checkpoint, "--preset", args.preset, *more],
                           check=True)
    report = {"environment": environment(args, checkpoint), "rows": [], "checks": []}

    def note(key, values):
        report[key] += values
        print(json.dumps(values), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    pictures = make_pictures(work / "pictures", max([*args.batch, args.check_images]))
    checked = pictures[:args.check_images]
    ours, check_failed = None, False
    if not args.no_ours:
        for batch in args.batch:
            try:
                note("rows", [time_ours(args, checkpoint, pictures, batch)])
            except Exception as error:
                note("rows", [{"who": "ours", "mode": args.ours_args, "dtype": "", "batch": batch, "error": last_line(error)}])
        if args.reference:
            try:
                note("checks", check_reference(args, checkpoint, work))
            except Exception as error:
                print(last_line(error), file=sys.stderr)
                check_failed = True
        elif not args.no_check:
            try:
                ours = {}
                for name, further in OUR_PATHS.items():
                    ours[name], _ = run_ours(args, checkpoint, checked, args.check_images, further=further)
            except Exception as error:
                print(last_line(error), file=sys.stderr)
                check_failed = True

    done = run_transformers(args, checkpoint, pictures, ours, note)
    print(json.dumps(report["environment"]))
    print_checks(report["checks"])
    print_table(report["rows"])
    failed = any("error" in row for row in report["rows"])
    # 16-bit products may turn closer choices than float32's rounding: reported, but no failure.
    wrong = not all(check["ok"] for check in report["checks"] if check.get("path") != "as it runs")
    sys.exit(1 if failed or wrong or not done or check_failed else 0)


def run_transformers(args, checkpoint, pictures, ours, note):
    """The check and the modes; whether all that was asked for was done."""
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" and fits(checkpoint, device, "float32") else "float16"
    check_dtype = args.check_dtype
    if check_dtype == "auto":
        check_dtype = "float32" if fits(checkpoint, device, "float32") else dtype
    done = True
    if ours is not None:
        try:
            peer = Peer(checkpoint, device, check_dtype, "eager")
            note("checks", check_tokens(peer, args, pictures[:args.check_images], ours, check_dtype))
            peer.close()
        except Exception as error:
            print(f"the check: {last_line(error)}", file=sys.stderr)
            done = False
    for mode in args.modes:
        row = {"who": "transformers", "mode": mode, "device": device, "dtype": dtype}
        try:
            peer = Peer(checkpoint, device, dtype, mode)
        except Exception as error:
            note("rows", [{**row, "batch": 0, "error": last_line(error)}])
            continue
        for batch in args.batch:
            try:
                note("rows", [time_peer(peer, args, pictures, batch, dtype)])
            except Exception as error:
                note("rows", [{**row, "batch": batch, "error": last_line(error)}])
        peer.close()
        del peer
    return done


if __name__ == "__main__":
    main()
