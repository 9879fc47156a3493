"""How much accuracy does a real transformer lose? A trained host, test photographs, every rival.

    python benchmarks/photographs.py

The host is a small vision transformer trained on Caltech-101 (training/caltech_host), never on the
photographs of this test and never to be pruned. At each keep stand beside PaPr: selections of as
many patches at random, around the centre, evenly spread, by the norm of the host's embeddings and
by its class attention; the host on a smaller picture; ToMe at PaPr's GMACs; further reductions on
top of PaPr; and larger pictures pruned to as many patches. Twice: photographs as they are, and off
the centre on another one's blurred ground (`composites.py`).

Each figure is a mean and its standard error over the photographs; differences are taken photograph
by photograph. Time is of one batch, all ways in turns in one run, whoever looks first included.
What has been judged is on disk at once, and a run that was stopped goes on.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

import papr
from common import HERE, RESULTS, SHARED, report
from composites import off_centre
from papr.compare.field import DENSE, PAPR, Makers
from papr.compare.rivals import tokens_left
from papr.environment import pick_device
from papr.errors import PaprError
from papr.files import write_json
from papr.measure import count_macs, interleave, mean_and_error
from papr.proposals import wheels
from papr.proposals.scorers import resize
from papr.provenance import digest_of
from papr.twins import twin

TRAINING = HERE.parent / "training"
sys.path[:0] = [str(TRAINING), str(TRAINING / "caltech_host")]
import architectures  # noqa: E402
import views  # noqa: E402

KEEPS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
WORLDS = ("as they are", "off centre")
BATCH = 64  # photographs that are judged at once
#: Larger pictures, in sides of the host's own; the photographs have no more detail.
LARGER = (8 / 7, 9 / 7, 10 / 7)
POOLED = 8  # means that what is pruned leaves behind
RECUT = papr.Recut(keep=0.7)  # in the middle block

Pictures = dict[str, Tensor]  # world -> bytes (N, 3, S, S)


@dataclass(frozen=True)
class Way:
    """One way to run the host.

    Attributes:
        name: of the way.
        keep: the fraction of patches it was asked for; 1 where nothing is pruned.
        side: of the pictures it is given, in pixels.
        model: pixels (B, 3, side, side), normalised, to logits.
        note: what else must be known; may be empty.
    """

    name: str
    keep: float
    side: int
    model: nn.Module
    note: str = ""

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.name} {self.keep:g} {self.side}"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--host", type=Path, default=TRAINING / "caltech_host" / "vit", metavar="FOLDER")
    add("--data", type=Path, default=SHARED, metavar="FOLDER", help="holds caltech-101/")
    add("--keeps", type=float, nargs="+", default=KEEPS, metavar="KEEP")
    add("--limit", type=int, metavar="N", help="photographs, evenly drawn, for a try")
    add("--batch", type=int, default=32, help="photographs that are timed at once (default 32)")
    add("--rounds", type=int, default=9, help="timed turns (default 9)")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--json", type=Path, help="default benchmarks/results/photographs-<host>-<device>.json")
    args = options.parse_args(argv)
    device = pick_device(args.device)
    args.json = args.json or RESULTS / f"photographs-{args.host.name}-{device.type}.json"
    return args


def worlds(data: Path, side: int, limit: int | None = None) -> tuple[Pictures, Tensor]:
    """The test photographs as they are and off centre, (N, 3, side, side), and their classes."""
    photos = views.photographs(data, test=True)
    if limit is not None and limit < len(photos):
        photos = [photos[i] for i in np.linspace(0, len(photos) - 1, limit).astype(int)]
    pixels = torch.stack(
        [torch.from_numpy(views.whole(photo.path, side).copy()) for photo in photos]
    ).movedim(3, 1)
    moved = off_centre(pixels.float() / 255).pixels
    made = {WORLDS[0]: pixels, WORLDS[1]: (moved * 255).round().to(torch.uint8)}
    return made, torch.tensor([photo.label for photo in photos])


def at_side(pictures: Tensor, side: int) -> Tensor:
    """Bytes (B, 3, S, S) as a host takes them, at another side."""
    pixels = architectures.normalised(pictures)
    return pixels if pixels.shape[-1] == side else resize(pixels, side)


def resized(host: nn.Module, side: int) -> nn.Module:
    """The host for pictures of another side, its positions interpolated."""
    other = copy.deepcopy(host)
    if hasattr(other, "set_input_size"):
        other.set_input_size(img_size=(side, side))
    return other


def pruned(host: nn.Module, side: int) -> Callable[..., nn.Module]:
    """PaPr on this host."""
    lite0 = papr.Proposal(wheels.LITE0)

    def make(keep: float, name: str) -> nn.Module:
        options: dict[str, dict[str, Any]] = {
            PAPR: {},
            "papr, glance at twice the size": {"proposal_size": 2 * side},
            "papr, Lite0 at 160 px": {"proposal": lite0, "proposal_size": 160},
            "papr, Lite0 at 224 px": {"proposal": lite0, "proposal_size": 224},
            "papr, softcam of Lite0 at 224 px": {
                "proposal": lite0,
                "proposal_size": 224,
                "score": "softcam",
            },
            "papr + pooling": {"pool": POOLED},
            "papr + second cut": {"recut": RECUT},
        }
        return papr.prune(twin(host), keep, **options[name])

    return make


OURS = (
    PAPR,
    "papr, glance at twice the size",
    "papr, Lite0 at 160 px",
    "papr, Lite0 at 224 px",
    "papr, softcam of Lite0 at 224 px",
    "papr + pooling",
    "papr + second cut",
)


def ways_at(host: nn.Module, side: int, keep: float) -> tuple[list[Way], dict[str, str]]:
    """All ways at one keep, and why those that this host cannot have are missing."""
    makers = Makers(host, torch.zeros(1, 3, side, side), keep, {})
    ours = pruned(host, side)
    all_of_them = {name: partial(ours, keep, name) for name in OURS} | makers.others()
    found, missing = [], {}
    for name, make in all_of_them.items():
        try:
            model = make()
        except PaprError as error:
            missing[name] = str(error)
            continue
        size = getattr(model, "size", None)
        note = makers.notes.get(name, f"{size[0]} px" if size else "")
        found.append(Way(name, keep, side, model, note))
    for larger in (round(side * times) for times in LARGER):
        share = keep * (side / larger) ** 2
        model = papr.prune(resized(host, larger), share)
        found.append(Way(f"papr, {larger} px pictures", keep, larger, model, f"keep {share:.3g}"))
    return found, missing


def ways(host: nn.Module, side: int, keeps: tuple[float, ...]) -> tuple[list[Way], dict[str, str]]:
    """The dense host at its own and at larger sides, those pruned to its tokens, then each keep."""
    found, missing = [Way(DENSE, 1.0, side, twin(host))], {}
    for larger in (round(side * times) for times in LARGER):
        big = resized(host, larger)
        found.append(Way(f"dense, {larger} px pictures", 1.0, larger, big))
        share = (side / larger) ** 2
        model = papr.prune(twin(big), share)
        found.append(Way(f"papr, {larger} px pictures", 1.0, larger, model, f"keep {share:.3g}"))
    for keep in keeps:
        more, without = ways_at(host, side, keep)
        found += more
        missing |= without
    return found, missing


@torch.inference_mode()
def right(way: Way, pictures: Tensor, labels: Tensor, device: torch.device) -> list[int]:
    """For each photograph whether the host classifies it right, 1 or 0."""
    model = way.model.to(device).eval()
    answers = [
        model(at_side(part.to(device), way.side)).argmax(1).cpu() for part in pictures.split(BATCH)
    ]
    return (torch.cat(answers) == labels).int().tolist()


class Judged:
    """What has been judged, on disk as soon as it is known.

    Args:
        path: of the file.
        asked: what makes an earlier run's answers this run's.
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path, self.asked = path, asked
        self.found: dict[str, dict[str, list[int]]] = {}
        if path.exists():
            held = json.loads(path.read_text())
            self.found = held["found"] if held["asked"] == asked else {}

    def add(self, way: Way, answers: dict[str, list[int]]) -> None:
        """Keep the answers of one way."""
        self.found[way.key] = answers
        write_json(self.path, {"asked": self.asked, "found": self.found})


