"""Fine-tune a pruned host beside the dense one, and see what a step costs and what it learns.

Three copies of one host take the same batches in turns: dense; pruned by papr; pruned at random,
the same number of patches, to show what the proposal's choice is worth. Printed are the time of a
training step of each (median and quartiles, the proposal included) and the accuracy of each, before
and after, with its standard error, on images that none of them was fine-tuned on. Differences are
taken image by image.

Without --data the images are SYNTHETIC, drawn on the fly: a smooth grey background with noise, and
on it one small disc; its colour is the class, so a host must get to see the disc. The default host
is a small vision transformer with RANDOM weights: its accuracy says something about this toy task
and nothing about photographs. The proposal's weights are real ones (glance).

With --data a host that knows the names of its classes (--model local-dir:FOLDER, a folder of
timm's) keeps its classifier, and sees those folders that are named like one of its classes. Any
other host gets a new classifier: before it is trained its accuracy is that of guessing.
"""

import argparse
import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import folders
import outcome
import papr
from discs import COLOURS, draw
from folders import Batch, Split
from papr.baselines import random_scores
from papr.environment import pick_device
from papr.evaluate.answers import class_names
from papr.files import check_file, write_json
from papr.hosts.inputs import pixel_shape
from papr.measure import Timing, interleave
from papr.named import create_classifier, meant
from papr.preprocessing import timm_preprocessing
from papr.provenance import RANDOM, Weights
from papr.timm_folders import is_timm
from papr.twins import twin


class Data(NamedTuple):
    """Images as the host takes them.

    Attributes:
        train: batches to train on, without an end.
        test: batches to test on.
        steps: of training.
        facts: what they are, for the result.
    """

    train: Iterator[Batch]
    test: Iterable[Batch]
    steps: int
    facts: dict[str, Any]


def options() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="a folder with one folder of images per class; default synthetic")
    add(
        "--test-every",
        type=int,
        metavar="N",
        help="test on every Nth image of each class in sorted order, train on the others "
        "(default: test on a random fifth of all images)",
    )
    add("--model", help="a timm vision transformer; default: 6 blocks of ViT-Ti, 8-px patches")
    add("--pretrained", action="store_true", help="timm's or the folder's weights for --model")
    add("--keep", type=float, default=0.5, help="fraction of patches that stay (default 0.5)")
    add(
        "--proposal-size",
        type=int,
        help="shorter side in pixels at which the proposal looks (default: as papr.prune chooses)",
    )
    add("--size", type=int, help="side of the images in pixels (default: 96, or the --model's own)")
    add("--batch", type=int, default=8, help="images a step (default 8)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="training steps of each rival (default 40)")
    length.add_argument("--epochs", type=int, help="passes over the images to train on, instead")
    add(
        "--lr",
        type=float,
        default=5e-4,
        help="AdamW's learning rate, which falls with a cosine to nothing (default 5e-4)",
    )
    add("--test", type=int, default=160, help="synthetic images to test on (default 160)")
    add("--seed", type=int, default=0, help="of weights, images and their order (default 0)")
    add("--device", default="cpu", help="cpu, cuda, mps, auto (default cpu)")
    add("--json", type=Path, metavar="FILE", help="write the result there before it is printed")
    return parser


def arguments() -> argparse.Namespace:
    """The command line, refused in one line where it cannot be meant."""
    parser = options()
    args = parser.parse_args()
    of_folders = [name for name in ("test_every", "epochs") if getattr(args, name) is not None]
    if args.pretrained and args.model is None:
        parser.error("--pretrained needs --model: the default host has no trained weights")
    if args.model is not None and not is_timm(args.model):
        parser.error(f"expected a model of timm, got {args.model!r}{meant(args.model)}")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"expected a folder, {args.data} is none")
    if args.data is None and of_folders:
        parser.error(f"expected --data with --{of_folders[0].replace('_', '-')}, got none")
    least = {"steps": 2, "epochs": 1, "test_every": 2, "batch": 1, "test": 2}
    for name, smallest in least.items():
        given = getattr(args, name)
        if given is not None and given < smallest:
            option = name.replace("_", "-")
            parser.error(f"expected --{option} of at least {smallest}, got {given}")
    try:
        papr.PruneConfig(args.keep, proposal_size=args.proposal_size)
        check_file(args.json, "--json")
    except papr.ConfigError as error:
        parser.error(str(error))
    return args


def build(args: argparse.Namespace) -> tuple[nn.Module, Weights]:
    """The host to start from, and what its weights are."""
    if args.model is None:
        # the strongest patch decides: learned in forty steps, where a class token takes hundreds
        small = {"patch_size": 8, "depth": 6, "class_token": False, "global_pool": "max"}
        small["img_size"] = args.size or 96
        return timm.create_model("vit_tiny_patch16_224", **small), Weights(RANDOM)
    size = {} if args.size is None else {"img_size": args.size}
    if args.pretrained:
        return create_classifier(args.model, **size)
    return timm.create_model(args.model, **size), Weights(RANDOM)


