"""Training, stage by stage: `python -m train.fit STAGE --work DIR`. Every stage resumes from DIR/STAGE.pt.

see     vision encoder and Q-Former on facts alone: what is under each patch, and which object each query stands for
speak   the language model and its projection, on captions and answers, behind what `see` left, which stays as it is
all     everything together, at a lower rate, with the facts still as a second task
match   the retrieval model (ITC and ITM) on the vision encoder of `all`, which stays as it is
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import torch
from torch import nn

from . import evaluate, loop, matching, models, texts
from .pool import Batch, Pool, pixel_values
from .seen import Seen

LEARNING_RATES = {"see": 2e-3, "speak": 2e-3, "all": 5e-4, "match": 1e-3}
# Tokens of the packed texts of one image.
TEXT_LENGTH = 96


def tensors(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


def language_loss(model: nn.Module, queries: torch.Tensor, text: dict[str, torch.Tensor]):
    """Weighted cross-entropy of packed texts behind the projected queries, and the share of right tokens.

    The same computation as Blip2ForConditionalGeneration's for each text alone (a test holds it to that).
    """
    decoder = model.language_model.model.decoder
    prefix = model.language_projection(queries)
    n, width = prefix.shape[:2]
    ids, segments = text["ids"], text["segments"]
    places = torch.arange(width, device=ids.device).expand(n, -1)
    positions = torch.cat([places, text["positions"]], dim=1)
    hidden = torch.cat([prefix, decoder.embed_tokens(ids).to(prefix.dtype)], dim=1)
    hidden = hidden + decoder.embed_positions.weight[positions + decoder.embed_positions.offset]
    group = torch.cat([torch.full_like(places, -1), segments], dim=1)
    seen = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == -1)
    seen &= torch.ones(seen.shape[1:], dtype=torch.bool, device=ids.device).tril()
    mask = torch.zeros(seen.shape, device=ids.device, dtype=torch.bfloat16).masked_fill(~seen, -1e9)[:, None]
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=mask)
    learned = text["labels"] != texts.IGNORED
    hidden = decoder.final_layer_norm(hidden[:, width:][learned])
    logits = (hidden @ decoder.embed_tokens.weight.t()).float()
    labels, weights = text["labels"][learned], text["weights"][learned]
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    return loss, {"words": (logits.argmax(-1) == labels).float().mean()}


def build_modules(args, vocabulary) -> nn.ModuleDict:
    """The generative model and the heads of its second task, on the device."""
    torch.manual_seed(args.seed)
    model = models.build_generative(
        len(vocabulary), texts.newline_id(vocabulary), vocabulary.convert_tokens_to_ids("<image>")
    )
    return nn.ModuleDict({"model": model, "auxiliary": models.Auxiliary()}).to(loop.device())


def hand_over(modules: nn.ModuleDict, path: pathlib.Path) -> None:
    """Starts from the averaged weights of an earlier stage; a side task that is new or has changed its shape starts anew."""
    mine, earlier = modules.state_dict(), earlier_weights(path)
    anew = [n for n in mine if n not in earlier or earlier[n].shape != mine[n].shape]
    if not all(n.startswith(("auxiliary.", "pair.")) for n in anew):
        raise ValueError(f"{path} holds a model of other sizes: {', '.join(anew)}")
    modules.load_state_dict({n: mine[n] if n in anew else earlier[n] for n in mine})


def earlier_weights(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a state file."""
    if not path.exists():
        raise SystemExit(f"{path} is not there: train the earlier stage first, or name its state with --start")
    state = torch.load(path, map_location=loop.device(), weights_only=True)
    return state["modules"] | state["average"]


def new_trainer(args, modules: nn.ModuleDict, **settings) -> loop.Trainer:
    """The trainer of this stage, with the settings of the command line."""
    return loop.Trainer(
        modules,
        args.work / f"{args.name or args.stage}.pt",
        learning_rate=args.rate or LEARNING_RATES[args.stage],
        steps=args.steps,
        warmup=args.warmup,
        decay=args.decay,
        batch_size=args.batch * loop.processes(),
        **settings,
    )


def run(args, trainer: loop.Trainer, make_batch, loss_of, evaluation) -> None:
    trainer.run(
        make_batch,
        loss_of,
        evaluation,
        workers=args.feeders,
        log_every=args.log_every,
        evaluate_every=args.evaluate_every,
        save_every=args.save_every,
    )


def pools(args) -> tuple[Pool, Batch]:
    """Training and validation scenes."""
    folder = args.work / "pool"
    if loop.rank() > 0:
        torch.distributed.barrier()
    found = [Pool(folder, split, count, args.seed, args.workers) for split, count in (("train", args.pool), ("val", 1024))]
    if loop.rank() == 0 and loop.processes() > 1:
        torch.distributed.barrier()
    return found[0], found[1].take(range(1024))


