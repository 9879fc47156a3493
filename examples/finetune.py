"""Fine-tune a pruned host beside the dense one, and see what a step costs and what it learns.

Three copies of one host take the same batches in turns: dense; pruned by papr; pruned at random,
the same number of patches, to show what the proposal's choice is worth. Printed are the time of a
training step of each (median and quartiles, the proposal included) and the accuracy of each on
images that none of them was trained on.

Without --data the images are SYNTHETIC, drawn on the fly: a smooth grey background with noise, and
on it one small disc; its colour is the class, so a host must get to see the disc. The default host
is a small vision transformer with RANDOM weights: its accuracy says something about this toy task
and nothing about photographs. The proposal's weights are real ones (glance).
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import papr
from discs import COLOURS, draw
from papr.baselines import random_scores
from papr.measure import Timing, interleave, quartiles
from papr.twins import twin

Batch = tuple[Tensor, Tensor]  # pixels (B, 3, H, W) normalised for the host, classes (B,)


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, help="a folder with one folder of images per class; default synthetic")
    add("--model", help="a timm vision transformer; default: 6 blocks of ViT-Ti, 8-px patches")
    add("--pretrained", action="store_true", help="download timm's weights for --model")
    add("--keep", type=float, default=0.5, help="fraction of patches that stay (default 0.5)")
    add(
        "--proposal-size",
        type=int,
        default=128,
        help="shorter side in pixels at which the proposal looks; a small image is enlarged for "
        "it, since its map has one cell for 32 pixels (default 128)",
    )
    add("--size", type=int, help="side of the images in pixels (default: 96, or the --model's own)")
    add("--batch", type=int, default=8, help="images a step (default 8)")
    add("--steps", type=int, default=40, help="training steps of each rival (default 40)")
    add("--lr", type=float, default=5e-4, help="AdamW's learning rate (default 5e-4)")
    add("--test", type=int, default=160, help="synthetic images to test on (default 160)")
    add("--seed", type=int, default=0, help="of weights, images and their order (default 0)")
    add("--device", default="cpu", help="cpu, cuda, mps (default cpu)")
    args = options.parse_args()
    if args.pretrained and args.model is None:
        options.error("--pretrained needs --model: the default host has no trained weights")
    if args.data is not None and not args.data.is_dir():
        options.error(f"expected a folder, {args.data} is none")
    if args.steps < 2:
        options.error(f"expected --steps of at least 2, got {args.steps}")
    try:
        papr.PruneConfig(args.keep, proposal_size=args.proposal_size)
    except papr.ConfigError as error:
        options.error(str(error))
    return args


def build(args: argparse.Namespace, classes: int) -> nn.Module:
    """The host to start from."""
    if args.model is None:
        # the strongest patch decides: learned in forty steps, where a class token takes hundreds
        small = {"patch_size": 8, "depth": 6, "class_token": False, "global_pool": "max"}
        small["img_size"] = args.size or 96
        return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **small)
    size = {} if args.size is None else {"img_size": args.size}
    return timm.create_model(args.model, args.pretrained, num_classes=classes, **size)


def synthetic_batches(
    args: argparse.Namespace, size: int, normalise: Callable[[Tensor], Tensor]
) -> tuple[Iterator[Batch], list[Batch]]:
    """An endless stream to train on, and batches to test on."""
    generator = torch.Generator().manual_seed(args.seed)

    def batch(count: int) -> Batch:
        pixels, classes, _ = draw(count, size, generator)
        return normalise(pixels), classes

    test = [batch(min(32, args.test - at)) for at in range(0, args.test, 32)]
    return iter(lambda: batch(args.batch), None), test


def folder_batches(
    args: argparse.Namespace, size: int, normalise: Callable[[Tensor], Tensor]
) -> tuple[Iterator[Batch], list[Batch]]:
    """The same from a folder of images: four fifths to train on, the rest to test on."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    look = [v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, True)]
    images = ImageFolder(str(args.data), v2.Compose([*look, normalise]))
    generator = torch.Generator().manual_seed(args.seed)
    part = torch.utils.data.random_split(images, [0.8, 0.2], generator)
    load = torch.utils.data.DataLoader

    def stream() -> Iterator[Batch]:
        while True:
            yield from load(part[0], args.batch, shuffle=True, generator=generator)

    return stream(), list(load(part[1], 32))