def synthetic(args: argparse.Namespace, host: nn.Module, size: int) -> Data:
    """Discs, drawn as they are needed."""
    normalised = timm_preprocessing(host).normalised
    generator = torch.Generator().manual_seed(args.seed)

    def batch(count: int) -> Batch:
        pixels, classes, _ = draw(count, size, generator)
        return normalised(pixels), classes

    test = [batch(min(32, args.test - at)) for at in range(0, args.test, 32)]
    facts = {"name": "synthetic", "classes": len(COLOURS), "test": args.test}
    return Data(iter(lambda: batch(args.batch), None), test, args.steps or 40, facts)


def photographs(args: argparse.Namespace, host: nn.Module, size: int, split: Split) -> Data:
    """Those of a folder; the test's as `papr eval` shows them to this host."""
    steps = args.steps or 40
    if args.epochs is not None:
        steps = args.epochs * math.ceil(len(split.train) / args.batch)
    facts = {
        "name": args.data.resolve().name,
        "classes": split.classes,
        "train": len(split.train),
        "test": len(split.test),
        "test_every": args.test_every,
        "left_out": split.left_out,
    }
    train = folders.endless(
        split.train, folders.training_transform(host, size), args.batch, args.seed
    )
    return Data(
        train, folders.in_order(split.test, timm_preprocessing(host).transform), steps, facts
    )


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


def training_step(model: nn.Module, lr: float, steps: int, feed: Feed) -> Callable[[], object]:
    """One step of AdamW on whatever batch it is the turn of; `steps` of them are to come."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step() -> None:
        pixels, classes = feed.now
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), classes).backward()
        optimizer.step()
        course.step()

    return step


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], object]]:
    """A bar where somebody sees it, and what moves it by one."""
    unseen = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=unseen, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(label, total=total))


def train(
    rivals: dict[str, nn.Module], data: Data, lr: float, device: torch.device
) -> dict[str, Timing]:
    """All rivals in turns on the same batches, and how long their steps took."""
    feed = Feed(data.train, len(rivals), device)
    calls = {name: training_step(model, lr, data.steps, feed) for name, model in rivals.items()}
    warmup = min(2, data.steps - 1)  # steps of training all the same, whose time is not counted
    with progress("training", data.steps * len(rivals)) as advance:

        def turn() -> None:
            advance()
            feed.turn()

        return interleave(calls, data.steps - warmup, warmup, device, turn)


@torch.no_grad()
def right(
    models: dict[str, nn.Module], data: Data, device: torch.device, when: str
) -> dict[str, Tensor]:
    """For each image whether its class has the highest logit, 1 or 0: "<rival> <when>" -> (N,).

    All rivals are asked in one pass, so that an image is decoded once.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in models}
    with progress(f"accuracy {when}", data.facts["test"]) as advance:
        for pixels, classes in data.test:
            for name, model in models.items():
                answers = model.eval()(pixels.to(device)).argmax(1).cpu()
                found[name].append((answers == classes).double())
            for _ in classes:
                advance()
    return {f"{name} {when}": torch.cat(parts) for name, parts in found.items()}


def run(args: argparse.Namespace) -> None:
    """Train the rivals in turns; write, then print what came of it."""
    timm.utils.random_seed(args.seed)
    device = pick_device(args.device)
    start, weights = build(args)
    support = papr.supported(start)
    if not support:
        raise papr.ConfigError(support.reason)
    size = pixel_shape(start)[-1]
    if args.data is None:
        start.reset_classifier(len(COLOURS))
        data = synthetic(args, start, size)
    else:
        names = class_names(start)
        split = folders.read(args.data, names, args.test_every, args.seed)
        if split.left_out:
            print(split.note(), file=sys.stderr)
        if names is None:
            start.reset_classifier(split.classes)
        data = photographs(args, start, size, split)

    rivals = {
        "dense": start.to(device),
        "papr": copy.deepcopy(start),
        "random": copy.deepcopy(start),
    }
    papr.prune(rivals["papr"], args.keep, proposal_size=args.proposal_size)
    papr.prune(rivals["random"], args.keep, random_scores(args.seed))
    answers = right(rivals, data, device, "before")
    timings = train(rivals, data, args.lr, device)
    late = papr.prune(twin(start), args.keep, proposal_size=args.proposal_size)
    answers |= right({**rivals, outcome.LATE: late}, data, device, "after")

    asked = outcome.facts(args, weights, data.facts, device)
    result = asked | {"size": size, "steps": data.steps} | outcome.figures(timings, answers)
    if args.json is not None:
        write_json(args.json, result)
    outcome.show(result)


def main() -> None:
    """What is wrong is said in one line."""
    args = arguments()
    try:
        run(args)
    except papr.PaprError as error:
        sys.exit(f"finetune.py: error: {error}")


if __name__ == "__main__":
    main()
