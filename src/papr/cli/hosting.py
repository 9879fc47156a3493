"""What commands over data sets share: options, the host by name, its device."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from papr.cli.common import (
    DTYPES,
    SHOWN,
    errors,
    name_ignored,
    out,
    parse_dtype,
    parse_merge,
    parse_proposal_size,
    parse_stages,
    print_line,
)
from papr.cli.console import shown
from papr.config import PruneConfig
from papr.environment import describe_device, pick_device
from papr.errors import ConfigError, ProposalError
from papr.names import LOCAL_DIR, MODES, POLICIES, VIDEO_HOSTS
from papr.provenance import Weights
from papr.words import counted

if TYPE_CHECKING:  # torch and the extra "eval" are for those commands that need them
    from torch import nn

    from papr.evaluate import Source
    from papr.evaluate.finding import Found
    from papr.evaluate.loading import Skipped
    from papr.proposals import Proposal

DEFAULT_MODEL = "vit_base_patch16_224"
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"The host: a timm model, {LOCAL_DIR} and a folder that timm loads, torchvision/ and "
        "one of its models, or a folder or hub name of a model of transformers, for images or "
        f"videos; or {', '.join(VIDEO_HOSTS)}.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="A folder of images or videos (in folders by class, or not), WebDataset shards "
        "(a folder, shards/{000..009}.tar, https://...), Parquet files, a Hugging Face data set "
        "(save_to_disk's folder, NAME:SPLIT), or a list of files, with classes or without (.txt, "
        ".csv, .tsv). FOLDER:SPLIT takes one split of several."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Where the paths in a list start; its own folder by default."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        help="Which column of a table, or file of a shard's samples (jpg, left.png), is the image; "
        "by default the only one, or the one called image or img."
    ),
]
Views = Annotated[
    str,
    typer.Option(
        help=f"Views of a video, among {', '.join(POLICIES)}: which frames and crops its answer "
        "is the mean of. videomae has 15, as published accuracies; uniform 1."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A configuration as papr tune writes it (chosen.json); --keep and the other options "
        "of pruning, where given, take the place of what it says."
    ),
]
Checkpoint = Annotated[Path | None, typer.Option(help="A file of the timm model's own weights.")]
NumClasses = Annotated[
    int | None, typer.Option(min=1, help="How many classes the timm model's own weights have.")
]
NumClassesOrNone = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        min=0,
        help="How many classes the timm model's own weights have; 0 for its features alone.",
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Random weights where others would be downloaded, the proposal's included: speed is "
        "the same, answers mean nothing. Files of your own are loaded.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help=f"Among {', '.join(DTYPES)}.")]
Dtypes = Annotated[
    str, typer.Option("--dtype", help=f"Among {', '.join(DTYPES)}; several comma-separated.")
]
_BATCH = "Images or clips a call"
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch", "-b", min=1, help=f"{_BATCH}.", show_default="64 on a GPU, 16 elsewhere"
    ),
]
TimedBatch = Annotated[int, typer.Option("--batch", "-b", min=1, help=f"{_BATCH} that is timed.")]
TimedBatches = Annotated[
    str | None,
    typer.Option(
        "--batch",
        "-b",
        help=f"{_BATCH} that is timed; several comma-separated, such as 1,8.",
        show_default="as the device and the host have use for",
    ),
]
Modes = Annotated[
    str | None,
    typer.Option(
        "--modes",
        help=f"Among {', '.join(MODES)} (CUDA graphs, which small batches on a GPU need); several "
        "comma-separated. All but eager compile every host for every batch size first.",
        show_default="eager, on CUDA eager,graphs",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Timed turns of every rival.")]
RoundsOrNone = Annotated[
    int, typer.Option("--rounds", min=0, help="Timed turns of every rival; 0 leaves timing out.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=0,
        help="Processes that decode ahead; 0 for none.",
        show_default="one less than cores, up to 8",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for what is written.")]


def _run_folder(command: str) -> Any:
    return typer.Option(
        "--out",
        help="Folder for what is written; by default one that the same command finds again.",
        show_default=f"papr-{command}/MODEL-FINGERPRINT",
    )


EvalFolder = Annotated[Path | None, _run_folder("eval")]
SweepFolder = Annotated[Path | None, _run_folder("sweep")]
DriftFolder = Annotated[Path | None, _run_folder("drift")]
PredictFolder = Annotated[str | None, _run_folder("predict")]
ReproduceFolder = Annotated[Path | None, _run_folder("reproduce")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file, as JSON.")
]
_LIMIT = typer.Option(
    "--limit", min=1, help="Take so many samples only, spread evenly; of shards the first."
)
Limit = Annotated[int | None, _LIMIT]
LimitAlways = Annotated[int, _LIMIT]
Figures = Annotated[
    int, typer.Option(min=0, help="Draw pictures of so many images at most; 0 for none.")
]


def make_host(
    model: str,
    device: str,
    dtype: str,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    random_weights: bool = False,
) -> "tuple[nn.Module, Weights]":
    """The host on its device, in its dtype, in eval mode; and where its weights come from.

    Under torchrun, "auto" takes the GPU of this process's number.
    """
    kind = parse_dtype(dtype)
    from papr.named import create_host

    target = pick_device(device)
    host, weights = create_host(model, checkpoint, num_classes, random_weights)
    return host.to(device=target, dtype=kind), weights


def make_proposal(name: str, random_weights: bool) -> "Proposal":
    """Who looks first, as --random-weights says: random only where it would be downloaded."""
    from papr.proposals import as_proposal

    return as_proposal(name, random_weights)


def make_for_speed(
    model: str, proposal: str, random_weights: bool
) -> "tuple[nn.Module, Weights, Proposal]":
    """A host and who looks first, where speed is the point: random where weights cannot be had.

    It says so. Of timm and torchvision the host's are random in any case: speed does not depend on
    them, and nothing is downloaded.
    """
    import timm

    from papr.named import create_host

    plain = timm.is_model(model) or model.startswith("torchvision/") or model in VIDEO_HOSTS
    try:
        host, weights = create_host(model, random_weights=random_weights or plain)
    except ConfigError as error:
        host, weights = create_host(model, random_weights=True)
        _say_random("the host's weights are random", error)
    try:
        who = make_proposal(proposal, random_weights)
    except ProposalError as error:
        who = make_proposal(proposal, True)
        _say_random("the proposal's weights are random", error)
    return host, weights, who


def _say_random(what: str, why: Exception) -> None:
    text = f"{what}, the speed is the same: {why}"
    errors.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def with_proposals(configs: Sequence[PruneConfig], random_weights: bool) -> list[PruneConfig]:
    """The configurations, with random proposals where they would be downloaded.

    Without --random-weights they stay as they are: names and files.
    """
    if not random_weights:
        return list(configs)
    names = dict.fromkeys(config.proposal for config in configs)
    found = {name: make_proposal(name, random_weights) for name in names}
    return [
        replace(config, proposal=found[config.proposal])
        if found[config.proposal].weights.random
        else config
        for config in configs
    ]


def say_blank(sentence: str) -> None:
    """Print why figures are blank, where they are."""
    if sentence and first():
        out.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)


def read_configs(
    context: typer.Context,
    keeps: Sequence[float],
    config: Path | None,
    proposal: str,
    proposal_size: str | None,
    stages: str | None,
    score: str,
    merge_r: str | None,
) -> list[PruneConfig]:
    """One configuration for each keep, as the options say.

    Where there is a file, what it says holds but for the options that were given on the command
    line; which these are is printed.

    Args:
        context: of the command, which knows what was given.
        keeps: of --keep.
        config: the file.
        proposal: and so the rest: the options of these names, as they were given.
        proposal_size: see there.
        stages: see there.
        score: see there.
        merge_r: see there.
    """
    options: dict[str, Any] = {
        "proposal": proposal,
        "proposal_size": parse_proposal_size(proposal_size),
        "stages": parse_stages(stages),
        "score": score,
        "merge": parse_merge(merge_r),
    }
    if config is None:
        return [PruneConfig(keep, **options) for keep in keeps]
    stored = PruneConfig.from_file(config)
    chosen = {n: v for n, v in options.items() if _given(context, _OPTIONS.get(n, n))}
    found = [
        replace(stored, keep=keep, **chosen)
        for keep in (keeps if _given(context, "keep") else [stored.keep])
    ]
    named = [n for n in ("keep", *options) if any(_differ(stored, c, n) for c in found)]
    if named:
        said = ", ".join("--" + _OPTIONS.get(n, n).replace("_", "-") for n in named)
        say(f"{config}, but for {said} as given")
    return found


#: Options that are named otherwise than what they set.
_OPTIONS = {"merge": "merge_r"}


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line (or by the environment)."""
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _differ(stored: PruneConfig, found: PruneConfig, name: str) -> bool:
    same: bool = getattr(stored, name) == getattr(found, name)
    return not same


