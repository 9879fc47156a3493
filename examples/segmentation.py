"""Dense features of a pruned host: a segmentation head keeps working where patches are missing.

A small vision transformer and a 1 x 1 convolution on its feature map learn to say, for every
pixel, whether it is background or which colour the disc there has. They are trained dense, as
models that people already have were. Then the host is pruned, without training: `papr.features`
gives the same head a feature map of the whole grid, pruned cells filled in by "zero", "nearest" or
"mean". Printed are the time of a forward pass beside dense and the intersection over union of the
discs, beside a selection of as many patches at random.

The images are SYNTHETIC and the host starts from RANDOM weights: the figures say something about
this toy task and nothing about photographs. The proposal's weights are real ones.
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import papr
from discs import COLOURS, draw
from papr.baselines import random_scores
from papr.measure import interleave
from papr.selecting import FILLS
from papr.twins import twin


class Segmenter(nn.Module):
    """A host of timm and a head of one convolution on its dense features."""

    def __init__(self, host: nn.Module, classes: int, fill: str = "zero") -> None:
        super().__init__()
        self.host = host
        self.head = nn.Conv2d(host.num_features, classes, 1)
        self.fill = fill

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to logits (B, classes, H, W)."""
        features, _ = papr.features(self.host, pixels, self.fill)
        return F.interpolate(self.head(features), size=pixels.shape[-2:], mode="bilinear")


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--keep", type=float, default=0.5, help="fraction of patches that stay (default 0.5)")
    add("--size", type=int, default=128, help="side of the images in pixels (default 128)")
    add("--steps", type=int, default=120, help="training steps, dense (default 120)")
    add("--batch", type=int, default=8, help="images a step (default 8)")
    add("--test", type=int, default=96, help="images to test on (default 96)")
    add("--seed", type=int, default=0, help="of weights and images (default 0)")
    args = options.parse_args()
    try:
        papr.PruneConfig(args.keep)
    except papr.ConfigError as error:
        options.error(str(error))
    if args.size % 8 or args.size < 32:
        options.error(f"expected --size of at least 32, a multiple of 8, got {args.size}")
    return args


def labels(classes: Tensor, inside: Tensor) -> Tensor:
    """0 for background, 1 + colour inside the disc: (B, H, W)."""
    return torch.where(inside, 1 + classes[:, None, None], 0)


def train(model: Segmenter, args: argparse.Namespace, generator: torch.Generator) -> None:
    """Train host and head on endless toy images; a pixel of a disc weighs more than background."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    weight = torch.tensor([0.1] + [1.0] * len(COLOURS))
    for _ in track(range(args.steps), "training dense"):
        pixels, *truth = draw(args.batch, args.size, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(normalise(pixels)), labels(*truth), weight).backward()
        optimizer.step()
    model.eval()


def normalise(pixels: Tensor) -> Tensor:
    """From [0, 1] to what timm's AugReg hosts take."""
    return (pixels - 0.5) / 0.5


@torch.no_grad()
def overlap(model: Segmenter, pixels: Tensor, truth: Tensor) -> float:
    """Intersection over union of the discs, the right colour needed, over all test images."""
    found = torch.cat([model(part).argmax(1) for part in pixels.split(16)])
    hit = ((found == truth) & (truth > 0)).sum()
    return (hit / ((found > 0) | (truth > 0)).sum()).item()


def main() -> None:
    """Train dense, prune, compare."""
    args = arguments()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    host = timm.create_model(
        "vit_tiny_patch16_224", img_size=args.size, patch_size=8, depth=8, num_classes=0
    )
    dense = Segmenter(papr.prune(host, keep=1), 1 + len(COLOURS))
    train(dense, args, generator)

    pixels, *truth = draw(args.test, args.size, generator)
    pixels, truth = normalise(pixels), labels(*truth)
    rivals = {"dense": dense}
    for fill in FILLS:
        rivals[f"papr, {fill}"] = prune(dense, fill, args.keep)
    rivals["random, nearest"] = prune(dense, "nearest", args.keep, random_scores(args.seed, cell=8))

    with torch.no_grad():
        calls = {name: lambda m=model: m(pixels[: args.batch]) for name, model in rivals.items()}
        timings = interleave(calls, rounds=9)
    print(f"synthetic images, {args.size} px, batch {args.batch}; trained from random weights")
    print(f"{args.steps} steps dense, then pruned to keep {args.keep:g} without training")
    print(f"{'':18}{'speed-up of a forward pass':>32}{'IoU of discs':>16}")
    for name, model in rivals.items():
        gain = "{:.2f}x ({:.2f}-{:.2f})".format(*timings[name].speedup_over(timings["dense"]))
        print(f"{name:18}{gain:>32}{overlap(model, pixels, truth):>16.3f}")


def prune(dense: Segmenter, fill: str, keep: float, proposal: object = None) -> Segmenter:
    """The same weights with a pruned host. The disc is small: the proposal looks at 160 px."""
    model = twin(dense)
    model.fill = fill
    if proposal is None:
        papr.prune(model.host, keep, proposal_size=160)
    else:
        papr.prune(model.host, keep, proposal)
    return model


if __name__ == "__main__":
    main()
