"""What the benchmarks share: photographs, and result files with their circumstances."""

import argparse
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from papr.environment import environment, pick_device
from papr.files import write_json
from papr.images import fit, load_image, to_pixels
from papr.proposals import Proposal, shipped, wheels
from papr.provenance import digest_of

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHARED = Path(os.environ.get("PAPR_SHARED", HERE.parents[1] / "shared")) / "data"


def parser(description: str, result: str) -> argparse.ArgumentParser:
    """Options every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    options.add_argument(
        "--json", type=Path, default=RESULTS / result, help="where the result is written"
    )
    return options


def save(path: Path, device: str, **figures: object) -> None:
    """Write figures beside the command, the versions and the machine they come from.

    Args:
        path: where; `{device}` in its name becomes cpu, cuda or mps.
        device: what was measured on.
        **figures: what was measured.
    """
    used = pick_device(device)
    path = path.with_name(path.name.replace("{device}", used.type))
    write_json(path, report(used, **figures))
    print(f"written to {path}")


def report(device: torch.device, **figures: object) -> dict[str, object]:
    """Figures beside the command, the versions and the machine they come from."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "environment": environment(device),
        **figures,
    }


@cache
def stored(name: str) -> dict[str, Any]:
    """The result file of this name."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def photographs(
    folder: Path, size: int = 224, kept_apart: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """An ImageNet sample: pixels (N, 3, size, size) in [0, 1] and class indices (N,).

    Resize of the shorter side and centre crop, as in the paper. The folder holds one folder per
    WordNet id and, beside it, imagenet-classes.json: id -> [class index, name].

    Args:
        folder: that.
        size: of the pictures' sides, in pixels.
        kept_apart: only those with an odd index in sorted order; glance was trained on the others.
    """
    classes = json.loads((folder.parent / "imagenet-classes.json").read_text())
    files = sorted(folder.glob("*/*.jpg"))
    files = files[1::2] if kept_apart else files
    if not files:
        sys.exit(f"expected photographs in {folder}/<wnid>/*.jpg, found none; pass --data")
    pixels = torch.cat([to_pixels(_fit(load_image(file), size)) for file in files])
    return pixels, torch.tensor([classes[file.parent.name][0] for file in files])


def proposals(weights: Path | None = None) -> dict[str, tuple[Proposal, int | None, str]]:
    """Those whose maps are compared: name -> (proposal, its resolution, score).

    Args:
        weights: of glance, where it is not the one that papr ships.
    """
    glance = shipped.load(weights, digest_of(weights)) if weights else shipped.NAME
    lite0 = Proposal(wheels.LITE0)
    return {
        "glance": (Proposal(glance), None, "significance"),
        "efficientnet_lite0 at 160 px": (lite0, 160, "significance"),
        "efficientnet_lite0 at 224 px": (lite0, 224, "significance"),
        "softcam of efficientnet_lite0 at 160 px": (lite0, 160, "softcam"),
    }


def _fit(image: Image.Image, size: int) -> Image.Image:
    return fit(image, size, patch=1, square=True)
