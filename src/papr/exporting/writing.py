"""Write a model to one file, and leave it there only if it answers as the model does."""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from papr.errors import ConfigError, ExportError, SelectionError, WriteError
from papr.exporting.agreement import (
    TOLERANCE,
    disagreement,
    noise,
    onnx_runtime,
    reloaded,
    require,
)
from papr.exporting.plain import Plain, first_line, named_outputs, place, plain
from papr.files import atomic
from papr.graft import states
from papr.hosts.inputs import pixel_shape
from papr.provenance import GIVEN, KEY, NOBODY, Provenance, Weights
from papr.pruning import selection
from papr.wrappers import unwrap

SUFFIXES = {".onnx": "onnx", ".pt2": "torch"}

_OPSET = 18  # what the exporter writes without converting; every runtime of today reads it
_INPUT = "pixels"
_TORCH = "2.8"  # before, code could not know that it is being exported to ONNX
_ONE_FILE = 2**31 - 2**26  # bytes of weights; protobuf ends at 2 GiB, the graph needs some of it


@dataclass(frozen=True)
class Exported:
    """What `papr.export` wrote, and how far it is from the model.

    Attributes:
        path: the file.
        format: "onnx" or "torch".
        inputs: names of the inputs; the one there is takes pixels (B, C, H, W), any B, or clips
            (B, T, C, H, W).
        outputs: names of the outputs, in order.
        size: (H, W) in pixels that the file was made for.
        frames: how many frames a clip has; None for images.
        differences: batch size -> largest absolute difference to eager that the check found.
        opset: ONNX operator set; None for "torch".
        keep: fraction of patches kept; 1 for a dense model.
        grid: the patch grid; None for a dense model, and where selections are not traced.
        provenance: where weights come from, as the file says.
    """

    path: Path
    format: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: tuple[int, int]
    frames: int | None
    differences: Mapping[int, float]
    opset: int | None
    keep: float
    grid: tuple[int, ...] | None
    provenance: Provenance = NOBODY

    @property
    def largest_difference(self) -> float:
        """Over all batches that were tried."""
        return max(self.differences.values())


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | int | tuple[int, int] | None = None,
    format: str | None = None,
    watch: Callable[[str], object] | None = None,
    weights: Weights = GIVEN,
) -> Exported:
    """Write a model, pruned or dense, to one file that runs without papr.

    Proposal and host are in the file; the number of kept patches and the image size are fixed,
    the batch is not. The file is run at batches 1, 3 and 8, on random images and on smooth ones,
    and stays only if its outputs are within 1e-4 of eager's.

    Args:
        model: in eval mode; left as it is. ONNX takes float32 only, torch.export any dtype.
        path: where to write; the suffix .onnx or .pt2 tells the format.
        example: pixels (B, C, H, W), or a clip (B, T, C, H, W), as the model takes them, of which
            only the shape matters; or the image size, an int or (H, W) in pixels; or None for the
            model's own size.
        format: "onnx" (read by ONNX Runtime, OpenVINO and others) or "torch" (`torch.export`);
            None to go by the suffix.
        watch: told in a few words what is done next.
        weights: where the model's come from, which the file says beside the proposal's: under
            "provenance" in ONNX's metadata, in provenance.json of torch.export's extra files.

    Returns:
        What was written.

    Raises:
        ConfigError: the format or the example is none that exists.
        ExportError: the model cannot be exported, or the file does not answer as the model does,
            or a package is missing. No file is left, one that was there is as it was.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"expected a path, got {path!r}")
    path = Path(path)
    format = chosen_format(path, format)
    if path.is_dir():
        raise ConfigError(f"expected a file to write, got the folder {path}")
    if any(state.config.share is not None for state in states(unwrap(model))):
        raise ExportError(
            "expected one number of patches to export a host, got a budget for each image: "
            "papr.prune it with a fixed keep"
        )
    eager = plain(model, on_cpu=format == "onnx")
    shape = pixel_shape(unwrap(model), example)
    if format == "onnx":
        _check_onnx(eager)
    images = noise(2, shape, torch.Generator().manual_seed(1)).to(*place(eager))
    names = _try(eager, images)
    grid = _grid(eager)
    found_states = states(eager)
    looked = {state.proposal.name: state.proposal.weights for state in found_states}
    provenance = Provenance(weights, looked)
    said, say = json.dumps(provenance.to_dict()), watch or (lambda text: None)
    with _writable(path), atomic(path) as temporary:
        say(f"writing {path}")
        opset = _WRITERS[format](eager, images, names, temporary, said)
        say("reading it again")
        answer = _READERS[format](temporary)
        found = disagreement(eager, answer, shape, say)
        del answer  # some systems move no file that is open
        _check(found)
    kept = [state.config.keep for state in found_states]
    return Exported(
        path=path,
        format=format,
        inputs=(_INPUT,),
        outputs=names,
        size=(shape[-2], shape[-1]),
        frames=shape[0] if len(shape) == 4 else None,
        differences=found,
        opset=opset,
        keep=kept[0] if kept else 1.0,
        grid=grid,
        provenance=provenance,
    )


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without what a library logs below an error."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def chosen_format(path: Path, format: str | None) -> str:
    """The format asked for, or the one that the path's suffix tells. Raises ConfigError."""
    if format is None:
        format = SUFFIXES.get(path.suffix)
        if format is None:
            raise ConfigError(
                f"expected a path that ends in {' or '.join(SUFFIXES)}, or a format, got {path}"
            )
    if format not in _WRITERS:
        raise ConfigError(f"expected a format among {', '.join(_WRITERS)}, got {format!r}")
    if format == "torch" and path.suffix != ".pt2":  # what torch.export.load insists on
        raise ConfigError(f'expected a path that ends in .pt2 for the format "torch", got {path}')
    return format


