"""What can be stopped and taken up again: the making of a training set, and a training."""

import argparse
import copy
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.progress import Progress, track
from torch import Tensor, nn

from papr.environment import environment, pick_device
from papr.files import atomic, write_json
from papr.provenance import digest_of
from recipes import average, principal, share_of_rate, weight_groups

BATCH = 64  # pictures that teachers look at together
NOTE_EVERY = 16  # batches between two notes of how far the making of a set is
FIRST = 512  # pictures whose features tell the principal directions
WEIGHT_DECAY = 0.05

Shapes = dict[str, tuple[tuple[int, ...], type]]
Draw = Callable[[int, int], np.ndarray]  # pictures of these numbers, (B, S, S, 3) bytes


def refuse_another(asked: dict[str, Any], before: dict[str, Any], where: Path, option: str) -> None:
    """Keep a run from going on as another one.

    Raises:
        SystemExit: the earlier run, as `where` has it, was asked for something else.
    """
    other = [name for name, value in asked.items() if before.get(name, value) != value]
    if other:
        old, new = ({name: run[name] for name in other} for run in (before, asked))
        raise SystemExit(f"expected {old}, as in {where}, got {new}: give another {option}")


def begun(state: Path, asked: dict[str, Any], option: str) -> dict[str, Any]:
    """How far an earlier run got with a training set.

    Args:
        state: the file in which it says so.
        asked: what the set depends on.
        option: that names another place.

    Raises:
        SystemExit: that run was asked for something else.
    """
    if not state.exists():
        return {**asked, "done": 0, "seconds": 0.0}
    report: dict[str, Any] = json.loads(state.read_text())
    refuse_another(asked, report, state, option)
    return report


