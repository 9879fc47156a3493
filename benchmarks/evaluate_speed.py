"""Does reading keep up? Whole evaluations of photographs beside the host alone, taking turns.

The host alone answers as many pixels, that lie in memory, in the same batches: half of them before
the evaluation and half after it, since a shared machine drifts within minutes. An evaluation is
`papr.evaluate.evaluate` from the first file opened to the summary written: listing, decoding,
resizing, peak memory, rows, figures. Only the making of the model is left out.
"""

import tempfile
import time
from pathlib import Path

import torch

from common import SHARED, parser, save
from papr.environment import pick_device
from papr.evaluate import evaluate, open_source
from papr.measure import quartiles
from papr.measure.speed import synchronize
from papr.named import create_classifier

MODEL = "vit_base_patch16_224"


@torch.inference_mode()
def alone(host: torch.nn.Module, pixels: torch.Tensor, images: int) -> float:
    """Seconds for so many images from memory."""
    synchronize(pixels.device)
    start = time.perf_counter()
    for first in range(0, images, len(pixels)):
        host(pixels[: images - first])
    synchronize(pixels.device)
    return time.perf_counter() - start


def evaluated(
    host: torch.nn.Module, data: Path, batch: int, workers: int | None
) -> tuple[float, int]:
    """Seconds of an evaluation of the dense host, and how many images it answered."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        report = evaluate(host, data, [1.0], out, name=MODEL, batch=batch, workers=workers)
        return time.perf_counter() - start, report.results[0].images


def main() -> None:
    options = parser(__doc__ or "", "evaluate_speed-{device}.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=Path)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--workers", type=int, help="processes that decode; default as papr eval")
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    host = create_classifier(MODEL, random_weights=True)[0].to(pick_device(args.device))
    pixels = torch.randn(args.batch, 3, 224, 224, device=pick_device(args.device))
    alone(host, pixels, 2 * args.batch)  # warms up
    count = open_source(args.data, 1000).length or 0
    turns = []
    for _ in range(args.rounds):
        before = alone(host, pixels, count // 2)
        seconds, images = evaluated(host, args.data, args.batch, args.workers)
        after = alone(host, pixels, images - count // 2)
        turns.append({"images": images, "evaluation": seconds, "host": before + after})
        print(f"{images} images: {seconds:.1f} s, the host alone {before + after:.1f} s")
    share = quartiles([turn["host"] / turn["evaluation"] for turn in turns])
    print(f"{share[0]:.3f} of the host's own throughput ({share[1]:.3f}-{share[2]:.3f})")
    save(
        args.json,
        args.device,
        model=MODEL,
        weights="random",
        batch=args.batch,
        workers=args.workers,
        turns=turns,
        share_of_host=share,
    )


if __name__ == "__main__":
    main()
