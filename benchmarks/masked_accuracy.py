"""Do the kept patches carry what a classifier needs? Real weights, real photographs, no host.

Only the kept 16-px patches of a 14 x 14 grid are shown to EfficientNet-Lite2, the rest is filled
with the picture's mean colour. Maps of proposals stand beside the centre, chance, an even stride
and the strongest edges at the same number of patches, and beside the whole picture with as many
pixels as the kept patches have, shown as it is and enlarged to 224 px again. The judge has no part
in any selection; Lite0 and Lite1 taught glance.

Three times: photographs as they are; off the centre on a blurred ground; and on one that is as
sharp as the photograph, against maps that only look for what is in focus (`composites.py`).

The photographs are those with an odd index in sorted order: glance was trained on the others. Where
no selection was, `--all` takes both.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import SHARED, parser, photographs, proposals, save
from composites import blurred, off_centre, scrambled
from papr.baselines import centre_scores, random_scores, stride_scores
from papr.baselines.cams import folded
from papr.environment import pick_device
from papr.images import keep_visible
from papr.measure import mean_and_error
from papr.proposals import wheels
from papr.proposals.scorers import resize
from papr.selecting import kept_count, select
from papr.significance import to_grid

GRID = (14, 14)
KEEPS = (0.7, 0.5, 0.3)
MEAN = STD = (0.5, 0.5, 0.5)
SIDE = 224
BATCH = 25
FIRST = "glance"

Scores = Callable[[Tensor], Tensor]
Shown = Callable[[Tensor], Tensor]  # pictures in [0, 1] to what of them the judge sees


@torch.inference_mode()
def right(judge: torch.nn.Module, pixels: Tensor, labels: Tensor, shown: Shown) -> Tensor:
    """Which pictures (N,) the judge classifies right after `shown` has hidden a part of them."""
    answers = [judge((shown(images) - 0.5) / 0.5).argmax(1) for images in pixels.split(BATCH)]
    return torch.cat(answers) == labels


def kept(scorer: Scores, keep: float) -> Shown:
    def show(images: Tensor) -> Tensor:
        scores = to_grid(scorer((images - 0.5) / 0.5), GRID)
        return keep_visible(images, select(scores, kept_count(keep, 196)).mask())

    return show


def smaller(keep: float, enlarge: bool) -> Shown:
    """The whole picture with as many pixels as the kept patches have."""
    side = round(SIDE * keep**0.5)

    def show(images: Tensor) -> Tensor:
        small = resize(images, side)
        return resize(small, SIDE) if enlarge else small

    return show


def edge_scores(pixels: Tensor) -> Tensor:
    """How much neighbouring pixels differ in each 16-px patch."""
    grey = pixels.mean(1, keepdim=True)
    down, across = F.pad(grey.diff(dim=2), (0, 0, 0, 1)), F.pad(grey.diff(dim=3), (0, 1))
    return F.avg_pool2d(down.abs() + across.abs(), 16).squeeze(1)


def ways(scorers: dict[str, Scores]) -> dict[str, Callable[[float], Shown]]:
    """How to show a part of a picture, by name: of each a function of keep."""
    scorers = scorers | {
        "centre": centre_scores(cell=16),
        "random": random_scores(cell=16),
        "even stride": stride_scores(cell=16),
        "strongest edges": edge_scores,
    }
    found: dict[str, Callable[[float], Shown]] = {
        name: lambda keep, scorer=scorer: kept(scorer, keep) for name, scorer in scorers.items()
    }
    found["smaller picture"] = lambda keep: smaller(keep, enlarge=False)
    found["smaller picture, enlarged"] = lambda keep: smaller(keep, enlarge=True)
    return found


def judged(
    judge: torch.nn.Module, pixels: Tensor, labels: Tensor, scorers: dict[str, Scores]
) -> dict[str, dict]:
    """Top-1 by what the judge sees and keep, and how much more of it the first selection has.

    All figures are pairs (mean, standard error); differences are taken picture by picture.
    """
    found = {
        name: {str(keep): right(judge, pixels, labels, way(keep)).double() for keep in KEEPS}
        for name, way in ways(scorers).items()
    }
    return {
        "whole": mean_and_error(right(judge, pixels, labels, lambda images: images)),
        "top1": {
            name: {keep: mean_and_error(values) for keep, values in row.items()}
            for name, row in found.items()
        },
        f"{FIRST} less": {
            name: {keep: mean_and_error(found[FIRST][keep] - row[keep]) for keep in row}
            for name, row in found.items()
            if name != FIRST
        },
    }


def print_table(name: str, figures: dict[str, dict]) -> None:
    print(f"{name}; whole: {{:.3f}} ({{:.3f}})".format(*figures["whole"]))
    for kind in ("top1", f"{FIRST} less"):
        for which, row in figures[kind].items():
            label = which if kind == "top1" else f"{kind} {which}"
            cells = "  ".join("{:+.3f} ({:.3f})".format(*row[str(keep)]) for keep in KEEPS)
            print(f"  {label:45} {cells}", flush=True)


def main() -> None:
    options = parser(__doc__ or "", "masked_accuracy.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=Path)
    options.add_argument("--glance", type=Path, help="other weights than those that papr ships")
    options.add_argument("--all", action="store_true", help="those with an even index too")
    options.add_argument("--photographs", type=int, help="the first so many only, for a try")
    args = options.parse_args()
    device = pick_device(args.device)
    pixels, labels = photographs(args.data, SIDE, kept_apart=not args.all)
    pixels, labels = pixels[: args.photographs], labels[: args.photographs].to(device)
    judge = folded(wheels.classifier(wheels.LITE2).to(device))
    scorers: dict[str, Scores] = {
        name: who.scorer(device, torch.float32, size, MEAN, STD, score=score)
        for name, (who, size, score) in proposals(args.glance).items()
    }
    worlds = {
        "as they are": pixels,
        "off centre": off_centre(pixels, blurred).pixels,
        "off centre, sharp ground": off_centre(pixels, scrambled).pixels,
    }
    figures = {}
    for name, pictures in worlds.items():
        figures[name] = judged(judge, pictures.to(device), labels, scorers)
        print_table(name, figures[name])
    save(
        args.json,
        args.device,
        photographs=len(labels),
        which="every one" if args.all else "odd index in sorted order: glance saw the others",
        judge="EfficientNet-Lite2",
        smaller_picture_px={str(keep): round(SIDE * keep**0.5) for keep in KEEPS},
        pictures=figures,
    )


if __name__ == "__main__":
    main()
