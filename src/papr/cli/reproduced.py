"""What `papr reproduce` prints; apart from it, since it needs the extra `eval`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from papr.cli.common import out, print_line, progress
from papr.cli.hosting import say_blank
from papr.cli.rates import Rate
from papr.cli.tables import Sheet
from papr.environment import pick_device
from papr.errors import ConfigError
from papr.evaluate.finding import Found
from papr.evaluate.recipes import COMPLETE, READ_OFF, RECIPES, HostWeights, Recipe
from papr.evaluate.reproduce import (
    Counted,
    Need,
    Ran,
    count,
    is_complete,
    needs,
    run_host,
)
from papr.measure import wilson
from papr.provenance import KEY
from papr.words import counted

_SOURCE = (
    "Published: Mahmud et al., ECCV 2024; accuracies are read partly off plots: "
    f"+-{READ_OFF:g} points."
)


@dataclass(frozen=True)
class Wanted:
    """How a table is to be run on data.

    Attributes:
        data: the validation set.
        out: folder of the runs; None for papr's own choice.
        only: the one host to run; None for all.
        random_weights: run hosts, and the proposal, with random ones.
        proposal: who looks instead of the paper's.
        limit: how many samples.
        device: by name.
        batch: samples a call.
        workers: processes that decode.
    """

    data: Found
    out: Path | None
    only: str | None
    random_weights: bool
    proposal: str | None
    limit: int | None
    device: str
    batch: int | None
    workers: int | None


def list_tables() -> None:
    """All tables, a line each."""
    shown = Sheet("table", "what", "rows", "data", justify="left")
    for recipe in RECIPES.values():
        shown.add_row(recipe.name, recipe.title, str(len(recipe.rows)), recipe.data)
    out.print(shown)
    out.print("papr reproduce TABLE --dry-run says what one needs and checks its GMACs.")


def title(recipe: Recipe) -> None:
    """The first line."""
    out.print(f"[bold]{recipe.title}[/bold], proposal {recipe.proposal}, reference mode")


def run(recipe: Recipe, files: dict[str, Path], wanted: Wanted) -> dict[str, Any]:
    """Evaluate the table's hosts one by one, and print each beside what is published."""
    names = [host.counted for host in recipe.hosts]
    if wanted.only is not None and wanted.only not in names:
        raise ConfigError(f"expected --model among {', '.join(names)}, got {wanted.only!r}")
    found = []
    for host in recipe.hosts:
        if wanted.only in (None, host.counted):
            ran = _run_host(recipe, host, files.get(host.counted), wanted)
            out.print(accuracies(ran))
            _say_accuracies(recipe, ran, wanted)
            found.append(_ran_dict(ran))
    out.print(_SOURCE)
    return {"proposal": wanted.proposal or recipe.proposal, "hosts": found}


def _run_host(recipe: Recipe, host: HostWeights, file: Path | None, wanted: Wanted) -> Ran:
    with Rate() as bar:
        return run_host(
            recipe,
            host,
            wanted.data,
            None if wanted.out is None else wanted.out / host.counted,
            checkpoint=file,
            random_weights=wanted.random_weights,
            proposal=wanted.proposal,
            limit=wanted.limit,
            device=pick_device(wanted.device),
            batch=wanted.batch,
            workers=wanted.workers,
            watch=bar.watch,
        )


def accuracies(ran: Ran) -> Table:
    """One host: ours beside the published accuracies; time never without GMACs."""
    dense = ran.report.results[0]
    title = f"{ran.host.name} ({ran.report.provenance}), {counted(dense.images, 'sample')}"
    headings = ("GMACs", "speed-up", "agree", "top-1", "published", "difference")
    shown = Sheet("configuration", *headings, title=title)
    for row, result in ran.figures:
        top1 = None if result.top1 is None else 100 * result.top1
        shown.add_row(
            row.name,
            f"{result.gmacs:.2f}",
            "-" if result.speedup is None else f"{result.speedup[0]:.2f}",
            "-" if result.agreement is None else f"{100 * result.agreement:.1f}",
            "-" if top1 is None else f"{top1:.2f}",
            "-" if row.top1 is None else f"{row.top1:.2f}",
            "-" if row.top1 is None or top1 is None else f"{top1 - row.top1:+.2f}",
        )
    return shown


def _say_accuracies(recipe: Recipe, ran: Ran, wanted: Wanted) -> None:
    dense = ran.report.results[0]
    say_blank(ran.report.blank)
    if wanted.proposal not in (None, recipe.proposal):
        out.print(f"[yellow]{wanted.proposal} looks, not the paper's {recipe.proposal}.[/yellow]")
    if dense.top1 is None and not ran.report.blank:
        out.print(f"[yellow]No labels: {ran.report.note or 'top-1 is not known'}.[/yellow]")
    elif dense.top1 is not None and not is_complete(recipe, dense.labelled):
        low, high = wilson(round(dense.top1 * dense.labelled), dense.labelled)
        out.print(
            f"[yellow]{counted(dense.labelled, 'sample')}, not the whole validation set of "
            f"{COMPLETE[recipe.data]}: top-1 of the dense host is {100 * dense.top1:.1f} "
            f"({100 * low:.1f} to {100 * high:.1f}, 95 %, Wilson).[/yellow]"
        )
    if ran.report.skipped:
        out.print(f"[red]{counted(len(ran.report.skipped), 'sample')} could not be read.[/red]")


