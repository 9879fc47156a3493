"""PaPr's map against class activation maps: what they cost, and whether another network agrees.

All maps are made of EfficientNet-Lite0; EfficientNet-Lite2 judges. Time: every method takes turns
with the others, alone and in a batch of 16; the gradient methods also with their gradients stopped
at the last feature map, which the library leaves to its user, and Grad-CAM also on the network as
it is loaded, its batch norms not folded. Quality: deletion and insertion curves on a part of the
photographs, evenly spread; the judge's answer when shown the kept patches only on all of them, and
its top-1 accuracy at three fractions. Score-CAM, 1280 forwards an image, on a few.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from common import SHARED, parser, photographs, save
from papr.baselines import centre_scores, random_scores
from papr.baselines.cams import METHODS, Cam, cam, folded
from papr.cli.common import pick_device
from papr.cli.compare_cam import describe
from papr.compare.cams import CamQuality, spread, time_cams
from papr.images import keep_visible
from papr.proposals import Proposal, embedded
from papr.selecting import kept_count, select
from papr.significance import to_grid

GRID = (14, 14)
KEEPS = (0.7, 0.5, 0.3)
MEAN = STD = (0.5, 0.5, 0.5)


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


def rivals(net: torch.nn.Module) -> dict[str, Cam]:
    """The methods, and Grad-CAM made cheaper and dearer."""
    cams = {name: cam(name, net) for name in METHODS}
    cams["gradcam, gradients stopped"] = cam("gradcam", net, only_last=True)
    cams["gradcam, not folded"] = cam("gradcam", net, fold=False)
    return cams


def main() -> None:
    options = parser(__doc__ or "", "cams-{device}.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=type(SHARED))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--images", type=int, default=500, help="of the photographs, evenly")
    options.add_argument("--curve-images", type=int, default=40)
    options.add_argument("--scorecam-images", type=int, default=3)
    args = options.parse_args()
    device = pick_device(args.device)
    pixels, labels = (t.to(device) for t in photographs(args.data))
    chosen = sorted(spread(args.images, len(pixels)))
    pixels, labels = pixels[chosen], labels[chosen]
    net = embedded.classifier().to(device)
    judge = folded(embedded.classifier(name="efficientnet_lite2").to(device))

    cams = rivals(net)
    some = pixels[sorted(spread(16, len(pixels)))]
    times = time_cams(cams, (some - 0.5) / 0.5, args.rounds)
    costs = describe(cams, times)
    for name, row in costs.items():
        ratio, lower, upper = row["slower"][16]
        print(
            f"{name:28}{row['ms_per_image'][1][0]:9.1f}{row['ms_per_image'][16][0]:9.1f} ms/image"
            f"{ratio:9.2f} x papr ({lower:.2f}-{upper:.2f})",
            flush=True,
        )

    judged = {
        n: cam(n, net, only_last=True) if cams[n].needs_gradients else cams[n] for n in METHODS
    }
    quality = CamQuality(judged, folded(net), judge)
    total = len(pixels)
    curved, slow = spread(args.curve_images, total), spread(args.scorecam_images, total)
    for i, image in enumerate(pixels.split(1)):
        quality.add(image, () if i in slow else ("scorecam",), i in curved)
    for group, rows in quality.summary().items():
        print(group)
        for name, row in rows.items():
            print(f"  {name:12}", row, flush=True)

    at_160 = functools.partial(Proposal().scorer, device, torch.float32, None, MEAN, STD)
    scorers: dict[str, Callable[[Tensor], Tensor]] = {
        "papr": judged["papr"],
        "softcam": judged["softcam"],
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
        photographs=total,
        network="EfficientNet-Lite0",
        judge="EfficientNet-Lite2",
        judged_class="the judge's top-1 on the whole picture; of top1: the label",
        methods=costs,
        quality_keep=quality.keep,
        curve_steps=quality.steps,
        quality=quality.summary(),
        top1=accuracy,
    )


if __name__ == "__main__":
    main()