def memory_maps(folder: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """Arrays in files, made or opened."""
    made = {}
    for name, (shape, dtype) in shapes.items():
        path = folder / f"{name}.npy"
        new = (path, "r+") if path.exists() else (path, "w+", dtype, shape)
        made[name] = open_memmap(*new)
    return made


def directions(
    path: Path,
    draw: Draw,
    look: Callable[[np.ndarray], Tensor],
    components: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The mean (C,) and the principal directions (C, components) of a teacher's features.

    Args:
        path: of the file that keeps them, once they are known.
        draw: the set's pictures.
        look: at pictures, for features (B, C, h, w).
        components: how many directions.
        device: where they are wanted.
    """
    if not path.exists():
        starts = range(0, FIRST, BATCH)
        features = [look(draw(start, start + BATCH)).cpu() for start in starts]
        with atomic(path) as new:
            torch.save(principal(torch.cat(features), components), new)
    mean, basis = torch.load(path, weights_only=True, map_location=device)
    return mean, basis


def fill(
    maps: dict[str, np.ndarray],
    state: Path,
    report: dict[str, Any],
    draw: Draw,
    find: Callable[[np.ndarray], dict[str, Tensor]],
) -> None:
    """Fill a training set from where it is.

    Args:
        maps: of `memory_maps`: "pictures", and what is found in them.
        state: the file that is told how far the set is.
        report: of `begun`.
        draw: the set's pictures.
        find: what the other maps hold for pictures.
    """
    count, waiting = len(maps["pictures"]), None
    starts = range(report["done"], count, BATCH)
    bar = track(starts, "training set", disable=not os.isatty(2))
    with ThreadPoolExecutor(1) as pool:  # the next pictures while the teachers look at these
        for number, start in enumerate(bar):
            began, stop = time.monotonic(), min(start + BATCH, count)
            batch = (waiting or pool.submit(draw, start, stop)).result()
            if stop < count:
                waiting = pool.submit(draw, stop, min(stop + BATCH, count))
            for name, found in find(batch).items():
                maps[name][start:stop] = found.cpu()
            maps["pictures"][start:stop] = batch
            report["seconds"] += time.monotonic() - began
            if number % NOTE_EVERY == NOTE_EVERY - 1 or stop == count:
                for array in maps.values():
                    array.flush()
                report["done"] = stop
                write_json(state, report)


class Run(ABC):
    """A training: the network, its moving average, the optimizer, and how far they are.

    Each step is the same whenever it runs, so that one that was stopped ends where one would that
    ran through.

    Attributes:
        ANSWER: the name of the first loss.
        FEATURES: the weight of the second, on a teacher's features.
        DECAY: of the moving average.
        EVERY: steps between two checkpoints.

    Args:
        args: the command's: seed, steps, rate, device and what the training itself needs.
        path: of the checkpoint.

    Raises:
        SystemExit: the checkpoint is that of other options.
    """

    ANSWER: str
    FEATURES: float
    DECAY: float
    EVERY: int

    def __init__(self, args: argparse.Namespace, path: Path) -> None:
        self.args, self.path, self.device = args, path, pick_device(args.device)
        self.options = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
        held: dict[str, Any] = {}
        if path.exists():
            held = torch.load(path, weights_only=True, map_location=self.device)
            asked = {k: v for k, v in self.options.items() if k != "device"}
            refuse_another(asked, held.get("options", {}), path, "--out")
        torch.manual_seed(args.seed)
        self.net = self.build()
        self.kept = copy.deepcopy(self.net).eval()
        self.optimizer = torch.optim.AdamW(weight_groups(self.net, WEIGHT_DECAY), lr=args.rate)
        self.done, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        if held:
            self._restore(held)

    @abstractmethod
    def build(self) -> nn.Module:
        """Find the training set; the network to be trained, on the device."""

    @abstractmethod
    def losses(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Of the network on a random batch: what its answer lacks, and what its features do."""

    @abstractmethod
    def held_out(self) -> float:
        """How good the average is on what is not trained on."""

    @abstractmethod
    def write(self) -> None:
        """The average's weights, and beside them how they came about."""

    def step(self) -> tuple[Tensor, Tensor]:
        """The next step, the same whenever it runs."""
        args, began = self.args, time.monotonic()
        torch.manual_seed(args.seed * 1_000_003 + self.done)  # of stochastic depth
        rng = np.random.default_rng([args.seed, self.done])
        for group in self.optimizer.param_groups:
            group["lr"] = args.rate * share_of_rate(self.done, args.steps)
        self.net.train()
        on_answer, on_features = self.losses(rng)
        self.optimizer.zero_grad()
        (on_answer + self.FEATURES * on_features).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        average(self.kept, self.net, self.done, self.DECAY)
        self.done += 1
        self.seconds += time.monotonic() - began
        return on_answer.detach(), on_features.detach()

    def train(self) -> None:
        """All steps that are left; then the weights are written."""
        steps = self.args.steps
        with Progress(disable=not os.isatty(2)) as progress:
            bar = progress.add_task("training", total=steps, completed=self.done)
            while self.done < steps:
                on_answer, on_features = self.step()
                progress.advance(bar)
                if self.done % self.EVERY == 0 or self.done == steps:
                    lost = {self.ANSWER: on_answer.item(), "features": on_features.item()}
                    row = {"step": self.done, **lost, "held_out": self.held_out()}
                    self.curve.append(row)
                    self.save()
                    print(json.dumps(row | {"seconds": self.seconds}), flush=True)
        self.write()

    def save(self) -> None:
        """A checkpoint, in one piece or not at all."""
        held = {
            "net": self.net.state_dict(),
            "kept": self.kept.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "curve": self.curve,
            "options": self.options,
        }
        with atomic(self.path) as new:
            torch.save(held, new)

    def _restore(self, held: dict[str, Any]) -> None:
        self.net.load_state_dict(held["net"])
        self.kept.load_state_dict(held["kept"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.done, self.seconds, self.curve = held["done"], held["seconds"], held["curve"]

    def report(self, file: Path, **facts: object) -> dict[str, Any]:
        """How the weights in a file came about."""
        return {
            "sha256": digest_of(file),
            "options": self.options,
            **facts,
            "environment": environment(self.device),
            "seconds": round(self.seconds),
            "curve": self.curve,
        }