def _check_onnx(eager: Plain) -> None:
    if TorchVersion(torch.__version__) < _TORCH:
        raise ExportError(f"expected torch {_TORCH} or newer for ONNX, got {torch.__version__}")
    require("onnx", "onnxscript", "onnxruntime")
    tensors = [*eager.parameters(), *eager.buffers()]
    other = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    if other:
        raise ExportError(
            f"expected float32 weights for ONNX, got {str(other.pop()).removeprefix('torch.')}: "
            "its agreement could not be checked on a CPU; export model.float() and let the "
            "runtime choose its precision"
        )
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > _ONE_FILE:
        raise ExportError(
            f"expected at most {_ONE_FILE / 1e9:.1f} GB of weights for one ONNX file, got "
            f"{size / 1e9:.1f} GB: write a .pt2 file instead"
        )


@torch.no_grad()
def _try(eager: Plain, images: Tensor) -> tuple[str, ...]:
    """The names of what the model answers; shows before anything is written that it answers."""
    try:
        return tuple(named_outputs(eager.model(images)))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(eager.model).__name__} cannot be run on pixels {tuple(images.shape)}: "
            f"{first_line(error)}"
        ) from error


def _grid(eager: Plain) -> tuple[int, ...] | None:
    try:
        return tuple(selection(eager.model).grid)
    except SelectionError:
        return None


def _check(found: Mapping[int, float]) -> None:
    if max(found.values()) > TOLERANCE:
        listed = ", ".join(f"{gap:.1e} at batch {batch}" for batch, gap in found.items())
        raise ExportError(
            f"expected the exported file to answer within {TOLERANCE:g} of the model, got {listed}"
        )


def _write_torch(
    eager: Plain, images: Tensor, names: tuple[str, ...], path: Path, said: str
) -> None:
    with _exporting(eager):
        program = torch.export.export(eager, (images,), dynamic_shapes=_dynamic(), strict=False)
        torch.export.save(program, path, extra_files={f"{KEY}.json": said})


def _write_onnx(eager: Plain, images: Tensor, names: tuple[str, ...], path: Path, said: str) -> int:
    with _exporting(eager):
        torch.onnx.export(
            eager,
            (images,),
            path,
            dynamo=True,
            dynamic_shapes=_dynamic(),
            input_names=[_INPUT],
            output_names=list(names),
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
        import onnx

        written = onnx.load(path)
        written.metadata_props.add(key=KEY, value=said)
        onnx.save(written, path)
        onnx.checker.check_model(path)
        sets = written.opset_import
    return next(int(s.version) for s in sets if s.domain in ("", "ai.onnx"))


def _dynamic() -> dict[str, dict[int, object]]:
    return {_INPUT: {0: torch.export.Dim("batch")}}


@contextlib.contextmanager
def _exporting(eager: Plain) -> Iterator[None]:
    """Exporters without their warnings, and with errors of one line."""
    try:
        with warnings.catch_warnings(), _quiet("onnx_ir"), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ExportError(
            f"cannot export {type(eager.model).__name__}: {first_line(error)}"
        ) from error


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}
_READERS = {"onnx": onnx_runtime, "torch": reloaded}
