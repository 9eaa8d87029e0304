"""What a frozen vision encoder sees in the pool's scenes, computed once: later epochs, and the several texts of a step, cost nothing."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import torch
from torch import nn

from . import loop
from .pool import Pool, mirrored, pixel_values

PART = 128


def fingerprint(model: nn.Module) -> str:
    """A short name of a module's weights."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def encode(vision_model: nn.Module, block: dict[str, np.ndarray]) -> np.ndarray:
    """bf16 image tokens of a block's scenes as they are (0) and mirrored (1): [2, scenes, 65, WIDTH], as int16."""
    both = []
    for flip in (False, True):
        parts = []
        for start in range(0, len(block["pixels"]), PART):
            pixels, owners, facts = (np.array(block[name][start : start + PART]) for name in ("pixels", "owners", "facts"))
            if flip:
                pixels, _, _ = mirrored(pixels, owners, facts)
            with loop.autocast():
                tokens = vision_model(pixel_values=pixel_values(pixels, loop.device())).last_hidden_state
            parts.append(tokens.bfloat16().cpu().view(torch.int16).numpy())
        both.append(np.concatenate(parts))
    return np.stack(both)


class Seen:
    """Image tokens of all scenes of a pool and of their mirror images, as mapped files in `folder` (33 kB a scene)."""

    def __init__(self, vision_model: nn.Module, pool: Pool, folder: pathlib.Path):
        """Computes the blocks that are not there yet; processes that train together share the work."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{fingerprint(vision_model)}-s{len(b['pixels'])}-b{i:04d}.npy" for i, b in enumerate(pool.blocks)]
        for path, block in list(zip(files, pool.blocks))[loop.rank() :: loop.processes()]:
            if not path.exists():
                partial = path.with_suffix(".partial")
                with open(partial, "wb") as file:
                    np.save(file, encode(vision_model, block))
                partial.rename(path)
        if loop.processes() > 1:
            torch.distributed.barrier()
        self.blocks = [np.load(path, mmap_mode="r") for path in files]

    def take(self, rows, flip: np.ndarray) -> torch.Tensor:
        """bf16 image tokens [n, 65, WIDTH] of these scenes, those of `flip` mirrored."""
        size = self.blocks[0].shape[1]
        found = np.stack([self.blocks[i // size][int(f), i % size] for i, f in zip(rows, flip)])
        return torch.from_numpy(found).view(torch.bfloat16)
