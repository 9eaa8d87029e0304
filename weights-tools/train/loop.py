"""What every training stage shares: state file, optimiser, rate schedule, averaged weights and log."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time

import torch
from torch import distributed, nn


def rank() -> int:
    """Number of this process among those that train together."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    """How many processes train together. On a shared CPU, processes that meet once a step lose less than threads that meet at every operation."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean of the gradients over all processes, in place."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    distributed.all_reduce(flat)
    flat /= processes()
    for g, mean in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients)):
        g.copy_(mean)


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast():
    """bf16 for the matrix products, on either device."""
    return torch.autocast(device().type, dtype=torch.bfloat16)


def rate(step: int, steps: int, warmup: int, decay: int) -> float:
    """Share of the full learning rate: linear warm-up, constant, then linear to 0 over the last `decay` steps.

    The constant middle lets a run be lengthened: resume with more steps before the decay has begun.
    """
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / max(1, decay)))


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states, unlike embeddings and the heads of side tasks."""
    return parameter.dim() == 2 and name.startswith("model.") and "embed" not in name and "itm_head" not in name


class Steps(torch.utils.data.Dataset):
    """The batches of a stage as a data set: item s is the batch of step s."""

    def __init__(self, make_batch, steps: int):
        self.make_batch, self.steps = make_batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        return self.make_batch(step * processes() + rank())


class Trainer:
    """One stage: the modules it trains (those parameters that want a gradient), its optimisers, an exponential average of the weights, and a state file it resumes from."""

    def __init__(
        self,
        modules: nn.ModuleDict,
        state_path: pathlib.Path,
        *,
        learning_rate: float,
        steps: int,
        warmup: int,
        decay: int,
        batch_size: int,
        average: float = 0.998,
        weight_decay: float = 0.05,
    ):
        self.modules, self.state_path = modules, state_path
        self.names = [name for name, p in modules.named_parameters() if p.requires_grad]
        self.trained = [p for p in modules.parameters() if p.requires_grad]
        self.steps, self.warmup, self.decay, self.batch_size = steps, warmup, decay, batch_size
        self.learning_rate, self.average_rate = learning_rate, average
        # Muon turns the steps of matrices between hidden states into orthogonal ones, which learns these small models in fewer steps;
        # its steps are scaled to AdamW's size, so one learning rate serves both. AdamW takes the rest.
        hidden = [p for name, p in zip(self.names, self.trained) if is_hidden_matrix(name, p)]
        rest = [p for name, p in zip(self.names, self.trained) if not is_hidden_matrix(name, p)]
        self.optimizers = [
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.dim() > 1], "weight_decay": weight_decay},
                    {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
                ],
                lr=learning_rate,
                betas=(0.9, 0.98),
                fused=True,
            )
        ]
        if hidden:
            self.optimizers.append(
                torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        self.average = [p.detach().clone() for p in self.trained]
        self.step, self.seconds = 0, 0.0
        self.log_path = state_path.with_suffix(".log.jsonl")
        if state_path.exists():
            self.load()

    def load(self) -> None:
        """Goes on from the state file."""
        state = torch.load(self.state_path, map_location=device(), weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        for name, average in zip(self.names, self.average):
            average.copy_(state["average"][name])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Writes the state file whole or not at all."""
        if rank() > 0:
            return
        partial = self.state_path.with_suffix(".partial")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": dict(zip(self.names, self.average)),
                "step": self.step,
                "seconds": self.seconds,
            },
            partial,
        )
        os.replace(partial, self.state_path)

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the trained parameters are the averaged ones."""
        kept = [p.detach().clone() for p in self.trained]
        for p, a in zip(self.trained, self.average):
            p.data.copy_(a)
        yield
        for p, k in zip(self.trained, kept):
            p.data.copy_(k)

    def log(self, **figures) -> None:
        """One JSON line to the log file and to stdout."""
        if rank() > 0:
            return
        figures = {k: v if isinstance(v, (int, str)) else round(float(torch.as_tensor(v).detach()), 4) for k, v in figures.items()}
        minutes = round(self.seconds / 60, 1)
        line = json.dumps({"step": self.step, "images": self.step * self.batch_size, "minutes": minutes} | figures)
        print(line, flush=True)
        with open(self.log_path, "a") as file:
            file.write(line + "\n")

    def run(
        self, make_batch, loss_of, evaluate, *, workers: int, log_every: int, evaluate_every: int, save_every: int
    ) -> None:
        """Trains to the last step.

        `make_batch(number)` prepares a batch (in `workers` further processes, if any), `loss_of(batch)` gives (loss, figures),
        and `evaluate()` gives the figures of the validation scenes; it is called with the averaged weights in place.
        """
        batches = torch.utils.data.DataLoader(
            Steps(make_batch, self.steps), batch_size=None, sampler=range(self.step, self.steps), num_workers=workers
        )
        last = time.monotonic()
        for batch in batches:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * rate(self.step, self.steps, self.warmup, self.decay)
            loss, figures = loss_of(batch)
            loss.backward()
            average_gradients(self.trained)
            norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            share = min(self.average_rate, self.step / (self.step + 10))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 1 - share)
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if self.step % log_every == 0:
                self.log(loss=loss, norm=norm, **figures)
            if rank() == 0 and (self.step % evaluate_every == 0 or self.step == self.steps):
                with self.averaged(), torch.no_grad():
                    self.log(split="val", **evaluate())
            if self.step % save_every == 0 or self.step == self.steps:
                self.save()
            last = time.monotonic()
