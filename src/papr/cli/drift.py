"""`papr drift`: may pruned queries meet an index that the dense model made?"""

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
    parse_list,
    print_line,
    settle,
)
from papr.cli.hosting import (
    DEFAULT_MODEL,
    BatchSize,
    Checkpoint,
    Config,
    Data,
    Device,
    DriftFolder,
    Dtype,
    ImageColumn,
    Limit,
    Model,
    NumClassesOrNone,
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
from papr.errors import ConfigError
from papr.files import check_folder
from papr.words import counted

if TYPE_CHECKING:
    from papr.evaluate import Drift
    from papr.evaluate.drift import Column
    from papr.evaluate.estimates import Estimate

_EMBEDDINGS = ("classifier-input", "output")


def drift(
    context: typer.Context,
    data: Data,
    model: Model = DEFAULT_MODEL,
    keep: Keeps = "0.7,0.5",
    embedding: Annotated[
        str,
        typer.Option(
            help="classifier-input: what goes into the classifier; output: what the model returns, "
            "such as CLIP's projection. Alike where there is no classifier."
        ),
    ] = "classifier-input",
    k: Annotated[str, typer.Option("--k", help="Of recall@k.")] = "1,5,10",
    queries: Annotated[
        int, typer.Option(min=2, help="Ask with so many images at most; the index is whole.")
    ] = 10_000,
    target_recall: Annotated[
        float, typer.Option(help="Recall at the largest k that an index is kept for.")
    ] = 0.95,
    merge_r: MergeR = None,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    stages: Stages = None,
    score: Score = "significance",
    config: Config = None,
    checkpoint: Checkpoint = None,
    num_classes: NumClassesOrNone = None,
    random_weights: RandomWeights = False,
    batch: BatchSize = None,
    workers: Workers = None,
    limit: Limit = None,
    root: Root = None,
    image_column: ImageColumn = None,
    views: Views = "videomae",
    dtype: Dtype = "float32",
    device: Device = "auto",
    out_dir: DriftFolder = None,
    strict: Strict = False,
) -> None:
    """Embed a data set dense and pruned, and search the dense index with pruned queries.

    For people who keep an index of embeddings and would like to prune the queries. "recall@k" is
    the share of a dense query's k nearest images (by cosine, itself left out) that the pruned query
    finds in the dense index; "in a pruned index", had the index been embedded anew. "finds itself"
    is how often the pruned query's nearest is its own image. Figures have 95 % intervals.

    Embeddings are written to OUT/rows as Parquet while it goes, figures to OUT/summary.json.
    Killed, the same command goes on. The search compares every query to every image.

    Example: papr drift --data photos --model vit_small_patch14_dinov2 --keep 0.7,0.5
    """
    if embedding not in _EMBEDDINGS:
        raise ConfigError(f"expected --embedding among {', '.join(_EMBEDDINGS)}, got {embedding!r}")
    if out_dir is not None:
        check_folder(out_dir, "--out")
    configs = read_configs(
        context, parse_keeps(keep), config, proposal, proposal_size, stages, score, merge_r
    )
    from papr.evaluate import drift as run
    from papr.evaluate import prepare_for
    from papr.evaluate.drift import check_count, check_search

    ks = check_search(parse_list(k, int, "--k"), queries, target_recall)
    samples = find_data(data, root, image_column)
    if not random_weights:  # which search nothing
        check_count(limit if samples.most is None else min(samples.most, limit or samples.most), ks)
    configs = with_proposals(configs, random_weights)
    host, weights = make_host(model, device, dtype, checkpoint, num_classes, random_weights)
    source = open_data(host, samples, limit)
    say_host(model, weights, host, dtype)
    with rate_of(source) as bar:
        found = run(
            host,
            source,
            configs,
            out_dir,
            name=model,
            weights=weights,
            prepare=prepare_for(host, model, views),
            output=embedding == "output",
            ks=ks,
            queries=queries,
            target=target_recall,
            batch=batch,
            workers=workers,
            watch=bar.watch,
        )
    if first():
        _show(found, model)
        settle(found.images, len(found.skipped), strict)


def _show(found: "Drift", model: str) -> None:
    if found.columns:
        out.print(_table(found, model))
    else:
        print_line(
            f"{model}: {counted(found.images, 'image')}, {counted(found.width, 'number')} each"
        )
    for column in found.columns:
        out.print(f"{column.name}: {_say(found, column)}", highlight=False)
    say_blank(found.blank)
    name_left_out(found.skipped, found.ignored)
    print_line(f"written: {found.folder}")


def _table(found: "Drift", model: str) -> Table:
    title = (
        f"{model}: {counted(found.images, 'image')}, "
        f"{counted(found.width, 'number')} each, {counted(found.queries, 'query')}"
    )
    table = Sheet("", *(column.name for column in found.columns), title=title)
    lines = {
        "cosine, mean": [_cell(c.cosine, 4) for c in found.columns],
        "cosine, 5th percentile": [_cell(c.fifth, 4) for c in found.columns],
        "cosine, least": [f"{c.least:.4f}" for c in found.columns],
    }
    for k in found.columns[0].recall:
        lines[f"recall@{k}"] = [_cell(c.recall[k]) for c in found.columns]
    lines["finds itself"] = [_cell(c.own) for c in found.columns]
    for k in found.columns[0].again:
        lines[f"recall@{k} in a pruned index"] = [_cell(c.again[k]) for c in found.columns]
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def _cell(found: "Estimate", digits: int = 3) -> str:
    return f"{found.value:.{digits}f} [dim]({found.low:.{digits}f}-{found.high:.{digits}f})[/dim]"


def _say(found: "Drift", column: "Column") -> str:
    k = max(column.recall)
    kept, again = (
        f"{estimate.value:.1%} ({estimate.low:.1%}-{estimate.high:.1%})"
        for estimate in (column.recall[k], column.again[k])
    )
    wanted = f"{found.target:.0%}"
    return {
        "keep": f"keep the index: pruned queries find {kept} of the {k} nearest, {wanted} wanted.",
        "re-embed": f"re-embed the index, pruned: pruned queries find {kept} of the {k} nearest in "
        f"the dense index and {again} in a pruned one, {wanted} wanted.",
        "dense": f"do not prune at this keep, or live with other neighbours: pruned queries find "
        f"{kept} of the {k} nearest, in a re-embedded index {again}; {wanted} wanted.",
        "unclear": f"too few queries to tell: {kept} of the {k} nearest, in a re-embedded index "
        f"{again}; {wanted} wanted. Take more images.",
    }[found.verdict(column)]