def find_data(data: str, root: Path | None = None, image_column: str | None = None) -> "Found":
    """The samples that --data names, before any model is made or fetched.

    Raises:
        DataError: nothing that can be read is there.
    """
    from papr.evaluate.finding import find

    return find(data, root=root, image_column=image_column)


def open_data(host: "nn.Module", data: "Found", limit: int | None = None) -> "Source":
    """The samples that were found, as the host takes them; of them --limit. Says which they are."""
    from papr.evaluate.preparing import open_for
    from papr.evaluate.sources import take

    source = open_for(host, data)
    source = source if limit is None else take(source, limit)
    say(f"{shown(data.name)}: {in_short(source)}")
    return source


def in_short(source: "Source") -> str:
    """Which samples there are: how many, and what was taken for image and class."""
    unit = "video" if source.kind == "videos" else "image"
    found = len(source.shards) if source.length is None else source.length
    parts = [counted(found, "shard" if source.length is None else unit)]
    if split := source.about.get("split"):
        parts.append(f"split {split}")
    if column := source.about.get("column"):
        parts.append(f"images from {shown(column)}")
    if classes := source.about.get("classes"):
        some = ", ".join(f"{shown(name)} {label}" for name, label in islice(classes.items(), 3))
        more = f", ... of {len(classes)} folders" if len(classes) > 3 else ""
        parts.append(f"folders as classes: {some}{more}")
    return "; ".join(parts)


