"""Dense against pruned, in eager PyTorch and in the runtimes that exported files go to."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papr.exporting.agreement import onnx_runtime, openvino, reloaded
from papr.measure import interleave

LABELS = {
    "eager": "PyTorch, eager",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "torch.export",
}


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime, dense and pruned.

    Attributes:
        runtime: "eager", "onnxruntime", "openvino" or "torch".
        batch: images a call.
        dense_ms: milliseconds per image of the dense model, (median, lower, upper quartile).
        pruned_ms: of the pruned one, proposal included, likewise.
        speedup: dense over pruned, turn by turn, likewise.
    """

    runtime: str
    batch: int
    dense_ms: tuple[float, float, float]
    pruned_ms: tuple[float, float, float]
    speedup: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.inference_mode()
def compare_runtimes(
    dense: nn.Module,
    pruned: nn.Module,
    files: Mapping[str, tuple[Path, Path]],
    images: Tensor,
    *,
    rounds: int = 7,
    warmup: int = 2,
    each_turn: Callable[[], object] | None = None,
) -> list[RuntimeRow]:
    """Time them all in turns, on as many threads as PyTorch uses.

    Args:
        dense: the host, in eval mode, on the CPU.
        pruned: the same, pruned.
        files: runtime -> the files of the dense and of the pruned model.
        images: (B, C, H, W), float32, on the CPU.
        rounds: turns that count.
        warmup: turns before them.
        each_turn: called after every turn; there are (rounds + warmup) * 2 * (len(files) + 1).

    Returns:
        A row for eager and one for each of `files`.
    """
    threads = torch.get_num_threads()
    load: dict[str, Callable[[Path], Callable[[Tensor], object]]] = {
        "onnxruntime": lambda path: onnx_runtime(path, threads),
        "openvino": lambda path: openvino(path, threads),
        "torch": reloaded,
    }
    pairs: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], object]]] = {
        "eager": (dense, pruned)
    }
    pairs |= {name: (load[name](a), load[name](b)) for name, (a, b) in files.items()}
    calls = {
        f"{name} {kind}": partial(run, images)
        for name, both in pairs.items()
        for kind, run in zip(("dense", "pruned"), both, strict=True)
    }
    timings = interleave(calls, rounds, warmup, each_turn=each_turn)
    batch = images.shape[0]
    return [
        RuntimeRow(
            runtime=name,
            batch=batch,
            dense_ms=timings[f"{name} dense"].ms_per_image(batch),
            pruned_ms=timings[f"{name} pruned"].ms_per_image(batch),
            speedup=timings[f"{name} pruned"].speedup_over(timings[f"{name} dense"]),
        )
        for name in pairs
    ]
