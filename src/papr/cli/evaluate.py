"""`papr eval`: what pruning costs in answers and saves in time, on a whole data set."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from papr.cli.common import (
    Keeps,
    MergeR,
    ProposalName,
    ProposalSize,
    Score,
    Stages,
    Strict,
    out,
    parse_keeps,
    print_line,
    settle,
    share_cell,
    shown_shares,
    with_quartiles,
)
from papr.cli.hosting import (
    DEFAULT_MODEL,
    BatchSize,
    Checkpoint,
    Config,
    Data,
    Device,
    Dtype,
    EvalFolder,
    ImageColumn,
    Limit,
    Model,
    NumClasses,
    RandomWeights,
    Root,
    Views,
    Workers,
    find_data,
    first,
    make_host,
    name_left_out,
    open_data,
    read_configs,
    say_blank,
    say_host,
    with_proposals,
)
from papr.cli.rates import rate_of
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL
from papr.files import check_folder
from papr.words import counted

if TYPE_CHECKING:  # the extra "eval" may be missing until a command needs it
    from papr.evaluate.summary import Report


def evaluate(
    context: typer.Context,
    data: Data,
    model: Model = DEFAULT_MODEL,
    keep: Keeps = "1.0,0.7,0.5,0.3",
    merge_r: MergeR = None,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    stages: Stages = None,
    score: Score = "significance",
    config: Config = None,
    checkpoint: Checkpoint = None,
    num_classes: NumClasses = None,
    random_weights: RandomWeights = False,
    batch: BatchSize = None,
    workers: Workers = None,
    part: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples a file of rows, which is what a killed run loses at most; by default a "
            "hundredth of them, 64 to 8192.",
        ),
    ] = None,
    limit: Limit = None,
    root: Root = None,
    image_column: ImageColumn = None,
    views: Views = "videomae",
    dtype: Dtype = "float32",
    device: Device = "auto",
    out_dir: EvalFolder = None,
    strict: Strict = False,
) -> None:
    """Evaluate a model dense and pruned on a data set; killed, the same command goes on.

    Every sample goes through the dense model and every --keep, in turns. "agree" is how often the
    answer is the dense model's, "cosine" how near the embedding is to its; of a model of one output
    "differs" is how far that is from the dense model's, in standard deviations of the latter (0 is
    the same, 1 about as far as another image's). top-1, and of more than five classes top-5, need
    labels: folders named by WordNet ids, or as many folders as the model has classes. Time is of
    the forward pass, the proposal included, medians over batches (quartiles in wide terminals).

    Rows (sample, label, top-5, share of patches kept, agreement, configuration) are written to
    OUT/rows as Parquet while it goes, figures to OUT/summary.json. Samples that cannot be read are
    named and have no row. A folder with rows of another configuration is refused.

    Several GPUs or machines: torchrun --nproc-per-node 8 -m papr eval ...: the same rows.

    Example: papr eval --data imagenet/val --model vit_base_patch16_224.augreg2_in21k_ft_in1k
    --keep 1.0,0.7,0.5
    """
    if out_dir is not None:
        check_folder(out_dir, "--out")
    configs = read_configs(
        context, parse_keeps(keep), config, proposal, proposal_size, stages, score, merge_r
    )
    from papr.evaluate import evaluate as run
    from papr.evaluate import prepare_for

    samples = find_data(data, root, image_column)
    configs = with_proposals(configs, random_weights)
    host, weights = make_host(model, device, dtype, checkpoint, num_classes, random_weights)
    source = open_data(host, samples, limit)
    say_host(model, weights, host, dtype)
    with rate_of(source) as bar:
        report = run(
            host,
            source,
            configs,
            out_dir,
            name=model,
            weights=weights,
            prepare=prepare_for(host, model, views),
            batch=batch,
            part=part,
            workers=workers,
            watch=bar.watch,
        )
    if not first():
        return
    from papr.evaluate.answers import class_count

    out.print(results_table(report, class_count(host)))
    _explain(report)
    settle(report.results[0].images, len(report.skipped), strict)


def results_table(report: "Report", classes: int | None) -> Table:
    """One line for each contender: what it answers beside what it costs.

    Args:
        report: of the evaluation.
        classes: of the host; see `shown_shares`.
    """
    results = report.results
    known = {"top-1": "top1", "top-5": "top5", "agree": "agreement", "cosine": "cosine"}
    known |= {"differs": "difference"}
    shares = shown_shares(known, results[0], bool(report.blank), classes)
    title = counted(results[0].images, report.unit)
    costs = (gmacs_heading(report), f"{report.unit}s/s", "speed-up", "MB")
    table = Sheet("", *shares, *costs, title=title)
    for result in results:
        speed = result.images_per_second
        table.add_row(
            result.name,
            *(share_cell(getattr(result, name)) for name in shares.values()),
            f"{result.gmacs:.2f}",
            "" if speed is None else f"{speed:.1f}",
            "" if result.speedup is None else _speedup(result.speedup),
            "" if result.peak_mb is None else f"{result.peak_mb:.0f}",
        )
    return table


def gmacs_heading(report: "Report") -> str:
    """Of a video they are those of one view, while time is of all."""
    return "GMACs" if report.gmacs_of == report.unit else f"GMACs/{report.gmacs_of}"


def _speedup(ratio: tuple[float, float, float]) -> str:
    return with_quartiles(ratio) if out.width >= 90 else f"{ratio[0]:.2f}"


def _explain(report: "Report") -> None:
    """What the table does not say by itself."""
    waited = report.waited / report.wall if report.wall else 0.0
    out.print(
        f"Forward passes in turns, medians over batches; {waited:.0%} of the time the model waited "
        "for the loader.",
        highlight=False,
    )
    if report.note:
        print_line(report.note, "dim")
    say_blank(report.blank)
    name_left_out(report.skipped, report.ignored)
    print_line(f"rows and figures in {report.folder}")
