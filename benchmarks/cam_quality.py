"""Whether another network needs the patches that a map ranks high; PaPr's map beside CAMs.

All maps are made of EfficientNet-Lite0; EfficientNet-Lite2 judges: deletion and insertion curves,
its answer when shown the kept patches only, and its top-1 accuracy at three fractions. Over all
photographs (curves on a part, evenly spread), and over those of which Lite0 is unsure. Score-CAM,
1280 forwards an image, on a few, and there beside the others. Nothing is timed: deterministic but
for rounding.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from common import SHARED, parser, photographs, save
from papr.baselines import centre_scores, random_scores
from papr.baselines.cams import METHODS, cam, folded
from papr.cli.common import progress
from papr.compare.cams import CamQuality
from papr.environment import pick_device
from papr.images import keep_visible
from papr.measure import spread
from papr.proposals import Proposal, wheels
from papr.selecting import kept_count, select
from papr.significance import to_grid

GRID = (14, 14)
KEEPS = (0.7, 0.5, 0.3)
MEAN = STD = (0.5, 0.5, 0.5)
BATCH = 16
STEPS = 7  # twice as coarse as `papr compare-cam`: 500 photographs take long


@torch.inference_mode()
def top1(
    judge: torch.nn.Module, pixels: Tensor, labels: Tensor, method: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Accuracy of the judge shown only the patches kept by a map, at each fraction."""
    right = dict.fromkeys(KEEPS, 0)
    for images, truth in zip(pixels.split(16), labels.split(16), strict=True):
        scores = to_grid(method((images - 0.5) / 0.5), GRID)
        for keep in KEEPS:
            shown = keep_visible(images, select(scores, kept_count(keep, 196)).mask())
            right[keep] += int((judge((shown - 0.5) / 0.5).argmax(1) == truth).sum())
    return {str(keep): count / len(labels) for keep, count in right.items()}


def beside_papr(quality: CamQuality) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Group -> method -> figure -> (mean difference from papr on the same images, its error)."""
    found: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for group, records in quality.groups().items():
        for name in {name for record in records for name in record["methods"]} - {"papr"}:
            for figure in ("deletion", "insertion", "agrees"):
                pairs = [
                    (float(r["methods"][name][figure]), float(r["methods"]["papr"][figure]))
                    for r in records
                    if name in r["methods"] and r["methods"][name][figure] is not None
                ]
                if len(pairs) > 1:
                    gaps = torch.tensor([a - b for a, b in pairs], dtype=torch.float64)
                    error = float(gaps.std()) / math.sqrt(len(gaps))
                    row = found.setdefault(group, {}).setdefault(name, {})
                    row[figure] = (float(gaps.mean()), error)
    return found


def main() -> None:
    options = parser(__doc__ or "", "cam_quality.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=type(SHARED))
    options.add_argument("--images", type=int, default=500, help="of the photographs, evenly")
    options.add_argument("--curve-images", type=int, default=200, help="of these, evenly")
    options.add_argument("--scorecam-images", type=int, default=8, help="of those, evenly")
    args = options.parse_args()
    device = pick_device(args.device)
    pixels, labels = (t.to(device) for t in photographs(args.data))
    shown = spread(args.images, len(pixels))
    pixels, labels = pixels[shown], labels[shown]
    net = wheels.classifier(wheels.LITE0).to(device)
    judge = folded(wheels.classifier(wheels.LITE2).to(device))

    # gradients are stopped at the feature map, where they are needed: the same maps, sooner
    cams = {n: cam(n, net) for n in METHODS}
    cams |= {n: cam(n, net, only_last=True) for n, c in cams.items() if c.needs_gradients}
    quality = CamQuality(cams, folded(net), judge, steps=STEPS)
    curved = spread(args.curve_images, len(pixels))
    slow = {curved[i] for i in spread(args.scorecam_images, len(curved))}
    groups = [([i], (), True) for i in sorted(slow)]
    for indices, drawn in (
        ([i for i in curved if i not in slow], True),
        ([i for i in range(len(pixels)) if i not in curved], False),
    ):
        groups += [
            (indices[k : k + BATCH], ("scorecam",), drawn) for k in range(0, len(indices), BATCH)
        ]
    with progress("maps") as bar:
        for indices, skip, drawn in bar.track(groups):
            quality.add(pixels[indices], skip, with_curves=drawn)
    for group, rows in quality.summary().items():
        print(group)
        for name, row in rows.items():
            print(f"  {name:12}", row)

    at_160 = functools.partial(
        Proposal(wheels.LITE0).scorer, device, torch.float32, None, MEAN, STD
    )
    scorers: dict[str, Callable[[Tensor], Tensor]] = {
        "papr": cams["papr"],
        "softcam": cams["softcam"],
        "papr at 160 px": at_160(),
        "softcam at 160 px": at_160(score="softcam"),
        "centre": centre_scores(cell=16),
        "random": random_scores(cell=16),
    }
    accuracy = {name: top1(judge, pixels, labels, scorer) for name, scorer in scorers.items()}
    for name, row in accuracy.items():
        print(f"{name:20}", row)
    save(
        args.json,
        args.device,
        photographs=len(pixels),
        network="EfficientNet-Lite0",
        judge="EfficientNet-Lite2",
        judged_class="the judge's top-1 on the whole picture; of top1: the label",
        keep=quality.keep,
        steps=quality.steps,
        quality=quality.summary(),
        beside_papr=beside_papr(quality),
        top1=accuracy,
    )


if __name__ == "__main__":
    main()