def mean_figures(figures: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each figure over batches."""
    return {k: float(torch.stack([f[k] for f in figures]).mean()) for k in figures[0]}


def facts_figures(modules: nn.ModuleDict, val: Batch, count: int) -> dict[str, float]:
    """Hit rates of the facts on the first validation scenes."""
    figures = []
    for start in range(0, count, 128):
        pixels, owners, facts = tensors(val.part(slice(start, start + 128)), loop.device())
        with loop.autocast():
            tokens, queries = see_images(modules["model"], pixels)
            loss, rates = modules["auxiliary"].losses(tokens[:, 1:], queries, owners, facts)
        figures.append({"loss": loss} | rates)
    return mean_figures(figures)


def fit_see(args) -> None:
    """Stage `see`."""
    device = loop.device()
    vocabulary, _ = texts.load_tokenizers(args.work)
    modules = build_modules(args, vocabulary)
    model, auxiliary = modules["model"], modules["auxiliary"]
    if args.start:
        hand_over(modules, args.start)
    model.language_model.requires_grad_(False)
    model.language_projection.requires_grad_(False)
    train, val = pools(args)

    def loss_of(batch):
        pixels, owners, facts = tensors(batch, device)
        with loop.autocast():
            tokens, queries = see_images(model, pixels)
            return auxiliary.losses(tokens[:, 1:], queries, owners, facts)

    run(
        args,
        new_trainer(args, modules),
        lambda step: train.batch(step, args.batch, args.seed),
        loss_of,
        lambda: facts_figures(modules, val, 512),
    )


def fit_language(args, frozen: bool) -> None:
    """Stages `speak` (vision and Q-Former frozen) and `all`."""
    device = loop.device()
    vocabulary, _ = texts.load_tokenizers(args.work)
    modules = build_modules(args, vocabulary)
    model, auxiliary = modules["model"], modules["auxiliary"]
    hand_over(modules, args.start or args.work / ("see.pt" if frozen else "speak.pt"))
    if frozen:
        for part in (model.vision_model, model.qformer, auxiliary):
            part.requires_grad_(False)
        model.query_tokens.requires_grad_(False)
    train, val = pools(args)

    def make_batch(step):
        batch = train.batch(step, args.batch, args.seed)
        rng = np.random.default_rng([args.seed, 11, step])
        return batch, texts.packed_texts(vocabulary, batch.facts, rng, TEXT_LENGTH, args.repeat)

    def loss_of(parts):
        batch, text = parts
        pixels, owners, facts = tensors(batch, device)
        text = {k: v.to(device) for k, v in text.items()}
        with loop.autocast():
            with torch.set_grad_enabled(not frozen):
                tokens, queries = see_images(model, pixels)
            loss, figures = language_loss(model, queries, text)
            figures["words_loss"] = loss
            if not frozen:
                facts_loss, rates = auxiliary.losses(tokens[:, 1:], queries, owners, facts)
                loss = loss + args.facts_weight * facts_loss
                figures |= rates
        return loss, figures

    def evaluation():
        part = val.part(slice(0, args.evaluate_scenes))
        return facts_figures(modules, val, 256) | evaluate.figures_on_pool(model, vocabulary, part)

    run(args, new_trainer(args, modules), make_batch, loss_of, evaluation)


def fit_match(args) -> None:
    """Stage `match`."""
    device = loop.device()
    opt_vocabulary, vocabulary = texts.load_tokenizers(args.work)
    start = args.start or args.work / "all.pt"
    torch.manual_seed(args.seed)
    modules = matching.build_modules(len(vocabulary)).to(device)
    if "temperature.log" in earlier_weights(start):
        hand_over(modules, start)
    else:
        taught = build_modules(args, opt_vocabulary)
        hand_over(taught, start)
        matching.take_over(modules, taught)
    train, val = pools(args)
    train_tokens = Seen(modules["model"].vision_model, train, args.work / "seen")

    def make_batch(step):
        rows, flip = train.choose(step, args.batch, args.seed)
        facts = train.facts(rows, flip)
        text = matching.make_texts(vocabulary, facts, np.random.default_rng([args.seed, 13, step]))
        return train_tokens.take(rows, flip), torch.from_numpy(facts), text

    def loss_of(parts):
        tokens, facts, text = parts
        text = {k: v.to(device) for k, v in text.items()}
        with loop.autocast():
            return matching.losses(modules, tokens.to(device), facts.to(device), text)

    def evaluation():
        return matching.figures_on_pool(modules, vocabulary, val.part(slice(0, args.evaluate_scenes)))

    run(args, new_trainer(args, modules), make_batch, loss_of, evaluation)


STAGES = {
    "see": fit_see,
    "speak": lambda args: fit_language(args, frozen=True),
    "all": lambda args: fit_language(args, frozen=False),
    "match": fit_match,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the pool, the state files and the logs")
    parser.add_argument("--start", type=pathlib.Path, help="state file of the earlier stage, if not the usual one")
    parser.add_argument("--name", help="name of the state file and the log, if not the stage's")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=int, default=800, help="steps at the end over which the learning rate falls to 0")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="learning rate, if not the stage's own")
    parser.add_argument("--facts-weight", type=float, default=0.3, help="weight of the second task in `all`")
    parser.add_argument("--repeat", type=int, default=2, help="how often relations and comparisons are asked, others once")
    parser.add_argument("--pool", type=int, default=32768, help="training scenes to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes that train together, each with --threads and --batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    parser.add_argument("--feeders", type=int, default=0, help="processes that prepare batches (on a GPU: most of the cores)")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--evaluate-scenes", type=int, default=128)
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