def first() -> bool:
    """Whether this process speaks: alone, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def check_alone(command: str) -> None:
    """See that this is the only process, of a command whose work processes cannot share."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigError(
            f"expected papr {command} in one process, got {world} of torchrun's: each would do all "
            "the work and write the same files"
        )


def say(text: str) -> None:
    """Print a line, once however many processes there are."""
    if first():
        print_line(text)


def say_host(model: str, weights: Weights, host: "nn.Module", dtype: str) -> None:
    """Print what runs, and where."""
    device = describe_device(next(host.parameters()).device)
    say(f"{model} ({weights} weights), {device}, {dtype}")


def name_left_out(
    skipped: "Sequence[Skipped]",
    ignored: Sequence[str],
    rows: str = "without a row",
    place: str = "summary.json",
) -> None:
    """Name samples without an answer, the first few of each kind.

    Args:
        skipped: those that could not be read.
        ignored: files and folders that are none, hidden, or papr's own.
        rows: what of their rows.
        place: where all of them are named.
    """
    more = f"... all of them are named in {place}"
    if skipped:
        print_line(f"{counted(len(skipped), 'sample')} could not be read, {rows}:", "red", errors)
        for sample in skipped[:SHOWN]:
            print_line(f"  {shown(sample.id)}: {shown(sample.reason)}", to=errors)
    if skipped[SHOWN:]:
        print_line(f"  {more}", to=errors)
    name_ignored(ignored, "samples", more)
