"""What the commands share: consoles, parsing of lists, tables, devices."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from papr.cli import bars
from papr.cli.bars import Bar
from papr.cli.console import Voice, shown
from papr.cli.tables import Sheet
from papr.config import ProposalSize as ProposalResolution
from papr.config import Size, check_keep, check_proposal_size, check_size, check_stages
from papr.errors import ConfigError
from papr.files import write_json
from papr.later import Merge
from papr.names import CLIP_NETS, MODES

if TYPE_CHECKING:  # the help of a command needs no torch
    import torch

    from papr.compare import Row
    from papr.compare.modes import Paying

out = Voice()
errors = Voice(stderr=True)

_T = TypeVar("_T")
SHOWN = 10  # of what was left out
DTYPES = ("float32", "bfloat16", "float16")


@contextlib.contextmanager
def results_first(write: Callable[[], object]) -> Iterator[None]:
    """Write results, then let the block print them: they are on disk before anything is said.

    Where they cannot be written, the block prints them first, and the error comes last.
    """
    failed = None
    try:
        write()
    except OSError as error:
        failed = error
    yield
    if failed is not None:
        raise failed


@contextlib.contextmanager
def written(path: Path | None, report: object) -> Iterator[None]:
    """`results_first` with a report, plain data, as JSON; no file where `path` is None."""
    if path is None:
        yield
        return
    with results_first(lambda: write_json(path, report)):
        yield
    print_line(f"written to {path}")


def settle(answered: int, left_out: int, strict: bool = False) -> None:
    """End with the exit status that every command over the user's data has, when all is said.

    It is 0 where all or some samples were answered and the others were named, 1 where none was; and
    1 where `strict` and any was left out.

    Args:
        answered: samples that have an answer.
        left_out: samples that could not be read, or whose answer could not be written.
        strict: of --strict.
    """
    if not answered or (strict and left_out):
        raise typer.Exit(1)


def parse_list(text: str, parse: Callable[[str], _T], name: str) -> list[_T]:
    """A comma-separated option. Raises ConfigError naming the option and the part."""
    values = []
    for part in text.split(","):
        try:
            values.append(parse(part.strip()))
        except (ValueError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"cannot read {part.strip()!r} in {name} {text!r}") from None
    return values


# Options that mean the same in every command; those of commands over data sets: `hosting`.
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="End with exit status 1 if anything was left out, not only if all was."
    ),
]
Keep = Annotated[float, typer.Option(help="Fraction of patches to keep, 0 < keep <= 1.")]
Keeps = Annotated[
    str, typer.Option(help="Fractions of patches to keep, comma-separated, such as 0.7,0.5.")
]
ProposalName = Annotated[
    str,
    typer.Option(
        help="Who looks first: glance, which comes with papr, or any timm ConvNet; at clips also "
        f"{', '.join(CLIP_NETS)}, or a checkpoint file of X3D or SlowOnly."
    ),
]
ProposalSize = Annotated[
    str | None,
    typer.Option(
        help="The resolution it looks at: 160 (the shorter side), 160x224 (height x width), "
        '"input" (as the host); 8x160x160 where it looks at clips.'
    ),
]
#: The same two where several are tried.
ProposalNames = Annotated[
    str, typer.Option("--proposal", help="Who looks first; several comma-separated.")
]
ProposalSizes = Annotated[
    str,
    typer.Option(
        "--proposal-size",
        help="The resolutions it looks at, comma-separated, such as default,96,128x128.",
    ),
]
ImageSize = Annotated[
    int, typer.Option("--img-size", min=16, help="Resize images' shorter side to so many pixels.")
]
Patch = Annotated[int, typer.Option(min=1, help="Side of a patch, in pixels.")]
Stages = Annotated[
    str | None,
    typer.Option(help="Swin and ConvNeXt: stages to prune, counted from 0, such as 2,3."),
]
Attention = Annotated[
    str,
    typer.Option(help='Swin: "dense" as in the paper, or "kept": faster, further from dense.'),
]


Score = Annotated[
    str,
    typer.Option(
        help='"significance": the paper\'s, of glance its own map; images: "softcam", by what the '
        'proposal\'s classes say; video: "motion": what changes counts too (static cameras).'
    ),
]


MergeR = Annotated[
    str | None,
    typer.Option(
        "--merge-r",
        help="Plain ViTs: tokens merged away in each block (ToMe), such as 8, or 16+16+8 block "
        "by block; in the second half of the blocks. For ToMe alone see papr compare.",
    ),
]


def parse_merge(text: str | None) -> Merge | None:
    """Merging as --merge-r says: one number, or one a block."""
    if text is None:
        return None
    if "," in text:
        raise ConfigError(
            f"expected one --merge-r, or one for each block such as 16+16+8, got {text!r}"
        )
    numbers = parse_list(text.replace("+", ","), int, "--merge-r")
    return Merge(numbers[0] if len(numbers) == 1 else numbers)


def check_dtypes(text: str) -> list[str]:
    """Names of dtypes, comma-separated; ConfigError on another."""
    return parse_list(text, lambda name: DTYPES[DTYPES.index(name)], "--dtype")


def check_modes(text: str) -> list[str]:
    """Modes to run a host in, comma-separated; ConfigError on another."""
    return parse_list(text, lambda name: MODES[MODES.index(name)], "--modes")


def parse_dtypes(text: str) -> "list[torch.dtype]":
    """Dtypes, comma-separated."""
    names = check_dtypes(text)
    import torch

    return [getattr(torch, name) for name in names]


def parse_dtype(text: str) -> "torch.dtype":
    """One dtype."""
    return parse_dtypes(text)[0]


def parse_stages(text: str | None) -> tuple[int, ...] | None:
    """Stage numbers, comma-separated; None for all."""
    return None if text is None else check_stages(parse_list(text, int, "--stages"))


def parse_keeps(text: str) -> list[float]:
    """Fractions 0 < keep <= 1, comma-separated."""
    return parse_list(text, lambda part: check_keep(float(part)), "--keep")


def parse_proposal_size(text: str | None) -> ProposalResolution:
    """As `parse_size`, and "8x160x160" (frames x height x width)."""
    return check_proposal_size(_parse_sides(text, "--proposal-size"), "--proposal-size")


def parse_size(text: str | None, name: str) -> Size:
    """A resolution: "160", "160x224" (height x width), "input", or None."""
    return check_size(_parse_sides(text, name), name)


def _parse_sides(text: str | None, name: str) -> object:
    if text is None or text == "input":
        return text
    try:
        numbers = [int(part) for part in text.lower().split("x")]
    except ValueError:
        raise ConfigError(
            f'expected {name} such as 160, 160x224 or "input", got {text!r}'
        ) from None
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def print_line(text: str, style: str | None = None, to: Voice = out) -> None:
    """Print a line as it is: what the user named is no markup, and a path can be copied whole.

    Args:
        text: without markup; it is not broken where the terminal ends.
        style: of all of it.
        to: `out`, or `errors`.
    """
    to.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def name_ignored(names: Sequence[object], what: str, more: str = "...") -> None:
    """Name the first few of what was left out unread.

    Args:
        names: of files and folders.
        what: they would be.
        more: said where these are not all.
    """
    if not names:
        return
    text = f"{len(names)} left out, no {what} by their names, hidden, or papr's own:"
    print_line(text, to=errors)
    for name in names[:SHOWN]:
        print_line(f"  {shown(name)}", to=errors)
    if names[SHOWN:]:
        print_line(f"  {more}", to=errors)


def progress(label: str, counted: bool = True) -> Bar:
    """A progress bar with a remaining time, on standard error; see `Bar`."""
    return Bar(label, errors, counted)


def doing(text: str) -> contextlib.AbstractContextManager[Callable[[str], None]]:
    """Say on standard error what is being done, for as long as it is; told each next step."""
    return bars.doing(text, errors)


def speed_table(rows: "Sequence[Row]", unit: str = "image") -> Table:
    """The rows of one comparison (one batch size, one dtype): time always beside GMACs.

    Args:
        rows: of `papr.compare`.
        unit: what one row of a batch is, "image" or "clip".
    """
    title = f"batch {rows[0].batch}, {rows[0].dtype}, {rows[0].mode}"
    headings = (f"ms/{unit}", f"{unit}s/s", "GMACs", "MB", "speed-up", "ideal", "of ideal")
    table = Sheet("keep", *headings, title=title)
    for row in rows:
        figures = [
            f"{row.ms_per_image[0]:.1f}",
            f"{row.images_per_second:.1f}",
            f"{row.gmacs_host:.2f}",
            f"{row.peak_mb:.0f}",
        ]
        if row.keep == 1:
            table.add_row("dense", *figures)
            continue
        figures[2] += f" + {row.gmacs_proposal:.2f}"
        speedup = with_quartiles(row.speedup)
        table.add_row(
            f"{row.keep:g}", *figures, speedup, f"{row.ideal:.2f}", f"{row.efficiency:.0%}"
        )
    return table


#: Figures of a likeliest class.
_OF_CLASSES = {"agreement", "top1", "top5"}


def shown_shares(
    named: dict[str, str], row: object, blank: bool, classes: int | None
) -> dict[str, str]:
    """Which columns of quality a table has: heading -> attribute of its rows.

    Args:
        named: all there may be.
        row: the first row, whose attributes are None where there is no such figure.
        blank: whether random weights leave all of them blank; then those that the host's answers
            could have are shown so.
        classes: how many the host tells apart; 1 where it answers one number, None or 0 for none.
    """
    if blank:
        never = set() if classes == 1 else {"difference"}
        never |= set() if (classes or 0) > 1 else _OF_CLASSES
        return {heading: name for heading, name in named.items() if name not in never}
    return {heading: name for heading, name in named.items() if getattr(row, name) is not None}


def share_cell(share: float | None) -> str:
    """A share or a cosine for a cell of a table; a dash where weights are random."""
    return "-" if share is None else f"{share:.3f}"


def with_quartiles(ratio: tuple[float, float, float]) -> str:
    """A ratio (median, lower, upper quartile) for a cell of a table."""
    middle, lower, upper = ratio
    return f"{middle:.2f} [dim]({lower:.2f}-{upper:.2f})[/dim]"


def say_where_it_pays(found: "Sequence[Paying]", asked: Sequence[int]) -> None:
    """Say from which batch on pruning pays, where more than one was measured.

    Args:
        found: of `papr.compare.modes.pays_from`.
        asked: the batch sizes that were to be timed, of which the largest may not have fitted.
    """
    timed = {(paying.mode, paying.dtype): paying.batches for paying in found}
    for (mode, dtype), batches in timed.items():
        if left := sorted(set(asked) - set(batches)):
            where, listed = f"{mode}, {dtype}", ", ".join(map(str, left))
            out.print(f"[yellow]Out of memory in {where}: not timed at batch {listed}.[/yellow]")
    if any(len(paying.batches) > 1 for paying in found):
        out.print("Pruning pays at:")
        for paying in found:
            print_line(f"  {paying}")


def advise(rows: "list[Row]") -> None:
    """Say plainly where pruning does not pay, and where these figures cannot tell."""
    from papr.compare.modes import PAYS

    for row in (row for row in rows if row.keep < 1):
        middle, lower, upper = row.speedup
        which = f"Pruning to {row.keep:g} at batch {row.batch} in {row.dtype}, {row.mode},"
        if upper < PAYS:
            out.print(f"[yellow]{which} does not pay here: {middle:.2f}x.[/yellow]")
        elif lower < PAYS:
            out.print(
                f"[yellow]{which} gives {lower:.2f}x to {upper:.2f}x, too wide to tell whether it "
                "pays; run it again on a quieter machine, or with more --rounds.[/yellow]"
            )
