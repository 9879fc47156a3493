"""`papr bench`: is it faster on this machine, and by how much of what it could be?"""

import sys
from functools import partial
from typing import TYPE_CHECKING

from papr.cli.common import (
    Attention,
    Keeps,
    MergeR,
    ProposalName,
    ProposalSize,
    Score,
    Stages,
    advise,
    check_dtypes,
    check_modes,
    out,
    parse_dtypes,
    parse_keeps,
    parse_list,
    parse_merge,
    parse_proposal_size,
    parse_stages,
    print_line,
    progress,
    say_where_it_pays,
    speed_table,
    written,
)
from papr.cli.hosting import (
    DEFAULT_MODEL,
    Device,
    Dtypes,
    JsonFile,
    Model,
    Modes,
    RandomWeights,
    Rounds,
    TimedBatches,
    make_for_speed,
)
from papr.config import DEFAULT_PROPOSAL
from papr.environment import describe_device, environment, pick_device
from papr.errors import ConfigError
from papr.files import check_file
from papr.provenance import KEY, Provenance
from papr.words import counted

if TYPE_CHECKING:
    import torch

    from papr.compare import Row


def bench(
    model: Model = DEFAULT_MODEL,
    keep: Keeps = "0.7,0.5,0.3",
    batch: TimedBatches = None,
    dtype: Dtypes = "float32",
    device: Device = "auto",
    modes: Modes = None,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    random_weights: RandomWeights = False,
    proposal_size: ProposalSize = None,
    stages: Stages = None,
    attention: Attention = "dense",
    score: Score = "significance",
    merge_r: MergeR = None,
    rounds: Rounds = 7,
    json_file: JsonFile = None,
) -> None:
    """Time a model dense and pruned, taking turns in one run.

    Weights are random, but for those of a folder or a hub, and those too where they cannot be had:
    speed does not depend on them. The
    speed-up is the median of the turns' ratios (quartiles in parentheses), the proposal's cost
    included. "ideal" is what the multiply-accumulates alone would give; measured/ideal says how
    much of it arrives. Of several batch sizes the one from which pruning pays is named too.
    """
    keeps = [k for k in parse_keeps(keep) if k < 1]
    merge = parse_merge(merge_r)
    batches = None if batch is None else _batches(batch)
    check_dtypes(dtype)
    timed_modes = None if modes is None else check_modes(modes)
    if not keeps:
        raise ConfigError(f"expected at least one --keep below 1, got {keep!r}")
    check_file(json_file, "--json")
    import torch

    from papr.compare import compare
    from papr.compare.modes import over_batches, pays_from, usual_batches, usual_modes
    from papr.compare.speed import WARMUP
    from papr.hosts.inputs import pixel_shape
    from papr.hub import video_statistics

    dtypes = parse_dtypes(dtype)
    target = pick_device(device)
    host, weights, who = make_for_speed(model, proposal, random_weights)
    host = host.to(target)
    weighed = Provenance(weights, {who.name: who.weights})
    shape = pixel_shape(host)
    unit = "image" if len(shape) == 3 else "clip"
    mean, std = video_statistics(host, model) if unit == "clip" else (None, None)
    timed_modes = timed_modes or list(usual_modes(target))
    sizes = batches or list(usual_batches(host))

    print_line(f"{model} ({weighed}), {describe_device(target)}, torch {torch.__version__}")
    if unit == "clip":
        out.print(f"clips of {' x '.join(map(str, shape))} (frames, channels, height, width)")
    tables: list[list[Row]] = []
    turns = (rounds + WARMUP) * (len(keeps) + 1)
    with progress("timing") as bar:
        task = bar.add_task("timing", total=turns * len(sizes) * len(dtypes) * len(timed_modes))
        for kind in dtypes:
            host = host.to(device=target, dtype=kind)
            draw = partial(_pixels, shape, target, kind)
            for mode in timed_modes:
                timed = partial(
                    compare,
                    host,
                    keeps=keeps,
                    rounds=rounds,
                    mode=mode,
                    each_turn=lambda: bar.advance(task),
                    proposal=who,
                    proposal_size=parse_proposal_size(proposal_size),
                    stages=parse_stages(stages),
                    attention=attention,
                    score=score,
                    merge=merge,
                    mean=mean,
                    std=std,
                )
                tables += over_batches(sizes, draw, timed)
    rows = [row for table in tables for row in table]
    pays = pays_from(tables)
    report = {
        "command": " ".join(["papr", *sys.argv[1:]]),
        "model": model,
        KEY: weighed.to_dict(),
        "modes": timed_modes,
        "proposal": proposal,
        "stages": stages,
        "attention": attention,
        "score": score,
        "merge_r": merge_r,
        "rounds": rounds,
        "environment": environment(target),
        "rows": [row.to_dict() for row in rows],
        "pays_from": [paying.to_dict() for paying in pays],
    }
    with written(json_file, report):
        for table in tables:
            out.print(speed_table(table, unit))
        out.print(f"Dense and pruned in turns, medians of {counted(rounds, 'round')} (quartiles).")
        say_where_it_pays(pays, sizes)
        advise(rows)


def _pixels(
    shape: "tuple[int, ...]", device: "torch.device", dtype: "torch.dtype", batch: int
) -> "torch.Tensor":
    import torch

    return torch.randn(batch, *shape, device=device, dtype=dtype)


def _batches(text: str) -> list[int]:
    numbers = parse_list(text, int, "--batch")
    if min(numbers) < 1:
        raise ConfigError(f"expected --batch of at least 1, got {min(numbers)}")
    return numbers
