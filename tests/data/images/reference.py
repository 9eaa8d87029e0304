"""What Pillow and transformers make of image files: the yardstick of src/image/reference_tests.rs.

    python reference.py OUT RESIZED TENSOR FILE_OR_FOLDER...

RESIZED is a list of sizes such as 5x7,31x6; TENSOR one side in pixels. OUT/index.tsv has a line for each
result: file (relative to OUT), kind, width, height, offset into OUT/reference.bin, Pillow's mode, error.
The kinds: hf, lavis, mmpretrain (8-bit pixels under each decoding policy), resized (the hf pixels through
Pillow's bicubic), tensor (the hf pixels through transformers' BlipImageProcessorPil, float32).

The committed reference was made with Pillow 13.0.0 and transformers 5.23.0 by
    python make_files.py && python reference.py . 5x7,31x6,1x1 4 files
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SKIP = {".json", ".py", ".tsv", ".md", ".bin"}


def decode(path, policy):
    """hf: upright, over white; lavis: plain convert; mmpretrain: upright, alpha dropped."""
    image = Image.open(path)
    mode = image.mode
    if policy != "lavis":
        image = ImageOps.exif_transpose(image)
    if policy == "hf":
        return mode, convert_to_rgb(image, return_numpy=True)
    return mode, np.array(image.convert("RGB"))


def main():
    warnings.simplefilter("ignore")
    out, tensor_side = Path(sys.argv[1]), int(sys.argv[3])
    sizes = [tuple(map(int, size.split("x"))) for size in sys.argv[2].split(",")]
    out.mkdir(parents=True, exist_ok=True)
    processor = BlipImageProcessorPil(size={"height": tensor_side, "width": tensor_side})
    lines, blob, known = [], bytearray(), {}

    def add(path, kind, width, height, mode, data, error=""):
        if data not in known:  # equal results are stored once
            known[data] = len(blob)
            blob.extend(data)
        lines.append([os.path.relpath(path, out), kind, width, height, known[data], mode, error])

    for root in map(Path, sys.argv[4:]):
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in (p for p in files if p.suffix not in SKIP):
            for policy in ("hf", "lavis", "mmpretrain"):
                try:
                    mode, pixels = decode(path, policy)
                except Exception as error:
                    add(path, policy, 0, 0, "?", b"", " ".join(repr(error).split()))
                    continue
                add(path, policy, pixels.shape[1], pixels.shape[0], mode, pixels.tobytes())
                if policy == "hf":
                    image = Image.fromarray(pixels)
                    for size in sizes:
                        resized = image.resize(size, Image.Resampling.BICUBIC)
                        add(path, "resized", *size, mode, resized.tobytes())
                    tensor = np.asarray(processor(image).pixel_values[0], dtype="<f4")
                    add(path, "tensor", tensor_side, tensor_side, mode, tensor.tobytes())
    (out / "reference.bin").write_bytes(blob)
    (out / "index.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))


if __name__ == "__main__":
    main()
