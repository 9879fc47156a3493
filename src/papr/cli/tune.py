"""`papr tune`: a configuration for a target, chosen on the user's images and judged on others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from papr.cli.common import (
    ProposalNames,
    ProposalSizes,
    Score,
    Stages,
    Strict,
    errors,
    out,
    parse_list,
    parse_stages,
    print_line,
    results_first,
    settle,
    with_quartiles,
    written,
)
from papr.cli.console import shown
from papr.cli.hosting import (
    DEFAULT_MODEL,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Dtype,
    ImageColumn,
    JsonFile,
    LimitAlways,
    Model,
    NumClasses,
    OutFolder,
    RandomWeights,
    Root,
    Rounds,
    Views,
    Workers,
    check_alone,
    find_data,
    make_host,
    name_left_out,
    open_data,
    say_blank,
    say_host,
    with_proposals,
)
from papr.cli.sweep import Rs, parse_sizes
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL
from papr.files import check_file, check_folder, make_output, write_text
from papr.provenance import KEY
from papr.words import counted

if TYPE_CHECKING:
    from papr.evaluate.searching import Trial
    from papr.evaluate.tuning import Tuned

#: What is said where nothing is written.
_MISSED = {
    "not refuted": "[yellow]Target neither reached nor refuted[/yellow]: nothing is written.",
    "not reached": "[red]Target not reached[/red]: this is the best found; nothing is written.",
}
_SLOW = "[red]Target not reached[/red], and what comes nearest is slower than dense: do not prune."
_USELESS = "[red]Nothing pays[/red]: what meets the target is not faster than dense: do not prune."


def tune(
    data: Data,
    model: Model = DEFAULT_MODEL,
    target_agreement: Annotated[
        float | None,
        typer.Option(help="Share of images with the dense model's answer, such as 0.99."),
    ] = None,
    target_speedup: Annotated[
        float | None, typer.Option(help="Times as fast as the dense model, such as 1.8.")
    ] = None,
    target_cosine: Annotated[
        float | None, typer.Option(help="Mean cosine to the dense model's embeddings.")
    ] = None,
    proposals: ProposalNames = DEFAULT_PROPOSAL,
    proposal_sizes: ProposalSizes = "default,96",
    merge_r: Rs = None,
    stages: Stages = None,
    score: Score = "significance",
    sure: Annotated[
        float,
        typer.Option(
            help="How sure to be that the half tuned on meets the target, one-sided; 0.5 takes its "
            "figure as it is."
        ),
    ] = 0.8,
    limit: LimitAlways = 1000,
    root: Root = None,
    image_column: ImageColumn = None,
    views: Views = "videomae",
    rounds: Rounds = 9,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Try nothing further after so many, and take the best of what was tried; as long "
            "as it takes by default."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    num_classes: NumClasses = None,
    random_weights: RandomWeights = False,
    batch: BatchSize = None,
    workers: Workers = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out_dir: OutFolder = Path("papr-tune"),
    json_file: JsonFile = None,
    strict: Strict = False,
) -> None:
    """Find keep and the rest for a target agreement or a target speed-up, on your own images.

    Images need no labels. Half of them, by a hash of their names, is tuned on; the agreement that
    is reported, with a 95 % confidence interval (Wilson's), is of the other half, which chose
    nothing. Give exactly one target.

    For an agreement the fastest configuration is taken whose agreement on the tuning half meets
    the target with some certainty (--sure): the smallest keep of each proposal, resolution and
    --merge-r, then those timed in turns. For a speed-up, among those so fast in three turns of four
    the one that agrees most. The speed-up reported is measured anew.

    The target is reached where that held-out agreement, or the speed-up measured anew, meets it;
    then papr.prune(model, "papr-tune/chosen.json") prunes so. If it does not but its interval holds
    the target, too few images were given to tell, and it is said about how many would. Then, and
    where nothing meets the target, the best found is shown, nothing is written to --out, and the
    exit status is 1. What is not faster than the dense model is never recommended.

    Example: papr tune --model vit_base_patch16_224 --data photographs/ --target-agreement 0.99
    """
    check_alone("tune")
    check_folder(out_dir, "--out")
    check_file(json_file, "--json")
    sizes, names = parse_sizes(proposal_sizes), parse_list(proposals, str, "--proposal")
    rs = None if merge_r is None else parse_list(merge_r, int, "--merge-r")
    from papr.evaluate import prepare_for
    from papr.evaluate.searching import Goal
    from papr.evaluate.sweep import RS, can_merge, grid
    from papr.evaluate.tuning import tune as run

    Goal.read(sure, target_agreement, target_cosine, target_speedup)
    samples = find_data(data, root, image_column)
    host, weights = make_host(model, device, dtype, checkpoint, num_classes, random_weights)
    rs = rs or list(RS if can_merge(host) else (0,))
    candidates = grid((0.5,), rs, names, sizes, stages=parse_stages(stages), score=score)
    candidates = with_proposals(candidates, random_weights)
    say_host(model, weights, host, dtype)
    with errors.status("decoding") as status:

        def told(choose: int, check: int) -> None:
            print_line(
                f"Of {counted(choose + check, 'image')} {choose} choose the configuration, and the "
                f"other {check} check it.",
                to=errors,
            )

        def watch(trial: "Trial") -> None:
            status.update(Text(shown(f"tried {_trial(trial)}")))
            print_line(f"  {_trial(trial)}", to=errors)

        found = run(
            host,
            open_data(host, samples),
            candidates,
            target_agreement=target_agreement,
            target_speedup=target_speedup,
            target_cosine=target_cosine,
            sure=sure,
            limit=limit,
            name=model,
            weights=weights,
            prepare=prepare_for(host, model, views),
            batch=batch,
            workers=workers,
            rounds=rounds,
            minutes=minutes,
            told=told,
            watch=watch,
        )
    found = _by_name(found)
    chosen = out_dir / "chosen.json"
    about = {"model": model} | found.to_dict()
    with results_first(lambda: _write(found, chosen)), written(json_file, about):
        if not found.blank:
            out.print(_table(found))
        out.print(_costs(found), highlight=False, soft_wrap=True)
        name_left_out(found.skipped, (), place="what --json writes")
        say_blank(found.blank)
        print_line(found.verdict)
        if found.pays:
            print_line(found.code())
        if found.reached:
            print_line(f"# the same: papr.prune(model, {str(chosen)!r})")
    if not found.reached:
        errors.print(_why_none(found))
        raise typer.Exit(1)
    settle(found.batch, len(found.skipped), strict)  # of both halves some could be read


def _why_none(found: "Tuned") -> str:
    """Why nothing is written, where the target is not reached."""
    from papr.evaluate.tuning import USELESS

    if found.verdict.startswith(USELESS):
        return _USELESS
    return _MISSED[found.state] if found.pays else _SLOW


def _write(found: "Tuned", file: Path) -> None:
    """The configuration, where it reaches its target."""
    if found.reached:
        stored = found.config.to_dict() | {KEY: found.provenance.to_dict()}
        make_output(file.parent)
        write_text(file, json.dumps(stored) + "\n")


def _trial(trial: "Trial") -> str:
    """One line of what was tried."""
    figures = []
    if trial.quality is not None:
        if trial.quality.agreement is not None:
            figures.append(f"agreement {trial.quality.agreement:.3f}")
        figures.append(f"cosine {trial.quality.cosine:.3f}")
        if trial.quality.difference is not None:
            figures.append(f"differs {trial.quality.difference:.3f}")
    if trial.speedup is not None:
        figures.append(f"speed-up {trial.speedup[0]:.2f}")
    return f"{trial.name}: {', '.join(figures)}"


def _by_name(found: "Tuned") -> "Tuned":
    """With the proposal by its name again: what is chosen is a configuration, not weights."""
    from papr.proposals import Proposal

    who = found.config.proposal
    if not isinstance(who, Proposal):
        return found
    return replace(found, config=replace(found.config, proposal=who.name))


def _table(found: "Tuned") -> Table:
    """The choice on both halves."""
    assert found.tuning is not None
    assert found.held_out is not None
    kinds = ("cosine",) if found.held_out.agree is None else ("agreement", "cosine")
    single = found.held_out.difference is not None
    table = Sheet("", "images", *kinds, *(["differs"] if single else []))
    for half, quality in (("tuned on", found.tuning), ("held out", found.held_out)):
        cells = []
        for kind in kinds:
            low, high = quality.interval(kind)
            cells.append(f"{quality.value(kind):.3f} ({low:.3f}-{high:.3f})")
        if single:
            cells.append("" if quality.difference is None else f"{quality.difference:.3f}")
        table.add_row(half, str(quality.images), *cells)
    return table


def _costs(found: "Tuned") -> str:
    return (
        f"{found.ms_per_image_dense[0]:.1f} to {found.ms_per_image[0]:.1f} ms/image at batch "
        f"{found.batch}: {with_quartiles(found.speedup)} times as fast; "
        f"{found.gmacs_dense:.2f} to {found.gmacs:.2f} GMACs"
    )
