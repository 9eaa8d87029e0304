#!/usr/bin/env python3
"""Small files of torch.save for the reader's tests: every element type, and views of all kinds. Needs PyTorch.

Element i of a tensor (row-major) is i - 3 unless said; the tests know the shapes.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch


def ramp(*shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return (torch.arange(count) - 3).reshape(shape).to(dtype)


def state_dict():
    """The tensors; `first` and `second` are views of one storage of 12 elements."""
    both = ramp(12)
    return OrderedDict([
        ("half", ramp(5, dtype=torch.float16)),
        ("brain", ramp(2, 3, dtype=torch.bfloat16)),
        ("single", ramp(3, 1, 2)),
        ("double", ramp(7, dtype=torch.float64)),
        ("long", ramp(2, 2, dtype=torch.int64)),
        ("scalar", ramp(1).reshape(())),
        ("empty", torch.zeros(3, 0)),
        ("parameter", torch.nn.Parameter(ramp(4, 3))),
        ("transposed", ramp(4, 3).t().contiguous().t()),  # values of a [4, 3] ramp that lie column by column
        ("permuted", ramp(2, 3, 4).permute(2, 0, 1).contiguous().permute(1, 2, 0)),
        ("first", both[:5]),  # elements -3 to 1
        ("second", both[5:].unsqueeze(0)),  # [1, 7], elements 2 to 8
        ("every other", both[1::2]),  # -2, 0, 2, 4, 6, 8
    ])


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    extras = {"meta": {"epoch": 3, "lr": 1e-4, "names": ["a", ("b", None, True)]}, "optimizer": {"state": {0: {"step": ramp(1)}}}}
    torch.save({"state_dict": state_dict(), **extras}, folder / "zip.pth")
    torch.save({"model": state_dict(), **extras}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    for protocol in (3, 4, 5):
        torch.save(state_dict(), folder / f"zip_protocol{protocol}.pth", pickle_protocol=protocol)
    torch.save(state_dict(), folder / "legacy_protocol4.pth", pickle_protocol=4, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
