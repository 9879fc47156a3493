"""`papr doctor`: is pruning worth it for this model, on this machine, with this data?"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from papr.cli.common import (
    Keeps,
    ProposalName,
    ProposalSize,
    Strict,
    check_dtypes,
    check_modes,
    out,
    parse_keeps,
    parse_list,
    parse_proposal_size,
    print_line,
    progress,
    say_where_it_pays,
    settle,
    speed_table,
    written,
)
from papr.cli.hosting import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    ImageColumn,
    JsonFile,
    LimitAlways,
    Model,
    Modes,
    RandomWeights,
    Rounds,
    TimedBatches,
    Workers,
    check_alone,
    find_data,
    make_host,
    make_proposal,
    name_left_out,
    open_data,
)
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL
from papr.environment import describe_device
from papr.errors import ConfigError
from papr.files import check_file
from papr.provenance import KEY, Provenance
from papr.words import counted

if TYPE_CHECKING:
    from papr.evaluate.doctor import Diagnosis
    from papr.evaluate.verdicts import Part

_COLOURS = {"good": "green", "unclear": "yellow"}


def doctor(
    model: Model = DEFAULT_MODEL,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data, as papr eval takes it; else a made-up photograph is decoded."
        ),
    ] = None,
    image_column: ImageColumn = None,
    keep: Keeps = "0.7,0.5,0.3",
    batch: TimedBatches = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    modes: Modes = None,
    workers: Workers = None,
    limit: LimitAlways = 64,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    random_weights: RandomWeights = False,
    proposal_size: ProposalSize = None,
    rounds: Rounds = 5,
    json_file: JsonFile = None,
    strict: Strict = False,
) -> None:
    """Say whether pruning pays for a model on this machine, and where its time goes.

    Measured are: the model dense and pruned, in turns, at a few batch sizes, on CUDA eagerly and in
    CUDA graphs; the proposal alone; and what one process needs to decode and resize an image. From
    these come the batch size from which pruning pays, the break-even keep, the speed-up to be
    expected from file to answer, and a verdict, which may be "do not bother".
    Speed does not depend on weights: --random-weights does without a download. What
    pruning costs in answers is for papr eval to say.

    Example: papr doctor --model vit_base_patch16_224 --data photographs/ --device cpu
    """
    check_alone("doctor")
    keeps = [k for k in parse_keeps(keep) if k < 1]
    if not keeps:
        raise ConfigError(f"expected at least one --keep below 1, got {keep!r}")
    sizes = None if batch is None else parse_list(batch, _count, "--batch")
    check_dtypes(dtype)
    timed_modes = None if modes is None else check_modes(modes)
    looks_at = parse_proposal_size(proposal_size)
    check_file(json_file, "--json")
    from papr.compare.modes import usual_batches, usual_modes
    from papr.evaluate.doctor import diagnose, turns  # needs the extra `eval`
    from papr.hosts.inputs import pixel_shape
    from papr.hub import video_statistics

    there = None if data is None else find_data(data, image_column=image_column)
    host, weights = make_host(model, device, dtype, random_weights=random_weights)
    who = make_proposal(proposal, random_weights)
    weighed = Provenance(weights, {who.name: who.weights})
    is_video = len(pixel_shape(host)) == 4
    mean, std = video_statistics(host, model) if is_video else (None, None)
    sizes = sizes or list(usual_batches(host))
    target = next(host.parameters()).device
    timed_modes = timed_modes or list(usual_modes(target))
    place = describe_device(target)
    print_line(f"{model} ({weighed}), {place}, {dtype}")
    with progress("timing") as bar:
        task = bar.add_task("timing", total=turns(len(keeps), len(sizes), rounds, len(timed_modes)))
        found = diagnose(
            host,
            None if there is None else open_data(host, there),
            name=model,
            keeps=keeps,
            batches=sizes,
            modes=timed_modes,
            rounds=rounds,
            workers=workers,
            samples=limit,
            proposal=who,
            proposal_size=looks_at,
            mean=mean,
            std=std,
            each_turn=lambda: bar.advance(task),
        )
    about = {
        "command": " ".join(["papr", *sys.argv[1:]]),
        "model": model,
        "proposal": proposal,
        KEY: weighed.to_dict(),
    }
    with written(json_file, about | found.to_dict()):
        show(found, "clip" if is_video else "image", sizes)
    loading = None if found.measured is None else found.measured.loading
    if loading is not None:
        settle(loading.samples, len(loading.skipped), strict)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ConfigError(f"expected --batch of at least 1, got {text}")
    return int(text)


def show(found: "Diagnosis", unit: str, asked: Sequence[int] = ()) -> None:
    """Print a diagnosis: the verdict first, then what it rests on.

    Args:
        found: it.
        unit: what one row of a batch is, "image" or "clip".
        asked: the batch sizes that were to be timed.
    """
    from papr.compare.modes import pays_from

    colour = _COLOURS.get(found.verdict.kind, "red")
    out.print(found.verdict.text, style=f"bold {colour}", highlight=False, markup=False)
    for hindrance in found.hindrances:
        out.print(f"[yellow]Note:[/yellow] {hindrance}.", highlight=False)
    if found.measured is None:
        return
    _show_break_even(found)
    say_where_it_pays(pays_from(found.measured.tables), asked)
    for table in found.measured.tables:
        out.print(speed_table(table, unit))
    _show_parts(found, unit)
    if found.measured.loading is not None:
        name_left_out(found.measured.loading.skipped, (), "not timed", "what --json writes")


def _show_parts(found: "Diagnosis", unit: str) -> None:
    measured = found.measured
    assert measured is not None
    timed = measured.tables[measured.best][0]
    headings = ("decode", "resize", "proposal", "host", "rest", "end to end")
    title = f"where the time of one {unit} goes, ms, batch {timed.batch}, {timed.mode}"
    shown = Sheet("keep", *headings, title=title)
    dense = found.end_to_end[1.0]
    for part in found.parts:
        rate = found.end_to_end[part.keep]
        gain = f"{rate:.1f}/s" if part.keep == 1 else f"{rate:.1f}/s {rate / dense:.2f}x"
        shown.add_row("dense" if part.keep == 1 else f"{part.keep:g}", *_cells(part), gain)
    out.print(shown)
    machine, loading = measured.machine, measured.loading
    if loading is None:
        out.print("Loading was not measured: give --data. End to end is the host alone.")
        return
    out.print(f"Decode and resize: {loading.what}, one process, from the system's cache.")
    if machine.device == "cpu":
        how = (
            f"the loader's {machine.workers} and torch's {machine.threads} threads share "
            f"{counted(machine.cores, 'core')} without loss"
        )
    else:
        how = f"the slower of host and {counted(machine.workers, 'loading process')} decides"
    if not machine.workers:
        how = "without loading processes, loading and host take turns"
    out.print(
        f"End to end is computed: {how}. Rest: selecting and gathering, and smaller products that "
        "do not run as much faster as they are smaller."
    )


def _cells(part: "Part") -> list[str]:
    load = ["-" if ms is None else f"{ms:.2f}" for ms in (part.decode, part.prepare)]
    return [*load, *(f"{ms:.2f}" for ms in (part.proposal, part.host, part.rest))]


def _show_break_even(found: "Diagnosis") -> None:
    even = found.break_even
    assert even is not None
    if not even.told:
        out.print(
            "Break-even: cannot tell: the measured times do not lie on a line that says so; more "
            "--keep, or more --rounds, would."
        )
        return
    if even.keep is None:
        out.print("Break-even: at no keep is the pruned host as fast as the dense one.")
        return
    how = "extrapolated from" if even.extrapolated else "interpolated on"
    out.print(
        f"Break-even: about keep {even.keep:.2f}, {how} a line through the measured keeps "
        f"(off by {even.residual:.1%} of the dense time at most)."
    )
