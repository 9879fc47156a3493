"""Train the host and the proposal of this example, each on a core of its own, from nothing.

Both are plain classifiers of whole pictures. Neither is told where the digit is, and no picture is
ever pruned in training: the host is dense, as people's models are. Pictures grow from 48 px, on
which a digit fills more than half, through 72 to 96 px, since small ones teach the shape of a digit
several times faster. To the host a smaller picture is one that stands somewhere in the large one's
place: it gets the position embedding of a random window.

Every training picture is new. The same --seed, threads and versions give the same networks; another
machine rounds otherwise and gives others about as good. Weights go to OUT/host.safetensors and
OUT/proposal.safetensors (float16) whenever a line is printed; what training reached, to
OUT/host.json and OUT/proposal.json at the end. Then run evaluate.py.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, multiprocessing, nn

import data
from networks import NAMES, PATCH, WEIGHTS, build, save
from papr.environment import environment
from papr.files import write_json

SIDES = (48, 72, data.SIDE)  # pixels, the pictures' as training goes on
GRID = data.SIDE // PATCH  # patches along each side
BETAS = {"host": (0.9, 0.98), "proposal": (0.9, 0.999)}  # AdamW's
WARMUP = 100  # steps in which the learning rate rises
LINES = 16  # printed for each network


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    each = {"type": int, "nargs": 3, "metavar": tuple(f"AT_{side}_PX" for side in SIDES)}
    add("--host-steps", default=[500, 200, 1600], help="steps (500 200 1600)", **each)
    add("--proposal-steps", default=[1000, 0, 1500], help="steps (1000 0 1500)", **each)
    add("--only", choices=NAMES, help="train this one alone")
    add("--batch", type=int, default=32, help="pictures a step (default 32)")
    add("--lr", type=float, default=2e-3, help="AdamW's highest learning rate (default 2e-3)")
    add("--decay", type=float, default=0.05, help="AdamW's weight decay (default 0.05)")
    add("--test", type=int, default=500, help="held-out pictures to test on (default 500)")
    add("--threads", type=int, default=1, help="threads for each network (default 1)")
    add("--seed", type=int, default=0, help="of weights and pictures (default 0)")
    add("--out", type=Path, default=WEIGHTS, help="folder for what is written (default weights/)")
    args = options.parse_args(given)
    for name in ("batch", "test", "threads"):
        if getattr(args, name) < 1:
            options.error(f"expected --{name} of at least 1, got {getattr(args, name)}")
    for name in NAMES:
        steps = getattr(args, f"{name}_steps")
        if min(steps) < 0 or not sum(steps):
            options.error(f"expected --{name}-steps of at least 0, not all 0, got {steps}")
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


class Student(nn.Module):
    """A network that learns from pictures of several sizes.

    The host's position embedding, (1, 144, C), belongs to the largest; a smaller picture gets that
    of a window of it. It starts as sines and cosines of row and column, which look alike anywhere.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = build(name)
        self.host = name == "host"
        if self.host:
            # timm's 0.02 is meant for networks ten times as wide
            self.model.blocks.apply(_xavier)
            waves = build_sincos2d_pos_embed([GRID, GRID], self.model.embed_dim)
            self.model.pos_embed.data = 0.5 * waves[None]
            self.model.patch_embed.strict_img_size = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, side, side), side at most 96, to logits (B, 10)."""
        side = pixels.shape[-1] // PATCH
        if not self.host or side == GRID:
            return self.model(pixels)
        top, left = torch.randint(GRID - side + 1, (2,)).tolist()
        whole = self.model.pos_embed.unflatten(1, (GRID, GRID))
        window = whole[:, top : top + side, left : left + side].flatten(1, 2)
        return torch.func.functional_call(self.model, {"pos_embed": window}, pixels)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def step(
    student: Student, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor]
) -> float:
    """One step; returns the share of the batch that was right before it."""
    pixels, classes, _ = batch
    logits = student(pixels)
    loss = F.cross_entropy(logits, classes)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return float((logits.argmax(1) == classes).float().mean())


def train(name: str, args: argparse.Namespace) -> None:
    """Train one network, print how it goes, write its weights and its record."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    steps = getattr(args, f"{name}_steps")
    sides = [side for side, count in zip(SIDES, steps, strict=True) for _ in range(count)]
    student = Student(name)
    model = student.model
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, BETAS[name], weight_decay=args.decay)
    warmup = min(WARMUP, len(sides))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 1 - n / len(sides))
    )
    right: list[float] = []
    for n, side in enumerate(sides):
        indices = range(n * args.batch, (n + 1) * args.batch)
        right.append(step(student, optimizer, data.batch("train", args.seed, indices, side)))
        rate.step()
        if (n + 1) % max(1, len(sides) // LINES) == 0:
            mean = sum(right[-50:]) / len(right[-50:])
            minutes = (time.perf_counter() - start) / 60
            print(
                f"{name:8} step {n + 1:4}/{len(sides)} at {side} px: {mean:.3f} of the last "
                f"training pictures right, {minutes:.1f} minutes",
                flush=True,
            )
            save(model, args.out / f"{name}.safetensors")
    save(model, args.out / f"{name}.safetensors")
    minutes = (time.perf_counter() - start) / 60
    reached = accuracy(model, args.test)
    print(f"{name:8} {reached:.3f} of {args.test} held-out pictures right", flush=True)
    record = _record(args, steps, minutes, reached)
    write_json(args.out / f"{name}.json", record)


def _record(
    args: argparse.Namespace, steps: list[int], minutes: float, reached: float
) -> dict[str, Any]:
    """What training reached, and how."""
    return {
        "command": " ".join(["python", "examples/cluttered_digits/train.py", *args.given]),
        "seed": args.seed,
        "sides": SIDES,
        "steps": steps,
        "batch": args.batch,
        "lr": args.lr,
        "weight_decay": args.decay,
        "threads": args.threads,
        "minutes": round(minutes, 1),
        "load_average_at_the_end": [round(load, 1) for load in os.getloadavg()],
        "held_out_pictures": args.test,
        "held_out_accuracy": reached,
        "environment": environment(torch.device("cpu")),
    }


def main(given: list[str]) -> None:
    """Train both at once, or the one that was asked for."""
    args = arguments(given)
    args.given = given
    for split in data.SPLITS:  # what is missing is said once, before anything starts
        data.digits(split), data.photographs(split)
    if args.only:
        train(args.only, args)
        return
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=train, args=(name, args)) for name in NAMES]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        sys.exit(1)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
