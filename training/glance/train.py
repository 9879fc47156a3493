"""Train glance on what data.py made.

    python training/glance/train.py --data build/glance --out build/glance/glance.safetensors

Started again, it goes on from the last checkpoint. The weights that are written are the moving
average's, batch norms folded, in half precision.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from papr.files import atomic, write_json
from papr.proposals.glance import STRIDE

sys.path.insert(0, str(Path(__file__).parents[1]))
import checkpoints
from network import Trained, folded
from recipes import recoloured
from teachers import GRID, MAPS, standardised

HELD_OUT = 512  # the last pictures, to see how training goes
#: How much each of `teachers.MAPS` counts in the map that is learnt.
TEACHERS = (1.0, 2.0, 1.0, 2.0)
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


class Run(checkpoints.Run):
    """A training of glance; see `checkpoints.Run`."""

    ANSWER = "map"
    FEATURES = 0.5
    DECAY = 0.9995
    EVERY = 500

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, args.out.with_suffix(".checkpoint.pt"))

    def build(self) -> Trained:
        """See `checkpoints.Run`."""
        args = self.args
        self.pictures = Pictures(args.data, self.device)
        widths, depths = ([int(n) for n in text.split(",")] for text in (args.widths, args.depths))
        net = Trained(widths, depths)
        if args.start:
            net.load_state_dict(torch.load(args.start, weights_only=True)["kept"])
        return net.to(self.device, memory_format=torch.channels_last)

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `checkpoints.Run`."""
        return losses(self.net, self.pictures.training(self.args.batch, rng))

    @torch.no_grad()
    def held_out(self) -> float:
        """The average's mean correlation with the target on pictures that are not trained on."""
        found = []
        for numbers in np.array_split(self.pictures.held_out, 4):
            pixels, target, _ = self.pictures.batch(numbers)
            found.append(correlation(self.kept(pixels.float()), target))
        return float(torch.cat(found).mean())

    def write(self) -> None:
        """The average's weights, norms folded, and beside them how they came about."""
        args = self.args
        weights = folded(self.kept).state_dict()
        half = {name: weight.half().cpu().contiguous() for name, weight in weights.items()}
        with atomic(args.out) as new:
            save_file(half, new, {"widths": args.widths, "depths": args.depths})
        report = self.report(args.out, pictures=self.pictures.count)
        write_json(args.out.with_suffix(".json"), report)
        print(f"written to {args.out}")


def main(argv: list[str] | None = None) -> None:
    Run(arguments(argv)).train()


if __name__ == "__main__":
    main()
