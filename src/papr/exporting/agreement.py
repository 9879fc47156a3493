"""Does a file answer as the model does? At several batch sizes, on two kinds of images."""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.ambient import neutral
from papr.errors import ConfigError, ExportError
from papr.exporting.plain import Plain, first_line, place, plain
from papr.graft import states
from papr.hosts.inputs import pixel_shape
from papr.wrappers import unwrap

#: Batch sizes an exported file is run at.
BATCHES = (1, 3, 8)
#: Largest absolute difference to eager that an exported file may show.
TOLERANCE = 1e-4

_ROUNDING = 3e-6  # of pixels of order 1: moves significance as much as another runtime does
_NEAR_TIE = 2e-5  # of the largest score: what another runtime's rounding may turn around
_SMALL = 1e-2  # outputs smaller than this are compared by their size
_TRIES = 8

Answer = Callable[[Tensor], list[Tensor]]
Shape = tuple[int, ...]  # of one input: (C, H, W) or (T, C, H, W)
Draw = Callable[[int, Shape, torch.Generator], Tensor]


def differences(
    model: nn.Module,
    path: str | Path,
    runtime: str = "onnxruntime",
    example: Tensor | int | tuple[int, int] | None = None,
    watch: Callable[[str], object] | None = None,
) -> dict[int, float]:
    """Run an exported file and compare its answers to the model's.

    Args:
        model: what was exported, in eval mode; left as it is.
        path: the file.
        runtime: "onnxruntime" or "openvino" (both on the CPU, in float32) for ONNX, "torch".
        example: as for `papr.export`.
        watch: likewise.

    Returns:
        Batch size -> largest absolute difference of the outputs, at batches 1, 3 and 8, over
        random images and smooth ones; enlarged by 0.01 / their size where all are below 0.01.

    Raises:
        ExportError: the runtime is missing, cannot run the file, or the model answers the same
            whatever it is shown, which shows nothing of the file.
        ConfigError: no such runtime.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"expected a runtime among {', '.join(RUNTIMES)}, got {runtime!r}")
    eager = plain(model, on_cpu=runtime != "torch")
    shape = pixel_shape(unwrap(model), example)
    return disagreement(eager, RUNTIMES[runtime](Path(path)), shape, watch)


@torch.no_grad()
def disagreement(
    eager: Plain, answer: Answer, shape: Shape, watch: Callable[[str], object] | None = None
) -> dict[int, float]:
    """The comparison itself; see `differences`."""
    worst = dict.fromkeys(BATCHES, 0.0)
    for draw, kind in ((noise, "random"), (smooth, "smooth")):
        images = _steady(eager, draw, shape)
        _check_telling(_tensors(eager(images)))
        for batch in BATCHES:
            if watch is not None:
                watch(f"checking its answers, batch {batch} of {kind} images")
            pixels = images[:batch]
            expected = _tensors(eager(pixels))
            try:
                got = answer(pixels)
            except Exception as error:
                raise ExportError(
                    f"the exported file cannot be run at batch {batch}: {first_line(error)}"
                ) from error
            worst[batch] = max(worst[batch], _largest(expected, got))
    return worst


def _largest(expected: list[Tensor], got: list[Tensor]) -> float:
    """Largest absolute difference; infinite where shapes differ or only one side is a number."""
    if [t.shape for t in expected] != [t.shape for t in got]:
        return float("inf")
    pairs = zip(expected, got, strict=True)
    gaps = [(e.double().cpu() - g.double().cpu()).abs().max() for e, g in pairs]
    size = max(float(e.abs().max()) for e in expected)
    largest = float(torch.stack(gaps).max()) * max(1.0, _SMALL / max(size, 1e-30))
    return largest if largest == largest else float("inf")


def _check_telling(outputs: list[Tensor]) -> None:
    """Refuse to check a file by a model whose head is still zero."""
    if all(torch.equal(t, t[:1].expand_as(t)) for t in outputs):
        raise ExportError(
            "expected a model whose answer depends on the image, to check the exported file by, "
            "got the same answer for all images: is its head still zero?"
        )


def _steady(eager: Plain, draw: Draw, shape: Shape) -> Tensor:
    """As many images as the largest batch has, whose answers rounding does not decide.

    Where the last patch that stays and the first that goes are significant to within rounding of
    each other, two right answers exist, and a comparison would tell nothing of the file. Such an
    image shows in eager alone: its scores nearly tie at the cut, or its answer jumps when the
    pixels move by a rounding error. It is drawn again, a few times at most.
    """
    device, dtype = place(eager)
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    rest: list[Tensor] = []
    for _ in range(_TRIES):
        images = draw(max(BATCHES), shape, generator).to(device, dtype)
        nudge = noise(len(images), shape, generator).to(images) * _ROUNDING
        answers = [_tensors(eager(images + sign * nudge)) for sign in (1, -1, 0)]
        steady = ~_nearly_tied(eager, images)
        for other in answers[1:]:
            for a, b in zip(answers[0], other, strict=True):
                steady &= (a - b).abs().flatten(1).amax(1) <= TOLERANCE
        found += images[steady]
        rest += images[~steady]
        if len(found) >= max(BATCHES):
            break
    return torch.stack((found + rest)[: max(BATCHES)])


def _nearly_tied(eager: Plain, images: Tensor) -> Tensor:
    """Which of the images that were just run have another patch within rounding of the cut.

    Equal scores are not meant: of those the lower index stays, everywhere.
    """
    near = torch.zeros(images.shape[0], dtype=torch.bool, device=images.device)
    for state in states(eager):
        for part in state.passes.last() or ():
            if part is None or part[1] is None:
                continue
            indices, scores = part[0], part[1].flatten(1)
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, indices, True)
            lowest = scores.masked_fill(~kept, float("inf")).amin(1)
            highest = scores.masked_fill(kept, float("-inf")).amax(1)
            gap = lowest - highest
            near |= (gap > 0) & (gap < _NEAR_TIE * scores.abs().amax(1))
    return near


def noise(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Independent normal pixels, (count, *shape)."""
    with neutral():
        return torch.randn(count, *shape, generator=generator)


