"""`papr reproduce`: the paper's tables, ours beside the published figures."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from papr.cli.common import out, progress
from papr.errors import ConfigError
from papr.evaluate.recipes import READ_OFF, RECIPES, Recipe, find_recipe
from papr.evaluate.reproduce import Counted, Need, count, needs
from papr.files import check_file, write_text

_SOURCE = (
    "Published: Mahmud et al., ECCV 2024; accuracies are read partly off plots: "
    f"+-{READ_OFF:g} points."
)


def reproduce(
    table: Annotated[
        str | None, typer.Argument(help=f"Among {', '.join(RECIPES)}; none lists them.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what is needed and check GMACs; download nothing."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="ImageNet-1k or Kinetics-400 validation; see --dry-run.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, of hosts whose weights no library has; repeat for more."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures there.")
    ] = None,
) -> None:
    """Run the paper's tables again, in reference mode, and print ours beside what it published.

    --dry-run needs neither weights nor data: it counts every row's multiply-accumulates with random
    weights and compares them with the printed ones, row by row with the tolerance, and says which
    weights and which data the accuracies need, and where to put them. Its exit status is 1 where a
    count differs by more.

    Example: papr reproduce augreg --dry-run
    """
    if table is None:
        _list()
        return
    recipe, files = find_recipe(table), _checkpoints(checkpoint)
    _check_checkpoints(recipe, files)
    check_file(json_file, "--json")
    report: dict[str, Any] = {"command": " ".join(["papr", *sys.argv[1:]]), "table": table}
    out.print(f"[bold]{recipe.title}[/bold], proposal {recipe.proposal}, reference mode")
    report |= _dry(recipe, files, data)
    if json_file is not None:
        write_text(json_file, json.dumps(report, indent=1) + "\n")
        out.print(f"written to {json_file}")
    if not all(row["agrees"] for row in report["counts"]):
        raise typer.Exit(1)


def _list() -> None:
    shown = Table("table", "what", "rows", "data", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for recipe in RECIPES.values():
        shown.add_row(recipe.name, recipe.title, str(len(recipe.rows)), recipe.data)
    out.print(shown)
    out.print("papr reproduce TABLE --dry-run says what one needs and checks its GMACs.")


def _checkpoints(given: Sequence[str] | None) -> dict[str, Path]:
    found = {}
    for text in given or []:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ConfigError(f"expected --checkpoint NAME=FILE, got {text!r}")
        found[name] = Path(file)
    return found


def _check_checkpoints(recipe: Recipe, files: dict[str, Path]) -> None:
    names = [host.counted for host in recipe.hosts]
    for name in files:
        if name not in names:
            raise ConfigError(
                f"expected --checkpoint of a host of {recipe.name}, {', '.join(names)}, got {name}"
            )


def _dry(recipe: Recipe, files: dict[str, Path], data: Path | None) -> dict[str, Any]:
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
    shown = Table(
        "configuration",
        title=f"{host}: GMACs of host + proposal, or times fewer than dense (x)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("GMACs", "ours", "published", "difference", "within"):
        shown.add_column(heading, justify="right", no_wrap=True)
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
    out.print(f"    {need.detail}", highlight=False, markup=False)


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
