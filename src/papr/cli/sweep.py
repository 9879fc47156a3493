"""`papr sweep`: a grid of configurations beside the baselines, as plots and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from papr.cli.common import (
    Keeps,
    ProposalNames,
    ProposalSizes,
    Score,
    Stages,
    Strict,
    out,
    parse_keeps,
    parse_list,
    parse_proposal_size,
    parse_stages,
    print_line,
    results_first,
    settle,
    share_cell,
    shown_shares,
)
from papr.cli.evaluate import gmacs_heading
from papr.cli.hosting import (
    DEFAULT_MODEL,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Dtype,
    ImageColumn,
    Limit,
    Model,
    NumClasses,
    RandomWeights,
    Root,
    SweepFolder,
    Views,
    Workers,
    find_data,
    first,
    make_host,
    name_left_out,
    open_data,
    say_blank,
    say_host,
    with_proposals,
)
from papr.cli.rates import rate_of
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL, ProposalSize
from papr.environment import describe_device
from papr.errors import ConfigError
from papr.files import check_folder
from papr.words import counted

if TYPE_CHECKING:
    from papr.evaluate.sweep import Sweep

Rs = Annotated[
    str | None,
    typer.Option(
        help="Plain ViTs: tokens merged away in each block (ToMe), 0 for none; several "
        "comma-separated; in the second half of the blocks.",
        show_default="0,8 where the model can merge",
    ),
]


def sweep(
    data: Data,
    model: Model = DEFAULT_MODEL,
    keep: Keeps = "0.7,0.5,0.3",
    merge_r: Rs = None,
    proposals: ProposalNames = DEFAULT_PROPOSAL,
    proposal_sizes: ProposalSizes = "default",
    stages: Stages = None,
    score: Score = "significance",
    baselines: Annotated[bool, typer.Option(help="Run the baselines at every keep too.")] = True,
    tome_r: Annotated[str, typer.Option(help="Of ToMe alone, among the baselines.")] = "4,8,16",
    quality: Annotated[
        str | None,
        typer.Option(
            help="What is plotted: top1, agreement or cosine; by default the first there is that "
            "means something."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    num_classes: NumClasses = None,
    random_weights: RandomWeights = False,
    batch: BatchSize = None,
    workers: Workers = None,
    limit: Limit = None,
    root: Root = None,
    image_column: ImageColumn = None,
    views: Views = "videomae",
    dtype: Dtype = "float32",
    device: Device = "auto",
    html: Annotated[bool, typer.Option(help="Write sweep.html too: 5 MB, opens offline.")] = True,
    out_dir: SweepFolder = None,
    strict: Strict = False,
) -> None:
    """Try a grid of configurations beside the baselines, and draw what each gives and costs.

    Every --keep with every --merge-r, proposal and resolution; at each keep also a selection at
    random, the centre, an even stride, the norm of the model's own patch embeddings, its class
    attention in block 3 and the model on a smaller picture; and ToMe alone. One pass over the data:
    each sample is decoded once and the dense model answers it once. Time is of the forward pass by
    itself, all of them in turns, whoever looks first included.

    A point is on the front when no other is at least as good in cost and quality and better in one.
    The front by time moves with the machine's noise where points lie close.

    Written to the run's folder: rows of every sample (see "papr eval"), sweep.csv, sweep.json,
    sweep.png and sweep.html, which needs no network. Killed, the same command goes on. Of a plain
    ViT the defaults cost about 17 dense passes over the data: begin with --limit 100.

    Example: papr sweep --data photographs/ --model vit_base_patch16_224 --limit 100
    """
    if out_dir is not None:
        check_folder(out_dir, "--out")
    keeps = parse_keeps(keep)
    if max(keeps) == 1:
        raise ConfigError(f"expected --keep below 1, the dense model is always there, got {keep!r}")
    rs = None if merge_r is None else parse_list(merge_r, int, "--merge-r")
    tome_rs = parse_list(tome_r, int, "--tome-r")
    sizes = parse_sizes(proposal_sizes)
    names = parse_list(proposals, str, "--proposal")
    import torch

    from papr.evaluate import prepare_for
    from papr.evaluate.answers import class_count
    from papr.evaluate.sweep import RS, can_merge, grid
    from papr.evaluate.sweep import sweep as run

    samples = find_data(data, root, image_column)
    host, weights = make_host(model, device, dtype, checkpoint, num_classes, random_weights)
    rs = rs or list(RS if can_merge(host) else (0,))
    configs = grid(keeps, rs, names, sizes, stages=parse_stages(stages), score=score)
    configs = with_proposals(configs, random_weights)
    source = open_data(host, samples, limit)
    say_host(model, weights, host, dtype)
    with rate_of(source) as bar:
        found = run(
            host,
            source,
            configs,
            out_dir,
            baselines=baselines,
            tome_rs=tome_rs,
            quality=quality,
            name=model,
            weights=weights,
            prepare=prepare_for(host, model, views),
            batch=batch,
            workers=workers,
            watch=bar.watch,
        )
    if not first():
        return
    device = describe_device(next(host.parameters()).device)
    count = counted(found.points[0].result.images, found.report.unit)
    note = f"{model} ({found.report.provenance}), {count}, {device}, torch {torch.__version__}"
    folder, files = Path(found.report.folder), list[Path]()
    with results_first(lambda: files.extend(found.write(folder, note, html))):
        out.print(table(found, class_count(host)))
        explain(found)
    there = ", ".join([*(path.name for path in files), "rows/"])
    print_line(f"written to {folder}: {there}")
    settle(found.points[0].result.images, len(found.report.skipped), strict)


def parse_sizes(text: str) -> list[ProposalSize]:
    """Resolutions, comma-separated; "default" for the proposal's own choice."""
    parts = [part.strip() for part in text.split(",")]
    return [parse_proposal_size(None if part == "default" else part) for part in parts]