class Feed:
    """Hands each batch to every rival in turn; the next is made while no clock runs."""

    def __init__(self, batches: Iterator[Batch], rivals: int, device: torch.device) -> None:
        self.batches, self.rivals, self.device = batches, rivals, device
        self.turns = 0
        self._next()

    def _next(self) -> None:
        pixels, classes = next(self.batches)
        self.now = pixels.to(self.device), classes.to(self.device)

    def turn(self) -> None:
        """After every rival's turn."""
        self.turns += 1
        if self.turns % self.rivals == 0:
            self._next()


def training_step(model: nn.Module, lr: float, feed: Feed) -> Callable[[], object]:
    """One step of AdamW on whatever batch it is the turn of."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)

    def step() -> None:
        pixels, classes = feed.now
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), classes).backward()
        optimizer.step()

    return step


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    """Share of images whose highest logit is the right one."""
    model.eval()
    right = [model(x.to(device)).argmax(1).cpu() == y for x, y in batches]
    return torch.cat(right).float().mean().item()


def report(name: str, timing: Timing | None, dense: Timing, right: float) -> None:
    """One line of the table."""
    times = f"{'not trained pruned':>40}"
    if timing is not None:
        step = [1000 * value for value in quartiles(timing.seconds)]
        gain = timing.speedup_over(dense)
        times = "{:8.0f} ({:.0f}-{:.0f})".format(*step).rjust(20)
        times += "{:8.2f}x ({:.2f}-{:.2f})".format(*gain).rjust(20)
    print(f"{name:28}{times}{right:10.3f}")


def main() -> None:
    """Train the rivals in turns, print a table."""
    args = arguments()
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    folders = [] if args.data is None else [p for p in args.data.iterdir() if p.is_dir()]
    start = build(args, len(folders) or len(COLOURS)).to(device)
    support = papr.supported(start)
    if not support:
        sys.exit(f"finetune.py: error: {support.reason}")
    config = timm.data.resolve_model_data_config(start)
    embed = getattr(start, "patch_embed", None)
    size = args.size or (config["input_size"][-1] if embed is None else embed.img_size[0])
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    batches, test = (folder_batches if folders else synthetic_batches)(
        args, size, lambda pixels: (pixels - mean) / std
    )

    rivals = {"dense": start, "papr": copy.deepcopy(start), "random": copy.deepcopy(start)}
    papr.prune(rivals["papr"], args.keep, proposal_size=args.proposal_size)
    papr.prune(rivals["random"], args.keep, random_scores(args.seed))
    feed = Feed(batches, len(rivals), device)
    calls = {name: training_step(model, args.lr, feed) for name, model in rivals.items()}
    warmup = min(2, args.steps - 1)  # steps of training all the same, whose time is not counted
    timings = interleave(calls, args.steps - warmup, warmup, device, feed.turn)

    weights = f"{args.model}'s pretrained" if args.pretrained else "random"
    source = f"images of {args.data.name}" if folders else "synthetic images"
    print(f"{source}, {size} px, batch {args.batch}; weights to start from: {weights}")
    print(f"{args.steps} steps each, in turns; keep {args.keep:g}")
    print(f"{'':28}{'ms per step':>20}{'speed-up':>20}{'accuracy':>10}")
    for name, model in rivals.items():
        kept = "" if name == "dense" else f", keep {args.keep:g}"
        report(name + kept, timings[name], timings["dense"], accuracy(model, test, device))
    late = papr.prune(twin(start), args.keep, proposal_size=args.proposal_size)
    report("dense, pruned afterwards", None, timings["dense"], accuracy(late, test, device))


if __name__ == "__main__":
    main()
