"""What came of a fine-tuning: as plain data beside what was asked, and as a table."""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papr.environment import environment
from papr.measure import Timing, mean_and_error, quartiles
from papr.provenance import Weights

LATE = "dense, pruned afterwards"
#: Which accuracies are compared, image by image: each less the other.
COMPARED = (
    ("papr after", "dense before"),
    ("papr after", "papr before"),
    ("papr after", "dense after"),
    ("papr after", "random after"),
    ("papr after", f"{LATE} after"),
)


def figures(timings: dict[str, Timing], answers: dict[str, Tensor]) -> dict[str, Any]:
    """What the result says: each rival's times and accuracies, and the differences."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in (*timings, LATE)}
    for name, timing in timings.items():
        rows[name]["ms_per_step"] = [1000 * value for value in quartiles(timing.seconds)]
        rows[name]["speedup"] = timing.speedup_over(timings["dense"])
    for name, row in rows.items():
        for when in ("before", "after"):
            if (values := answers.get(f"{name} {when}")) is not None:
                row[when] = mean_and_error(values)
    pairs = {}
    for ours, other in COMPARED:
        name = f"{ours} - {other}".replace(f"{LATE} after", LATE)
        pairs[name] = mean_and_error(answers[ours] - answers[other])
    return {"rivals": rows, "differences": pairs}


def told(text: str) -> str:
    """A name or an option without this machine's folders: a path from here, or its last part."""

    def short(found: re.Match[str]) -> str:
        path = Path(found[2])
        near = path.is_relative_to(Path.cwd())
        return found[1] + (str(path.relative_to(Path.cwd())) if near else path.name)

    return re.sub(r"(^|[:=])(/.*)$", short, text)


def facts(
    args: argparse.Namespace, weights: Weights, data: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """What was asked, of what and where: what must stand beside the figures."""
    return {
        "command": shlex.join(["python", "examples/finetune.py", *map(told, sys.argv[1:])]),
        "environment": environment(device),
        "weights": {key: told(value) for key, value in weights.to_dict().items()},
        "data": data,
        "keep": args.keep,
        "proposal_size": args.proposal_size,
        "batch": args.batch,
        "epochs": args.epochs,
        "lr": args.lr,
        "seed": args.seed,
    }


def show(result: dict[str, Any]) -> None:
    """Print a table, and the differences."""
    data = result["data"]
    source = "synthetic images" if data["name"] == "synthetic" else f"images of {data['name']}"
    print(f"{source}, {result['size']} px, batch {result['batch']}; ", end="")
    print(f"weights to start from: {result['weights']['kind']}")
    print(f"{result['steps']} steps each, in turns; keep {result['keep']:g}")
    print(f"accuracy on {data['test']} images (standard error)")
    print(f"{'':28}{'ms per step':>20}{'speed-up':>20}{'before':>16}{'after':>16}")
    for name, row in result["rivals"].items():
        cells = f"{'not trained pruned':>40}"
        if "ms_per_step" in row:
            cells = "{:8.0f} ({:.0f}-{:.0f})".format(*row["ms_per_step"]).rjust(20)
            cells += "{:8.2f}x ({:.2f}-{:.2f})".format(*row["speedup"]).rjust(20)
        for when in ("before", "after"):
            cells += ("{:.3f} ({:.3f})".format(*row[when]) if when in row else "").rjust(16)
        kept = f", keep {result['keep']:g}" if name in ("papr", "random") else ""
        print(f"{name + kept:28}{cells}")
    print("differences, image by image (standard error)")
    for name, pair in result["differences"].items():
        print("{:48}{:+.3f} ({:.3f})".format(name, *pair))