def table(found: "Sweep", classes: int | None) -> Table:
    """All points, family by family; the fronts they are on in the last column.

    Args:
        found: by the sweep.
        classes: of the host; see `shown_shares`.
    """
    results = [point.result for point in found.points]
    shares = {"top-1": "top1", "agree": "agreement", "cosine": "cosine", "differs": "difference"}
    shares = shown_shares(shares, results[0], bool(found.report.blank), classes)
    unit = found.report.unit
    costs = (gmacs_heading(found.report), f"ms/{unit}", "speed-up", "front")
    sheet = Sheet("", *shares, *costs)
    letters = {"gmacs": "G", "ms_per_image": "T"}
    for point in found.points:
        result = point.result
        sheet.add_row(
            result.name,
            *(share_cell(getattr(result, name)) for name in shares.values()),
            f"{result.gmacs:.2f}",
            f"{result.ms_per_image[0]:.1f}" if result.ms_per_image else "",
            f"{result.speedup[0]:.2f}" if result.speedup else "",
            "".join(letters[cost] for cost in point.fronts),
            style="bold" if point.fronts else None,
        )
    return sheet


def explain(found: "Sweep") -> None:
    """What the table does not say by itself."""
    front = (
        f"On the front by GMACs (G) or measured time (T): no other is at least as good in "
        f"{found.quality} and cost and better in one. "
    )
    time = "Time: medians over batches, in turns; quartiles in sweep.csv."
    out.print(front * (found.quality is not None) + time, style="dim")
    times = [point.result.ms_per_image for point in found.points]
    if all(time is not None and time[1] == time[2] for time in times):
        out.print(
            "[yellow]One batch was timed, so nothing says how far times may be off: take a larger "
            "--limit or a smaller --batch.[/yellow]"
        )
    for name, reason in found.missing.items():
        print_line(f"left out: {name}: {reason}", "dim")
    name_left_out(found.report.skipped, found.report.ignored)
    if found.report.note:
        print_line(found.report.note, "dim")
    say_blank(found.report.blank)
