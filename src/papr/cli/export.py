"""`papr export`: a pruned model as one file that runs without papr, checked before it is left."""

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from papr.cli.common import (
    Attention,
    Keep,
    ProposalName,
    ProposalSize,
    Stages,
    doing,
    out,
    parse_proposal_size,
    parse_size,
    parse_stages,
    print_line,
    progress,
    with_quartiles,
)
from papr.cli.hosting import DEFAULT_MODEL, Model, RandomWeights, Rounds, TimedBatch, make_proposal
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL, check_keep
from papr.environment import describe_device
from papr.errors import ConfigError
from papr.files import check_file
from papr.names import LOCAL_DIR, VIDEO_HOSTS
from papr.provenance import Weights
from papr.words import counted

if TYPE_CHECKING:
    from torch import nn

    from papr.exporting import Exported
    from papr.exporting.speed import RuntimeRow


def export(
    model: Model = DEFAULT_MODEL,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file: .onnx, or .pt2 for torch.export.",
            show_default="papr-export/MODEL-keepKEEP.onnx",
        ),
    ] = None,
    keep: Keep = 0.5,
    format: Annotated[
        str | None, typer.Option(help="onnx or torch, where the suffix does not tell.")
    ] = None,
    img_size: Annotated[
        str | None,
        typer.Option(
            help="The images' size, such as 224, or 224x448 (height x width).",
            show_default="the model's own",
        ),
    ] = None,
    random_weights: RandomWeights = False,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    stages: Stages = None,
    attention: Attention = "dense",
    timing: Annotated[
        bool,
        typer.Option("--timing/--no-timing", help="Time dense and pruned, eager and exported."),
    ] = True,
    batch: TimedBatch = 8,
    rounds: Rounds = 5,
) -> None:
    """Write a pruned timm model to one file that runs without papr; ONNX without Python too.

    Proposal and host are in it; the image size and the number of kept patches are fixed, the
    batch is not. Pixels go in as the host wants them normalised. Before the file is left, it is
    run at batches 1, 3 and 8 beside the model in PyTorch: one that differs by more than 1e-4 is
    refused; what is being checked is said. Needs the extra: pip install 'papr-torch[export]'.

    Example: papr export --model vit_base_patch16_224 --keep 0.5 --out vit.onnx
    """
    check_keep(keep)
    size = parse_size(img_size, "--img-size")
    if isinstance(size, str):
        raise ConfigError(f"expected --img-size such as 224 or 224x448, got {img_size!r}")
    import torch

    import papr
    from papr.exporting import differences
    from papr.exporting.writing import chosen_format
    from papr.twins import twin

    if out_file is None:
        suffix = ".pt2" if format == "torch" else ".onnx"
        name = Path(model.removeprefix(LOCAL_DIR)).name
        out_file = Path("papr-export") / f"{name}-keep{keep:g}{suffix}"
    kind = chosen_format(out_file, format)
    check_file(out_file, "--out")
    with doing(f"loading {model}"):
        dense, weights = _create(model, random_weights, size)
        host = papr.prune(
            twin(dense),
            keep,
            make_proposal(proposal, random_weights),
            proposal_size=parse_proposal_size(proposal_size),
            stages=parse_stages(stages),
            attention=attention,
        )
    with doing(f"exporting {model}") as say:
        written = papr.export(host, out_file, size, kind, watch=say, weights=weights)
    _report(written, model)
    if kind == "onnx" and importlib.util.find_spec("openvino") is not None:
        with doing("reading it in OpenVINO") as say:
            found = differences(host, out_file, "openvino", written.size, say)
        print_line(f"OpenVINO beside PyTorch: {_listed(found)}")
    if timing and keep < 1:
        rows = _bench(dense, host, written, batch, rounds)
        out.print(_table(rows))
        out.print(
            f"{describe_device(torch.device('cpu'))}, float32; all in turns, medians of "
            f"{counted(rounds, 'round')} (quartiles), the proposal included."
        )


def _create(
    name: str, random_weights: bool, size: int | tuple[int, int] | None
) -> "tuple[nn.Module, Weights]":
    from papr.named import create_classifier, meant
    from papr.timm_folders import is_timm

    if not is_timm(name):
        video = "; video hosts are exported in Python, by papr.export"
        why = video if name in VIDEO_HOSTS else meant(name)
        raise ConfigError(f"expected the name of a timm model, got {name!r}{why}")
    sized: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        return create_classifier(name, random_weights=random_weights, **sized)
    except TypeError:  # convolutional families take any size and have no such option
        return create_classifier(name, random_weights=random_weights)


def _report(written: "Exported", model: str) -> None:
    from papr.exporting.speed import LABELS

    weights = f" ({written.provenance})"
    grid = "" if written.grid is None else f" of the {' x '.join(map(str, written.grid))} patches"
    opset = "" if written.opset is None else f", opset {written.opset}"
    height, width = written.size
    megabytes = written.path.stat().st_size / 1e6
    print_line(
        f"{model}{weights}, keep {written.keep:g}{grid}, as {written.path}: {megabytes:.1f} MB, "
        f"{written.format}{opset}"
    )
    print_line(
        f"input {written.inputs[0]} (batch, 3, {height}, {width}), output "
        f"{', '.join(written.outputs)}"
    )
    runtime = LABELS["onnxruntime" if written.format == "onnx" else "torch"]
    print_line(f"{runtime} beside PyTorch: {_listed(written.differences)}")


def _listed(found: Mapping[int, float]) -> str:
    parts = [f"{gap:.1e} at batch {batch}" for batch, gap in found.items()]
    return "largest difference " + ", ".join(parts)


def _bench(
    dense: "nn.Module", pruned: "nn.Module", written: "Exported", batch: int, rounds: int
) -> "list[RuntimeRow]":
    import torch

    import papr
    from papr.exporting.speed import compare_runtimes

    runtime = "onnxruntime" if written.format == "onnx" else "torch"
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / f"dense{written.path.suffix}"
        with doing("exporting the dense model, to time it; --no-timing leaves that out") as say:
            papr.export(dense, other, written.size, written.format, say)
        images = torch.randn(batch, 3, *written.size)
        with progress("timing") as bar:
            task = bar.add_task("timing", total=(rounds + 2) * 4)
            return compare_runtimes(
                dense,
                pruned,
                {runtime: (other, written.path)},
                images,
                rounds=rounds,
                each_turn=lambda: bar.advance(task),
            )


def _table(rows: "list[RuntimeRow]") -> Table:
    from papr.exporting.speed import LABELS

    title = f"batch {rows[0].batch}, ms per image"
    table = Sheet("runtime", "dense", "pruned", "speed-up", title=title)
    for row in rows:
        table.add_row(
            LABELS[row.runtime],
            f"{row.dense_ms[0]:.1f}",
            f"{row.pruned_ms[0]:.1f}",
            with_quartiles(row.speedup),
        )
    return table
