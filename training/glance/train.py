"""Train glance on what data.py made.

    python training/glance/train.py --data build/glance --out build/glance/glance.safetensors

Started again, it goes on from the last checkpoint. The weights that are written are the moving
average's, batch norms folded, in half precision.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

from network import Trained, folded
from papr.environment import environment, pick_device
from papr.files import atomic, write_json
from papr.proposals.glance import STRIDE
from papr.provenance import digest_of
from teachers import GRID, MAPS, standardised

HELD_OUT = 512  # the last pictures, to see how training goes
#: How much each of `teachers.MAPS` counts in the map that is learnt.
TEACHERS = (1.0, 2.0, 1.0, 2.0)
FEATURES = 0.5  # weight of the auxiliary loss: Lite1's features, cell by cell
DECAY = 0.9995  # of the moving average
WEIGHT_DECAY = 0.05
EVERY = 500  # steps between two checkpoints
LEAST = 10  # cells, a side, of the part of a picture that a batch sees

Batch = tuple[Tensor, Tensor, Tensor]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("build/glance"), metavar="FOLDER")
    options.add_argument("--out", type=Path, default=Path("build/glance/glance.safetensors"))
    options.add_argument("--steps", type=int, default=10_000)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rate", type=float, default=2e-3, help="AdamW's highest")
    options.add_argument("--widths", default="32,64,96", help="channels at strides 4, 8 and 16")
    options.add_argument("--depths", default="0,1,4", help="3 x 3 convolutions at each")
    options.add_argument(
        "--start", type=Path, metavar="FILE", help="checkpoint whose average to begin with"
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    return options.parse_args(argv)


class Pictures:
    """What data.py made, in random batches, mirrored and recoloured."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.pictures, self.maps, self.features = (
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("pictures", "maps", "features")
        )
        done = json.loads((folder / "data.json").read_text())["done"]
        self.count = done - min(HELD_OUT, done // 4)
        self.held_out = np.arange(self.count, done)
        self.device = device

    def batch(self, numbers: np.ndarray) -> Batch:
        """Pixels (B, 3, 224, 224) from -1 to 1, bfloat16; maps to learn (B, 14, 14); features."""
        numbers = np.sort(numbers)
        pixels = torch.from_numpy(self.pictures[numbers]).to(self.device).movedim(3, 1)
        maps = torch.from_numpy(self.maps[numbers]).to(self.device).float()
        weights = maps.new_tensor(TEACHERS).view(1, len(MAPS), 1, 1)
        features = torch.from_numpy(self.features[numbers]).to(self.device).float()
        features = F.interpolate(features, (GRID, GRID), mode="bilinear", align_corners=True)
        pixels = pixels.to(torch.bfloat16).div_(127.5).sub_(1)
        return pixels, standardised((maps * weights).sum(1)), features

    def training(self, size: int, rng: np.random.Generator) -> Batch:
        """A random batch: a part of each picture, recoloured, half of the time mirrored."""
        pixels, target, features = self.batch(rng.choice(self.count, size, replace=False))
        pixels, target, features = part(pixels, target, features, rng)
        batch = recoloured(pixels, rng), target, features
        if rng.random() < 0.5:
            batch = batch[0].flip(-1), batch[1].flip(-1), batch[2].flip(-1)
        return batch


def part(pixels: Tensor, target: Tensor, features: Tensor, rng: np.random.Generator) -> Batch:
    """The same square of each picture and of its maps, 10 to 14 cells a side, at any pixel."""
    cells = int(rng.integers(LEAST, GRID + 1))
    room = (GRID - cells) * STRIDE
    for axis in (-2, -1):
        first = int(rng.integers(room + 1))
        pixels = pixels.narrow(axis, first, cells * STRIDE)
        target, features = (between(t, axis, first / STRIDE, cells) for t in (target, features))
    return pixels, target, features


def between(maps: Tensor, axis: int, first: float, cells: int) -> Tensor:
    """Cells of a map from `first` on, between two cells in a line from one to the other."""
    whole, rest = int(first), first % 1
    found = maps.narrow(axis, whole, cells)
    return torch.lerp(found, maps.narrow(axis, whole + 1, cells), rest) if rest else found


def ranks(maps: Tensor) -> Tensor:
    """The rank of each cell in its map, (B, H, W)."""
    return maps.flatten(1).argsort(1).argsort(1).to(maps).view(maps.shape)


def recoloured(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, brightness and each channel's gain drawn anew; one picture in ten is grey."""
    grey = torch.from_numpy(rng.random(len(pixels)) < 0.1).to(pixels.device)
    pixels[grey] = pixels[grey].mean(1, keepdim=True)
    shape = len(pixels), 3, 1, 1
    draws = np.exp(rng.normal(0, 0.2, (len(pixels), 1, 1, 1)) + rng.normal(0, 0.08, shape))
    gain, light = (
        torch.from_numpy(draw).to(pixels) for draw in (draws, rng.normal(0, 0.15, shape[:1]))
    )
    middle = pixels[..., ::8, ::8].float().mean((1, 2, 3)).to(pixels)
    shift = (middle + light).view(-1, 1, 1, 1) - middle.view(-1, 1, 1, 1) * gain
    return torch.addcmul(shift, pixels, gain)


def correlation(found: Tensor, wanted: Tensor) -> Tensor:
    """Pearson's, of each map (B, H, W): (B,)."""
    return (standardised(found) * standardised(wanted)).mean((-2, -1))


def losses(net: Trained, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the map lacks, and what the features do, each a mean from 0, for right, to 2.

    1 - the correlation with the target, and with its ranks, since patches are chosen by rank;
    1 - the cosine between features.
    """
    pixels, target, features = batch
    with torch.autocast(pixels.device.type, torch.bfloat16):
        found, seen = net.both(pixels.contiguous(memory_format=torch.channels_last))
    apart = 1 - F.cosine_similarity(seen.float(), features, dim=1).mean()
    agree = [correlation(found.float(), wanted).mean() for wanted in (target, ranks(target))]
    return 1 - sum(agree) / 2, apart


def share_of_rate(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to nothing, as a share of the highest."""
    warm = max(1, min(500, steps // 10))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


class Run:
    """A training: the network, its moving average, the optimizer, and how far they are."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.device = pick_device(args.device)
        self.pictures = Pictures(args.data, self.device)
        widths, depths = ([int(n) for n in text.split(",")] for text in (args.widths, args.depths))
        net = Trained(widths, depths)
        if args.start:
            net.load_state_dict(torch.load(args.start, weights_only=True)["kept"])
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.kept = copy.deepcopy(self.net).eval()
        groups = [
            {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.rate)
        self.done, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.path = args.out.with_suffix(".checkpoint.pt")
        if self.path.exists():
            self._restore(torch.load(self.path, weights_only=True, map_location=self.device))

    def step(self) -> tuple[Tensor, Tensor]:
        """The next step, the same whenever it runs."""
        args, began = self.args, time.monotonic()
        rng = np.random.default_rng([args.seed, self.done])
        for group in self.optimizer.param_groups:
            group["lr"] = args.rate * share_of_rate(self.done, args.steps)
        self.net.train()
        on_map, on_features = losses(self.net, self.pictures.training(args.batch, rng))
        self.optimizer.zero_grad()
        (on_map + FEATURES * on_features).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        self.done += 1
        self.seconds += time.monotonic() - began
        return on_map.detach(), on_features.detach()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(DECAY, (self.done + 1) / (self.done + 10))
        states = self.kept.state_dict(), self.net.state_dict()
        for own, new in zip(*(state.values() for state in states), strict=True):
            if own.is_floating_point():
                own.lerp_(new, 1 - decay)
            else:
                own.copy_(new)

    @torch.no_grad()
    def held_out(self) -> float:
        """The average's mean correlation with the target on pictures that are not trained on."""
        found = []
        for numbers in np.array_split(self.pictures.held_out, 4):
            pixels, target, _ = self.pictures.batch(numbers)
            found.append(correlation(self.kept(pixels.float()), target))
        return float(torch.cat(found).mean())

    def save(self) -> None:
        """A checkpoint, in one piece or not at all."""
        held = {
            "net": self.net.state_dict(),
            "kept": self.kept.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        with atomic(self.path) as new:
            torch.save(held, new)

    def _restore(self, held: dict[str, Any]) -> None:
        self.net.load_state_dict(held["net"])
        self.kept.load_state_dict(held["kept"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.done, self.seconds, self.curve = held["done"], held["seconds"], held["curve"]

    def write(self) -> None:
        """The average's weights, and beside them how they came about."""
        args = self.args
        weights = folded(self.kept).state_dict()
        half = {name: weight.half().cpu().contiguous() for name, weight in weights.items()}
        with atomic(args.out) as new:
            save_file(half, new, {"widths": args.widths, "depths": args.depths})
        report = {
            "sha256": digest_of(args.out),
            "options": {k: v for k, v in vars(args).items() if not isinstance(v, Path)},
            "pictures": self.pictures.count,
            "environment": environment(self.device),
            "seconds": round(self.seconds),
            "curve": self.curve,
        }
        write_json(args.out.with_suffix(".json"), report)
        print(f"written to {args.out}")


def main(argv: list[str] | None = None) -> None:
    run = Run(arguments(argv))
    steps = run.args.steps
    with Progress(disable=not os.isatty(2)) as progress:
        bar = progress.add_task("training", total=steps, completed=run.done)
        while run.done < steps:
            on_map, on_features = run.step()
            progress.advance(bar)
            if run.done % EVERY == 0 or run.done == steps:
                row = {"step": run.done, "map": on_map.item(), "features": on_features.item()}
                run.curve.append({**row, "held_out": run.held_out()})
                run.save()
                print(json.dumps(run.curve[-1]), flush=True)
    run.write()


if __name__ == "__main__":
    main()