def smooth(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Images whose amplitude falls with frequency, as photographs' does, (count, *shape).

    Clips are made of such images, one for each frame.
    """
    planes = math.prod(shape[:-2])
    images = torch.zeros(count, planes, *shape[-2:], dtype=torch.float32, device="cpu")
    for cells in (2, 4, 8, 16, 32):
        coarse = noise(count, (planes, cells, cells), generator) * 2 / cells
        images += F.interpolate(coarse, size=shape[-2:], mode="bicubic")
    return images.view(count, *shape)


def _tensors(output: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def onnx_runtime(path: Path, threads: int = 0) -> Answer:
    """The answers of ONNX Runtime on the CPU; `threads` 0 for its own choice."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with _named("ONNX Runtime"):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name

    def answer(pixels: Tensor) -> list[Tensor]:
        return [torch.from_numpy(a) for a in session.run(None, {name: pixels.cpu().numpy()})]

    return answer


def openvino(path: Path, threads: int = 0) -> Answer:
    """The answers of OpenVINO on the CPU in float32; `threads` 0 for its own choice."""
    require("openvino")
    import openvino as ov

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    core = ov.Core()
    with _named("OpenVINO"):
        compiled = core.compile_model(core.read_model(str(path)), "CPU", options)

    def answer(pixels: Tensor) -> list[Tensor]:
        results = compiled(pixels.cpu().numpy())
        return [torch.from_numpy(results[i].copy()) for i in range(len(compiled.outputs))]

    return answer


def reloaded(path: Path) -> Answer:
    """The answers of a program that `torch.export` saved."""
    with _named("torch.export"):
        program = torch.export.load(path).module()
    return lambda pixels: _tensors(program(pixels))


RUNTIMES: dict[str, Callable[[Path], Answer]] = {
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
    "torch": reloaded,
}


@contextlib.contextmanager
def _named(runtime: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ExportError(f"{runtime} cannot load the file: {first_line(error)}") from error


def require(*packages: str) -> None:
    """Raise ExportError, naming the extra, where one of the packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"expected the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}, not "
            "installed: pip install 'papr-torch[export]'"
        )
