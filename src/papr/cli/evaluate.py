"""`papr eval`: what pruning costs in answers and saves in time, on a whole data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from papr.cli.common import (
    MergeR,
    ProposalName,
    ProposalSize,
    Score,
    Stages,
    errors,
    out,
    parse_keeps,
    parse_merge,
    parse_proposal_size,
    parse_stages,
    with_quartiles,
)
from papr.cli.hosting import (
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Dtype,
    Limit,
    Model,
    NumClasses,
    Rate,
    Workers,
    make_host,
)
from papr.config import DEFAULT_PROPOSAL, PruneConfig
from papr.environment import describe_device
from papr.errors import ConfigError


def evaluate(
    data: Data,
    model: Model = "vit_base_patch16_224",
    keep: Annotated[str, typer.Option(help="Fractions of patches to keep.")] = "1.0,0.7,0.5,0.3",
    merge_r: MergeR = None,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    stages: Stages = None,
    score: Score = "significance",
    checkpoint: Checkpoint = None,
    num_classes: NumClasses = None,
    batch: BatchSize = None,
    workers: Workers = None,
    limit: Limit = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run; by default papr-eval/MODEL-FINGERPRINT."),
    ] = None,
) -> None:
    """Evaluate a model dense and pruned on a data set; killed, the same command goes on.

    Every sample goes through the dense model and every --keep, in turns. "agree" is how often the
    answer is the dense model's, "cosine" how near the embedding is to its; top-1 and top-5 need
    labels: folders named by WordNet ids, or as many folders as the model has classes. Time is of
    the forward pass, the proposal included, medians over batches (quartiles in --out).

    Rows (sample, label, top-5, share of patches kept, agreement, configuration) are written to
    OUT/rows as Parquet while it goes, figures to OUT/summary.json. Samples that cannot be read are
    named and have no row. A folder with rows of another configuration is refused.

    Several GPUs or machines: torchrun --nproc-per-node 8 -m papr eval ...: the same rows.

    Example: papr eval --data imagenet/val --model vit_base_patch16_224.augreg2_in21k_ft_in1k
    --keep 1.0,0.7,0.5
    """
    from papr.evaluate import evaluate as run
    from papr.evaluate import open_source
    from papr.evaluate.answers import class_count
    from papr.evaluate.sources import take

    configs = [
        PruneConfig(
            fraction,
            proposal=proposal,
            proposal_size=parse_proposal_size(proposal_size),
            stages=parse_stages(stages),
            score=score,
            merge=parse_merge(merge_r),
        )
        for fraction in parse_keeps(keep)
    ]
    host, weights = make_host(model, device, dtype, checkpoint, num_classes)
    source = open_source(data, class_count(host))
    source = source if limit is None else take(source, limit)
    with Rate() as bar:
        report = run(
            host,
            source,
            configs,
            out_dir,
            name=model,
            batch=batch,
            workers=workers,
            watch=bar.watch,
        )
    # TODO
