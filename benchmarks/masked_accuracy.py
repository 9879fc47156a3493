"""Do the kept patches carry what a classifier needs? Real weights, real photographs, no host.

Only the kept 16-px patches of a 14 x 14 grid are shown to EfficientNet-Lite0, the rest is filled
with the image's mean colour. PaPr's map, at several resolutions of the proposal, stands beside
random, centre and evenly spread selection at the same number of patches, and beside the cost of
that resolution: milliseconds per image of the proposal, and the speed-up of a ViT-B/16 that
contains it.

That judge is the proposal itself, which may flatter its own map. So EfficientNet-Lite2 judges too:
the proposal's default beside the same baselines, and beside the whole photograph with as many
pixels as the kept patches have, shown as it is and enlarged to 224 px again.
"""

from collections.abc import Callable

import timm
import torch
from torch import Tensor

from common import SHARED, parser, photographs, save
from papr.baselines import centre_scores, random_scores, stride_scores
from papr.baselines.cams import folded
from papr.compare import compare
from papr.environment import pick_device
from papr.images import keep_visible
from papr.measure import interleave
from papr.proposals import Proposal, wheels
from papr.proposals.image import DEFAULT_SIZE
from papr.proposals.scorers import resize
from papr.selecting import kept_count, select
from papr.significance import to_grid

GRID = (14, 14)
KEEPS = (0.7, 0.5, 0.3)
SIZES = (224, 192, 160, 128, 96)
MEAN = STD = (0.5, 0.5, 0.5)
JUDGE = "efficientnet_lite2"
SIDE = 224


@torch.inference_mode()
def top1(
    classify: torch.nn.Module, pixels: Tensor, labels: Tensor, seen: Callable[[Tensor], Tensor]
) -> float:
    """Share of photographs classified right after `seen` has hidden a part of them."""
    right = 0
    for images, truth in zip(pixels.split(16), labels.split(16), strict=True):
        right += int((classify((seen(images) - 0.5) / 0.5).argmax(1) == truth).sum())
    return right / len(labels)


def shown(scorer: Callable[[Tensor], Tensor], keep: float) -> Callable[[Tensor], Tensor]:
    def show(images: Tensor) -> Tensor:
        scores = to_grid(scorer((images - 0.5) / 0.5), GRID)
        return keep_visible(images, select(scores, kept_count(keep, 196)).mask())

    return show


def smaller(keep: float, enlarge: bool) -> Callable[[Tensor], Tensor]:
    """The whole photograph with as many pixels as the kept patches have."""
    side = round(SIDE * keep**0.5)

    def show(images: Tensor) -> Tensor:
        small = resize(images, side)
        return resize(small, SIDE) if enlarge else small

    return show


def baselines() -> dict[str, Callable[[Tensor], Tensor]]:
    """Made anew for each judge, so that both see the same random patches."""
    return {
        "centre": centre_scores(cell=16),
        "random": random_scores(cell=16),
        "stride": stride_scores(cell=16),
    }


def judged(
    classify: torch.nn.Module,
    pixels: Tensor,
    labels: Tensor,
    scorers: dict[str, Callable[[Tensor], Tensor]],
) -> dict[str, dict[str, float]]:
    """Top-1 by selection and keep."""
    return {
        name: {str(keep): top1(classify, pixels, labels, shown(scorer, keep)) for keep in KEEPS}
        for name, scorer in scorers.items()
    }


def another_judge(
    pixels: Tensor, labels: Tensor, papr_default: Callable[[Tensor], Tensor]
) -> dict[str, object]:
    """The same by a network that has no part in the selection."""
    classify = folded(wheels.classifier(JUDGE).to(pixels.device))
    accuracy = judged(classify, pixels, labels, {"papr": papr_default, **baselines()})
    for name, enlarge in (("lower resolution", False), ("lower resolution, enlarged", True)):
        accuracy[name] = {
            str(keep): top1(classify, pixels, labels, smaller(keep, enlarge)) for keep in KEEPS
        }
    return {
        "judge": "EfficientNet-Lite2",
        "papr": f"the proposal at {DEFAULT_SIZE} px, the default",
        "lower_resolution_px": {str(keep): round(SIDE * keep**0.5) for keep in KEEPS},
        "whole": top1(classify, pixels, labels, lambda images: images),
        "top1": accuracy,
    }


def print_table(accuracy: dict[str, dict[str, float]], cost: dict[str, dict]) -> None:
    print(f"{'':28}" + "".join(f"{k:>8}" for k in KEEPS) + "  ms/image   GMACs  ViT-B/16 at 0.5")
    for name, row in accuracy.items():
        line = f"{name:28}" + "".join(f"{value:8.3f}" for value in row.values())
        if name in cost:
            c = cost[name]
            line += f"{c['proposal_ms_per_image']:10.2f}{c['proposal_gmacs']:8.3f}"
            line += "  {:.2f}x ({:.2f}-{:.2f})".format(*c["vit_b16_speedup_at_0.5"])
        print(line)


def main() -> None:
    options = parser(__doc__ or "", "masked_accuracy.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=type(SHARED))
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--photographs", type=int, help="the first so many only, for a try")
    args = options.parse_args()
    device = pick_device(args.device)
    pixels, labels = (t[: args.photographs].to(device) for t in photographs(args.data))
    classify = folded(wheels.classifier(wheels.LITE0).to(device))
    proposal = Proposal()

    scorers: dict[str, Callable[[Tensor], Tensor]] = {
        f"papr at {size} px": proposal.scorer(device, torch.float32, size, MEAN, STD)
        for size in SIZES
    }
    accuracy = judged(classify, pixels, labels, {**scorers, **baselines()})
    whole = top1(classify, pixels, labels, lambda images: images)
    other = another_judge(pixels, labels, scorers[f"papr at {DEFAULT_SIZE} px"])

    images = torch.randn(8, 3, SIDE, SIDE, device=device)
    calls = {str(size): lambda s=size: scorers[f"papr at {s} px"](images) for size in SIZES}
    with torch.inference_mode():
        alone = interleave(calls, args.rounds, device=device)
    host = timm.create_model("vit_base_patch16_224").to(device).eval()
    cost = {}
    for size in SIZES:
        row = compare(host, images, [0.5], rounds=args.rounds, proposal_size=size)[1]
        ms = alone[str(size)].median * 1000 / 8
        cost[f"papr at {size} px"] = {
            "proposal_ms_per_image": ms,
            "proposal_gmacs": row.gmacs_proposal,
            "vit_b16_speedup_at_0.5": row.speedup,
            "peak_mb": row.peak_mb,
        }

    print(f"{len(labels)} photographs; whole: {whole:.3f}")
    print_table(accuracy, cost)
    print(f"judged by {other['judge']}; whole: {other['whole']:.3f}")
    print_table(other["top1"], {})
    save(
        args.json,
        args.device,
        photographs=len(labels),
        judge="EfficientNet-Lite0 (the proposal itself)",
        whole=whole,
        top1=accuracy,
        cost=cost,
        judged_by_another=other,
    )


if __name__ == "__main__":
    main()
