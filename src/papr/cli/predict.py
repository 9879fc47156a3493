"""`papr predict`: a whole data set through one model, answers to Parquet."""

import importlib.util
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from papr.cli.common import (
    SHOWN,
    Keep,
    MergeR,
    ProposalName,
    ProposalSize,
    Score,
    Stages,
    Strict,
    check_dtypes,
    parse_list,
    print_line,
    settle,
)
from papr.cli.console import shown
from papr.cli.hosting import (
    DEFAULT_MODEL,
    BatchSize,
    Checkpoint,
    Config,
    Data,
    Device,
    Dtype,
    ImageColumn,
    Limit,
    Model,
    NumClassesOrNone,
    PredictFolder,
    RandomWeights,
    Root,
    Views,
    Workers,
    find_data,
    first,
    name_left_out,
    open_data,
    read_configs,
    say,
    say_blank,
    with_proposals,
)
from papr.cli.rates import rate_of
from papr.config import DEFAULT_PROPOSAL, PruneConfig, check_keep
from papr.environment import describe_device
from papr.errors import ConfigError
from papr.files import check_folder
from papr.words import counted


def predict(
    context: typer.Context,
    data: Data,
    model: Model = DEFAULT_MODEL,
    keep: Keep = 0.5,
    outputs: Annotated[
        str, typer.Option(help="What to write, among labels, embeddings, masks.")
    ] = "labels,embeddings,masks",
    engine: Annotated[
        str, typer.Option(help="local: this process, or torchrun's; ray: Ray Data.")
    ] = "local",
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
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="--engine ray: processes that hold the model; one a GPU."),
    ] = None,
    limit: Limit = None,
    root: Root = None,
    image_column: ImageColumn = None,
    views: Views = "videomae",
    dtype: Dtype = "float32",
    device: Device = "auto",
    out_dir: PredictFolder = None,
    strict: Strict = False,
) -> None:
    """Answer every sample of a data set with a pruned model; killed, the same command goes on.

    One row a sample is written to OUT/rows as Parquet: id and label of the data, the likeliest
    class (predicted) with the model's own name of it (class_name), top5 and score, the embedding,
    the mask of kept patches with its grid, or an error where it cannot be read. Read them with any
    reader of Parquet; papr.evaluate.unpack_mask gives a mask as an array.

    Several GPUs: torchrun --nproc-per-node 8 -m papr predict ...; several machines: the same with
    torchrun's own options, or --engine ray. docs/at_scale.md has both.

    Example: papr predict --data photos --out answers --model vit_base_patch16_224 --keep 0.5
    """
    (pruning,) = read_configs(
        context, [check_keep(keep)], config, proposal, proposal_size, stages, score, merge_r
    )
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError('expected ray for --engine ray: pip install "papr-torch[ray]"')
    check_dtypes(dtype)
    if out_dir is not None and engine != "ray":
        check_folder(Path(out_dir), "--out")
    from papr.evaluate import Predictor
    from papr.evaluate import predict as run

    (asked,) = with_proposals([pruning], random_weights)
    predictor = Predictor(
        model,
        asked,
        device=device,
        dtype=dtype,
        outputs=parse_list(outputs, str, "--outputs"),
        checkpoint=checkpoint,
        num_classes=num_classes,
        random_weights=random_weights,
        views=views,
    )
    samples = find_data(data, root, image_column)
    loaded = predictor.load()
    source = open_data(loaded.host, samples, limit)
    say(
        f"{model} ({loaded.provenance}), {_pruned(pruning)}, "
        f"{describe_device(loaded.device)}, {dtype}"
    )
    with rate_of(source) as bar:
        found = run(
            predictor,
            source,
            out_dir,
            engine=engine,
            batch=batch,
            workers=workers,
            actors=actors,
            watch=bar.watch,
        )
    if not first():
        return
    rate = f" at {found.done / found.seconds:.1f} a second" if found.done else ""
    print_line(
        f"{counted(found.samples, 'sample')}, {found.done} of them now{rate}; {found.provenance}"
    )
    if found.likeliest and not found.warning:
        some = [f"{name} {number}" for name, number in islice(found.likeliest.items(), SHOWN)]
        more = f", ... of {counted(len(found.likeliest), 'class')}"
        print_line(f"predicted: {shown(', '.join(some))}{more * (len(found.likeliest) > SHOWN)}")
    for sentence in found.nulls:
        print_line(sentence, "dim")
    say_blank(found.warning)
    name_left_out(found.skipped, found.ignored, rows="with a row that says why")
    place = found.out if "://" in found.out else str(Path(found.out))
    print_line(f"written: {place}/rows")
    settle(found.samples - len(found.skipped), len(found.skipped), strict)


def _pruned(config: PruneConfig) -> str:
    return "dense" if config.keep == 1 and config.merge is None else f"keep {config.keep:g}"