def figures(way: Way, found: dict[str, dict[str, list[int]]], first: Way) -> dict[str, Any]:
    """Accuracy of one way; its loss against dense; and how much more PaPr has at this keep."""
    own = {world: torch.tensor(answers) for world, answers in found[way.key].items()}
    dense = {world: torch.tensor(found[first.key][world]) for world in own}
    made = {
        "top1": {world: mean_and_error(values) for world, values in own.items()},
        "less dense": {world: mean_and_error(own[world] - dense[world]) for world in own},
    }
    ours = found.get(Way(PAPR, way.keep, first.side, way.model).key)
    if ours and way.name != PAPR:
        made["papr less this"] = {
            world: mean_and_error(torch.tensor(ours[world]) - own[world]) for world in own
        }
    return made


def costs(
    all_ways: list[Way], pictures: Tensor, batch: int, rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Tokens, GMACs and time of each way, all in turns."""
    sides = {way.side for way in all_ways}
    batches = {side: at_side(pictures[:batch].to(device), side) for side in sides}
    calls = {way.key: partial(way.model, batches[way.side]) for way in all_ways}
    with Progress(disable=not os.isatty(2)) as progress:
        bar = progress.add_task("timing", total=len(calls) * (rounds + 2))
        with torch.inference_mode():
            turn = partial(progress.advance, bar)
            timings = interleave(calls, rounds, 2, device, turn)
            dense = timings[all_ways[0].key]
            for way in all_ways:
                one = batches[way.side][:1]
                macs, time = count_macs(way.model, one), timings[way.key]
                yield {
                    "tokens": tokens_left(way.model, one),
                    "gmacs_host": macs.host / 1e9,
                    "gmacs_proposal": macs.proposal / 1e9,
                    "ms_per_image": time.ms_per_image(batch),
                    "speedup": time.speedup_over(dense),
                }


def judge(
    all_ways: list[Way],
    pictures: Pictures,
    labels: Tensor,
    judged: Judged,
    device: torch.device,
) -> None:
    """Ask every way about every photograph, those that have been asked before apart."""
    waiting = [way for way in all_ways if way.key not in judged.found]
    with Progress(disable=not os.isatty(2)) as progress:
        for way in progress.track(waiting, description="judging"):
            judged.add(
                way, {world: right(way, pictures[world], labels, device) for world in WORLDS}
            )


def print_row(row: dict[str, Any]) -> None:
    cells = "  ".join("{:.3f} ({:.3f})".format(*row["top1"][world]) for world in WORLDS)
    cost = "{:.3f} + {:.3f} GMACs  {:.2f} ms  {:.2f}x".format(
        row["gmacs_host"], row["gmacs_proposal"], row["ms_per_image"][0], row["speedup"][0]
    )
    print(f"{row['way']:36} {row['keep']:<4g} {row['tokens']:4} {cells}  {cost}  {row['note']}")


def main() -> None:
    args = arguments()
    device = pick_device(args.device)
    host, side = architectures.read(args.host)
    weights = digest_of(args.host / "model.safetensors")
    all_ways, missing = ways(host, side, tuple(args.keeps))
    largest = max(way.side for way in all_ways)
    pictures, labels = worlds(args.data, largest, args.limit)
    print(f"{len(labels)} photographs, {len(all_ways)} ways", flush=True)
    asked = f"{weights} {len(labels)} {largest}"
    judged = Judged(args.json.with_suffix(".judged.json"), asked)
    judge(all_ways, pictures, labels, judged, device)
    costs_of = costs(all_ways, pictures[WORLDS[0]], args.batch, args.rounds, device)
    rows = [
        {"way": way.name, "keep": way.keep, "side": way.side, "note": way.note}
        | cost
        | figures(way, judged.found, all_ways[0])
        for way, cost in zip(all_ways, costs_of, strict=True)
    ]
    write_json(
        args.json,
        report(
            device,
            host={"name": args.host.name, "sha256": weights, "side": side},
            photographs=len(labels),
            batch=args.batch,
            rounds=args.rounds,
            missing=missing,
            rows=rows,
        ),
    )
    judged.path.unlink(missing_ok=True)
    for row in rows:
        print_row(row)
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
