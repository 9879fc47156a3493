"""How much of the host's accuracy is left on held-out pictures, and at what time.

The dense host stands beside the host pruned by PaPr (the proposal of this folder), at random,
around the centre, by a uniform stride and by the norm of its own embeddings, at equal numbers of
patches, and the dense host on smaller pictures that have about as many; and the host pruned by PaPr
that also merges tokens beside the one that only merges (ToMe) and the one only pruned, at equal
arithmetic, the proposal's included. Nothing is trained here, nor was the host trained to be pruned.
Time is measured with all rivals in turns in this run: milliseconds per picture and the speed-up
over the dense host, medians with quartiles, the proposal's time included.

Writes results.json and prints the table as Markdown.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import papr
from networks import PATCH, PATCHES, WEIGHTS, load
from papr.baselines import (
    centre_scores,
    lower_resolution,
    norm_scores,
    random_scores,
    stride_scores,
)
from papr.compare.field import merged_to
from papr.environment import environment
from papr.files import write_json
from papr.measure import count_macs, interleave
from papr.selecting import kept_count
from papr.twins import twin

HERE = Path(__file__).parent
ROW_OF_PICTURES = 1  # the seed of the pictures tested on; training looked at none of these
KEEPS = (0.7, 0.5, 0.4, 0.3, 0.2)
FURTHER_KEEPS = (0.7, 0.5, 0.3)  # where the embedding norm and smaller pictures are shown too
MERGE_KEEPS = (0.6, 0.5, 0.4)
CONTROL_KEEP = 0.36  # PaPr alone has about the arithmetic here that it has with ToMe at 0.4
EXAMPLE = torch.zeros(1, 3, data.SIDE, data.SIDE)
MERGE = papr.Merge(r=8, start=0.5, proportional=True)  # after PaPr, as the paper does


@dataclass(frozen=True)
class Rival:
    """One way to run the host.

    Attributes:
        name: who chooses the patches.
        keep: the fraction that stays; 1 for the dense host.
        model: the host made so.
        note: what else must be known, such as the side in pixels; may be empty.
    """

    name: str
    keep: float
    model: nn.Module
    note: str = ""


def rivals(
    host: nn.Module, proposal: papr.Proposal, keeps: tuple[float, ...], seed: int
) -> Iterator[Rival]:
    """The dense host, then at each keep the same host pruned by PaPr and by the rivals."""
    yield Rival("dense", 1.0, twin(host))
    for keep in keeps:
        yield Rival("PaPr", keep, papr.prune(twin(host), keep, proposal))
        yield Rival("random", keep, papr.prune(twin(host), keep, random_scores(seed, PATCH)))
        yield Rival("centre", keep, papr.prune(twin(host), keep, centre_scores(PATCH)))
        yield Rival("stride", keep, papr.prune(twin(host), keep, stride_scores(PATCH)))
        if keep in FURTHER_KEEPS:
            yield Rival("embedding norm", keep, papr.prune(twin(host), keep, norm_scores(host)))
            smaller = lower_resolution(host, kept_count(keep, PATCHES), EXAMPLE)
            yield Rival("lower resolution", keep, smaller, f"{smaller.size[0]} px")


def merging_rivals(
    host: nn.Module, proposal: papr.Proposal, keeps: tuple[float, ...]
) -> Iterator[Rival]:
    """At each keep PaPr + ToMe, then ToMe alone with as many GMACs or a few more."""
    for keep in keeps:
        both = papr.prune(twin(host), keep, proposal, merge=MERGE)
        yield Rival("PaPr + ToMe", keep, both)
        alone, _ = merged_to(host, EXAMPLE, count_macs(both, EXAMPLE).total)
        yield Rival("ToMe", 1.0, alone)


def control(host: nn.Module, proposal: papr.Proposal) -> Rival:
    """PaPr alone at about the arithmetic of PaPr + ToMe at keep 0.4."""
    return Rival("PaPr", CONTROL_KEEP, papr.prune(twin(host), CONTROL_KEEP, proposal))


def networks(folder: Path = WEIGHTS) -> tuple[nn.Module, papr.Proposal]:
    """The trained host and the trained proposal."""
    return load("host", folder), papr.Proposal(
        load("proposal", folder), mean=data.MEAN, std=data.STD
    )


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Held-out pixels (count, 3, 96, 96), normalised, and their classes (count,)."""
    pixels, classes, _ = data.batch("held-out", ROW_OF_PICTURES, range(count))
    return pixels, classes


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: Tensor, classes: Tensor) -> float:
    """Share of pictures whose highest logit is the right one."""
    batches = zip(pixels.split(50), classes.split(50), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(classes)


@torch.inference_mode()
def measure(found: list[Rival], pixels: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Arithmetic and time of each rival on one batch, (B, 3, 96, 96)."""
    macs = [count_macs(rival.model, pixels).per_image(len(pixels)) for rival in found]
    calls = {str(i): partial(rival.model, pixels) for i, rival in enumerate(found)}
    timings = interleave(calls, rounds)
    return [
        {
            "gmacs": macs[i].total / 1e9,
            "gmacs_proposal": macs[i].proposal / 1e9,
            "ms_per_picture": timings[str(i)].ms_per_image(len(pixels)),
            "speedup": timings[str(i)].speedup_over(timings["0"]),
        }
        for i in range(len(found))
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown, the accuracy in per cent."""
    lines = [
        "| patches chosen by | keep | right, % | MMACs | ms per picture | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, gain = ("{:.2f} ({:.2f}-{:.2f})".format(*row[k]) for k in ("ms_per_picture", "speedup"))
        name = ", ".join(filter(None, (row["name"], row["note"])))
        lines.append(
            f"| {name} | {row['keep']:g} | {100 * row['accuracy']:.1f} | "
            f"{1000 * row['gmacs']:.1f} | {ms} | {gain} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--pictures", type=int, default=500, help="held-out pictures (default 500)")
    add("--batch", type=int, default=16, help="pictures a call where time is taken (default 16)")
    add("--rounds", type=int, default=15, help="turns that are timed (default 15)")
    add("--threads", type=int, default=1, help="PyTorch's threads (default 1)")
    add("--seed", type=int, default=0, help="of the random selection (default 0)")
    add("--weights", type=Path, default=WEIGHTS, help="folder of the weights (default weights/)")
    add("--json", type=Path, default=HERE / "results.json", help="where the result is written")
    args = options.parse_args()
    for name in ("pictures", "batch", "rounds", "threads"):
        if getattr(args, name) < 1:
            options.error(f"expected --{name} of at least 1, got {getattr(args, name)}")
    if not (args.weights / "host.safetensors").is_file():
        options.error(f"expected host.safetensors in {args.weights}, found none: run train.py")
    return args


def main() -> None:
    """Print the table, write the file."""
    args = arguments()
    torch.set_num_threads(args.threads)
    host, proposal = networks(args.weights)
    pixels, classes = pictures(args.pictures)
    found = list(rivals(host, proposal, KEEPS, args.seed))
    found += [*merging_rivals(host, proposal, MERGE_KEEPS), control(host, proposal)]
    rows: list[dict[str, Any]] = [
        {
            "name": rival.name,
            "note": rival.note,
            "keep": rival.keep,
            "accuracy": accuracy(rival.model, pixels, classes),
        }
        for rival in found
    ]
    for row, costs in zip(rows, measure(found, pixels[: args.batch], args.rounds), strict=True):
        row.update(costs)
    report = {
        "command": " ".join(["python", "examples/cluttered_digits/evaluate.py", *sys.argv[1:]]),
        "environment": environment(torch.device("cpu")),
        "threads": args.threads,
        "seed": args.seed,
        "pictures": args.pictures,
        "patches": PATCHES,
        "batch": args.batch,
        "rounds": args.rounds,
        "rows": rows,
    }
    write_json(args.json, report)
    print(table(rows))
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
