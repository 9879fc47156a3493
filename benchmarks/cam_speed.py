"""What PaPr's map and class activation maps cost, alone and in a batch of 16, all taking turns.

All maps are made of EfficientNet-Lite0. Beside the methods as the grad-cam library has them stand
those with gradients with these stopped at the last feature map, which the library leaves to its
user, and Grad-CAM on the network as it is loaded, its batch norms not folded.
"""

from common import SHARED, parser, photographs, save
from papr.baselines.cams import METHODS, Cam, cam
from papr.cli.compare_cam import both_ways, describe
from papr.compare.cams import time_cams
from papr.environment import pick_device
from papr.measure import spread
from papr.proposals import wheels

BATCH = 16


def rivals(device: object) -> dict[str, Cam]:
    """The methods, those with gradients made cheaper too, and Grad-CAM made dearer."""
    net = wheels.classifier(wheels.LITE0).to(device)
    cams = both_ways({name: cam(name, net, only_last=True) for name in METHODS}, net)
    cams["gradcam, not folded"] = cam("gradcam", net, fold=False)
    return cams


def main() -> None:
    options = parser(__doc__ or "", "cam_speed-{device}.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=type(SHARED))
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args()
    device = pick_device(args.device)
    pixels = photographs(args.data)[0]
    some = pixels[spread(BATCH, len(pixels))].to(device)
    cams = rivals(device)
    costs = describe(cams, time_cams(cams, (some - 0.5) / 0.5, args.rounds))
    for name, row in costs.items():
        ratio, lower, upper = row["slower"][BATCH]
        print(
            f"{name:30}{row['ms_per_image'][1][0]:9.1f}{row['ms_per_image'][BATCH][0]:9.1f} "
            f"ms/image{ratio:9.2f} x papr ({lower:.2f}-{upper:.2f})"
        )
    save(args.json, args.device, network="EfficientNet-Lite0", rounds=args.rounds, methods=costs)


if __name__ == "__main__":
    main()