def _ran_dict(ran: Ran) -> dict[str, Any]:
    figures = [
        {"row": row.name, "published_top1": row.top1, **asdict(result)}
        for row, result in ran.figures
    ]
    report = ran.report.to_dict()
    kept = ("skipped", "ignored", "note", "environment", "configuration")
    return {
        "host": ran.host.name,
        KEY: ran.report.provenance.to_dict(),
        "rows": figures,
        **{name: report[name] for name in kept},
    }


def read_checkpoints(recipe: Recipe, given: Sequence[str] | None) -> dict[str, Path]:
    """What --checkpoint names, by host. Raises ConfigError."""
    found = {}
    for text in given or []:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ConfigError(f"expected --checkpoint NAME=FILE, got {text!r}")
        names = [host.counted for host in recipe.hosts]
        if name not in names:
            raise ConfigError(
                f"expected --checkpoint of a host of {recipe.name}, {', '.join(names)}, got {name}"
            )
        found[name] = Path(file)
    return found


def dry_run(recipe: Recipe, files: dict[str, Path], data: str | None) -> dict[str, Any]:
    """Count, compare, and say what is needed; all of it as plain data too."""
    found = []
    with progress("counting") as bar:
        task = bar.add_task("counting", total=len(recipe.rows))
        for row in count(recipe):
            found.append(row)
            bar.advance(task)
    wanted = needs(recipe, files, data)
    for host in recipe.hosts:
        out.print(counts_table(host.counted, [c for c in found if c.row.host == host.counted]))
    _say_counts(recipe, found)
    out.print("\nFor the accuracies it needs:")
    for need in wanted:
        _say_need(need)
    return {
        "counts": [_count_dict(row) for row in found],
        "needs": [vars(need) for need in wanted],
    }


def counts_table(host: str, found: Sequence[Counted]) -> Table:
    """One host: ours beside the printed counts, each with its tolerance."""
    title = f"{host}: GMACs of host + proposal, or times fewer than dense (x)"
    headings = ("GMACs", "ours", "published", "difference", "within")
    shown = Sheet("configuration", *headings, title=title)
    for row in found:
        printed = row.row.macs
        costs = f"{row.host:.2f} + {row.proposal:.2f}" if row.proposal else f"{row.host:.2f}"
        if printed is None or row.difference is None:
            shown.add_row(row.row.name, costs, f"{row.ours:.3f}", "-", "-", "-")
            continue
        unit, colour = "x" if printed.ratio else "", "green" if row.agrees else "red"
        shown.add_row(
            row.row.name,
            costs,
            f"{row.ours:.3f}{unit}",
            f"{printed.text}{unit}" + ("" if printed.paper else " by hand"),
            f"[{colour}]{row.difference:+.3f}[/{colour}]",
            f"{printed.tolerance:.3f}",
        )
    return shown


def _say_counts(recipe: Recipe, found: Sequence[Counted]) -> None:
    for note in recipe.notes:
        out.print(f"Note: {note}.")
    out.print(
        "Within: half a unit of the last printed digit, or 0.5 % if that is more: counters differ "
        "in whether they count norms and activations; ours counts products only."
    )
    wrong = [row for row in found if not row.agrees]
    for row in wrong:
        assert row.row.macs is not None
        out.print(
            f"[red]{row.row.host}, {row.row.name}: {row.ours:.3f} is not {row.row.macs.text}.[/red]"
        )
    out.print(_SOURCE)


def _say_need(need: Need) -> None:
    colour = "green" if need.met else "yellow"
    size = "" if need.megabytes is None else f", {need.megabytes:.0f} MB"
    out.print(f"  {need.what}{size}: [{colour}]{need.state}[/{colour}]")
    print_line(f"    {need.detail}")


def _count_dict(row: Counted) -> dict[str, Any]:
    printed = row.row.macs
    return {
        "host": row.row.host,
        "keep": row.row.keep,
        "merge_r": row.row.merge_r,
        "gmacs_dense": row.dense,
        "gmacs_host": row.host,
        "gmacs_proposal": row.proposal,
        "ours": row.ours,
        "printed": None if printed is None else printed.text,
        "ratio": printed is not None and printed.ratio,
        "from_the_paper": printed is not None and printed.paper,
        "tolerance": None if printed is None else printed.tolerance,
        "difference": row.difference,
        "agrees": row.agrees,
    }
