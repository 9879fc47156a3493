"""Does the speed-up survive the export? Eager, ONNX Runtime and OpenVINO, dense and pruned.

ViT-B/16, batch 8, float32, on the CPU, by default; all six take turns in one run, ratios are taken
turn by turn, every runtime gets as many threads as PyTorch. Each file is checked against eager
before it is timed.
"""

import tempfile
from pathlib import Path

import timm
import torch

import papr
from common import parser, save
from papr.environment import describe_device
from papr.exporting import differences
from papr.exporting.speed import LABELS, compare_runtimes
from papr.proposals import wheels
from papr.twins import twin

RUNTIMES = ("onnxruntime", "openvino")


def versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import openvino

    return {m.__name__: m.__version__ for m in (onnx, onnxruntime, openvino)}


def measure(
    name: str, keep: float, batch: int, rounds: int, folder: Path
) -> tuple[list[dict], dict]:
    """The rows of one model, and how far its files are from eager."""
    dense = timm.create_model(name).eval()
    pruned = papr.prune(twin(dense), keep, wheels.LITE0)
    paths = (folder / "dense.onnx", folder / "pruned.onnx")
    written = [papr.export(model, path) for model, path in zip((dense, pruned), paths, strict=True)]
    gaps = {
        "onnxruntime": written[1].differences,
        "openvino": differences(pruned, paths[1], "openvino"),
    }
    images = torch.randn(batch, 3, *written[1].size)
    rows = compare_runtimes(dense, pruned, dict.fromkeys(RUNTIMES, paths), images, rounds=rounds)
    for row in rows:
        middle, lower, upper = row.speedup
        print(
            f"{name} keep {keep:g} batch {batch}, {LABELS[row.runtime]}: dense "
            f"{row.dense_ms[0]:.1f}, pruned {row.pruned_ms[0]:.1f} ms/image, {middle:.3f}x "
            f"({lower:.3f}-{upper:.3f})",
            flush=True,
        )
    facts = {"model": name, "keep": keep}
    return [facts | row.to_dict() for row in rows], facts | {"largest_differences": gaps}


def main() -> None:
    options = parser(__doc__ or "", "export_speed.json")
    options.add_argument("--models", nargs="+", default=["vit_base_patch16_224"])
    options.add_argument("--keep", type=float, default=0.5)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=15)
    options.set_defaults(device="cpu")
    args = options.parse_args()
    if args.device != "cpu":
        options.error("the runtimes are timed on the CPU")
    print(describe_device(torch.device("cpu")))
    rows, checks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            measured, checked = measure(name, args.keep, args.batch, args.rounds, Path(folder))
            rows += measured
            checks.append(checked)
    save(
        args.json,
        "cpu",
        weights="random",
        dtype="float32",
        rounds=args.rounds,
        runtimes=versions(),
        rows=rows,
        checks=checks,
    )


if __name__ == "__main__":
    main()
