"""Train the host and the proposal of this example, each on a core of its own, from nothing.

Both are plain classifiers of whole pictures. Neither is told where the digit is, and the host never
sees a pruned picture: it is dense, as people's models are. Each starts on pictures of 48 px, on
which a digit fills more than half, and goes on with those of 96 px (the host's position embedding
is resized in between), since small pictures teach the shape of a digit several times faster.

Every training picture is new. The same --seed, threads and versions give the same networks; another
machine rounds otherwise and gives others about as good. Weights go to OUT/host.safetensors and
OUT/proposal.safetensors (float16) whenever a line is printed, what training reached to
OUT/training.json at the end. Then run evaluate.py.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

import data
from networks import NAMES, WEIGHTS, build, save
from papr.cli.common import environment
from papr.files import write_text

SMALL = 48  # pixels
WARMUP = 100  # steps in which the learning rate rises
LINES = 16  # printed for each network


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    both = {"type": int, "nargs": 2, "metavar": ("SMALL", "LARGE")}
    add("--host-steps", default=[1400, 700], help="steps at 48 px, at 96 px (1400 700)", **both)
    add("--proposal-steps", default=[1000, 1500], help="the same (1000 1500)", **both)
    add("--only", choices=NAMES, help="train this one alone")
    add("--batch", type=int, default=32, help="pictures a step (default 32)")
    add("--lr", type=float, default=2e-3, help="AdamW's highest learning rate (default 2e-3)")
    add("--decay", type=float, default=0.05, help="AdamW's weight decay (default 0.05)")
    add("--test", type=int, default=500, help="held-out pictures to test on (default 500)")
    add("--threads", type=int, default=1, help="threads for each network (default 1)")
    add("--seed", type=int, default=0, help="of weights and pictures (default 0)")
    add("--out", type=Path, default=WEIGHTS, help="folder for what is written (default weights/)")
    args = options.parse_args()
    for name in ("batch", "test", "threads"):
        if getattr(args, name) < 1:
            options.error(f"expected --{name} of at least 1, got {getattr(args, name)}")
    for name in NAMES:
        steps = getattr(args, f"{name}_steps")
        if min(steps) < 1:
            options.error(f"expected --{name}-steps of at least 1 each, got {steps}")
    return args


@torch.no_grad()
def accuracy(model: nn.Module, count: int) -> float:
    """Share of the first `count` held-out pictures whose highest logit is the right one."""
    model.eval()
    right = 0
    for first in range(0, count, 50):
        pixels, classes, _ = data.batch("held-out", 0, range(first, min(first + 50, count)))
        right += int((model(pixels).argmax(1) == classes).sum())
    model.train()
    return right / count


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...]) -> float:
    """One step; returns the share of the batch that was right before it."""
    pixels, classes, _ = batch
    logits = model(pixels)
    optimizer.zero_grad()
    F.cross_entropy(logits, classes).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float((logits.argmax(1) == classes).float().mean())


def train(name: str, args: argparse.Namespace) -> None:
    """Train one network, print how it goes, write its weights and its record."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    small, large = getattr(args, f"{name}_steps")
    total = small + large
    model = build(name, SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.decay)
    warmup = min(WARMUP, total)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 1 - n / total)
    )
    right: list[float] = []
    for n in range(total):
        if n == small:
            _enlarge(model, optimizer)
        indices = range(n * args.batch, (n + 1) * args.batch)
        side = SMALL if n < small else data.SIDE
        right.append(step(model, optimizer, data.batch("train", args.seed, indices, side)))
        rate.step()
        if (n + 1) % max(1, total // LINES) == 0:
            mean = sum(right[-50:]) / len(right[-50:])
            minutes = (time.perf_counter() - start) / 60
            print(
                f"{name:8} step {n + 1:5}/{total} at {side} px: {mean:.3f} of the last training "
                f"pictures right, {minutes:.1f} minutes",
                flush=True,
            )
            save(model, args.out / f"{name}.safetensors")
    save(model, args.out / f"{name}.safetensors")
    minutes = (time.perf_counter() - start) / 60
    reached = accuracy(model, args.test)
    print(f"{name:8} {reached:.3f} of {args.test} held-out pictures right", flush=True)
    record = {"steps": [small, large], "minutes": round(minutes, 1), "held_out_accuracy": reached}
    write_text(args.out / f".{name}.json", json.dumps(record))


def _enlarge(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make the host ready for the larger pictures; a ConvNet is anyway."""
    if not hasattr(model, "set_input_size"):
        return
    before = model.pos_embed
    model.set_input_size(img_size=data.SIDE)  # makes another parameter, to be trained in its place
    for group in optimizer.param_groups:
        group["params"] = [model.pos_embed if p is before else p for p in group["params"]]


def _record(args: argparse.Namespace) -> dict[str, Any]:
    """What training reached, and how."""
    networks = {}
    for name in NAMES:
        part = args.out / f".{name}.json"
        if part.exists():
            networks[name] = json.loads(part.read_text())
            part.unlink()
    return {
        "command": " ".join(["python", "examples/cluttered_digits/train.py", *sys.argv[1:]]),
        "seed": args.seed,
        "batch": args.batch,
        "lr": args.lr,
        "weight_decay": args.decay,
        "threads_each": args.threads,
        "load_average_at_the_end": [round(load, 1) for load in os.getloadavg()],
        "environment": environment(torch.device("cpu")),
        "held_out_pictures": args.test,
        "networks": networks,
    }


def main() -> None:
    """Train both at once and write what was reached."""
    args = arguments()
    data.digits("train"), data.photographs("train")  # what is missing is said once, not twice
    names = [args.only] if args.only else list(NAMES)
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=train, args=(name, args)) for name in names]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        sys.exit(1)
    write_text(args.out / "training.json", json.dumps(_record(args), indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
