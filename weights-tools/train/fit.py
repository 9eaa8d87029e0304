"""Training, stage by stage: `python -m train.fit STAGE --work DIR`. Every stage resumes from DIR/STAGE.pt.

see     vision encoder and Q-Former on facts alone: what is under each patch, and which object each query stands for
"""

from __future__ import annotations

import argparse
import pathlib

import torch
from torch import nn

from . import loop, models
from .pool import Pool, pixel_values


def tensors(batch: Pool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [n, 3, 64, 64], owners [n, 64] and facts [n, 4, 6] of a batch, on the device."""
    owners = torch.from_numpy(batch.owners).to(device).long().flatten(1)
    return pixel_values(batch.pixels, device), owners, torch.from_numpy(batch.facts).to(device)


def see_images(model: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image tokens [n, 65, WIDTH] and query outputs [n, 8, WIDTH]."""
    tokens = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.qformer(
        query_embeds=model.query_tokens.expand(len(pixels), -1, -1), encoder_hidden_states=tokens
    ).last_hidden_state
    return tokens, queries


def auxiliary_loss(model, auxiliary, batch: Pool, device):
    """The facts loss of a batch, its hit rates, and the query outputs."""
    pixels, owners, facts = tensors(batch, device)
    tokens, queries = see_images(model, pixels)
    loss, rates = auxiliary.losses(tokens[:, 1:], queries, owners, facts)
    return loss, rates, queries


def my_batch(pool: Pool, step: int, args) -> Pool:
    """This process's batch of a step."""
    return pool.batch(step * loop.processes() + loop.rank(), args.batch, args.seed)


def mean_rates(rates: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each figure over batches."""
    return {k: float(torch.stack([r[k] for r in rates]).mean()) for k in rates[0]}


def fit_see(args) -> None:
    """Stage `see`."""
    device = loop.device()
    torch.manual_seed(args.seed)
    model = models.build_generative(vocab_size=8, newline_id=4, image_token_id=5).to(device)
    modules = nn.ModuleDict({"model": model, "auxiliary": models.Auxiliary().to(device)})
    trained = [
        *model.vision_model.parameters(),
        *model.qformer.parameters(),
        model.query_tokens,
        *modules["auxiliary"].parameters(),
    ]
    train = Pool.load(args.work / "pool", "train", args.pool, args.seed, args.workers)
    val = Pool.load(args.work / "pool", "val", 1024, args.seed, args.workers)
    trainer = loop.Trainer(
        modules,
        trained,
        args.work / "see.pt",
        learning_rate=args.rate or 2e-3,
        steps=args.steps,
        warmup=100,
        decay=args.decay,
        batch_size=args.batch * loop.processes(),
    )

    def loss_of_step(step):
        with loop.autocast():
            loss, rates, _ = auxiliary_loss(model, modules["auxiliary"], my_batch(train, step, args), device)
        return loss, rates

    def evaluate():
        rates = []
        for i in range(8):
            part = slice(128 * i, 128 * (i + 1))
            batch = Pool(val.pixels[part], val.owners[part], val.facts[part])
            with loop.autocast():
                loss, more, _ = auxiliary_loss(model, modules["auxiliary"], batch, device)
            rates.append({"loss": loss} | more)
        return mean_rates(rates)

    trainer.run(loss_of_step, evaluate, log_every=args.log_every, evaluate_every=args.evaluate_every, save_every=args.save_every)


STAGES = {"see": fit_see}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the pool, the state files and the logs")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay", type=int, default=800, help="steps at the end over which the learning rate falls to 0")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="learning rate, if not the stage's own")
    parser.add_argument("--pool", type=int, default=65536, help="training scenes to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes that train together, each with --threads and --batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        work(0, args)
    else:
        (args.work / "meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(work, (args,), nprocs=args.processes)


def work(rank: int, args) -> None:
    """One training process."""
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        meeting = f"file://{(args.work / 'meeting').absolute()}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
