"""The command line: a thin face over calls that the documentation describes."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

import papr
from papr.cli import (
    bench,
    compare,
    compare_cam,
    demo,
    doctor,
    drift,
    evaluate,
    export,
    mask,
    predict,
    reproduce,
    sweep,
    tune,
    video,
)
from papr.cli.common import errors
from papr.cli.console import forgive_streams
from papr.cli.quiet import hush
from papr.errors import ConfigError, PaprError

_PICTURES, _DATA = "Pictures, clips and models", "Data sets"
_COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {
    "demo": (_PICTURES, demo.demo),
    "mask": (_PICTURES, mask.mask),
    "video": (_PICTURES, video.video),
    "bench": (_PICTURES, bench.bench),
    "compare": (_PICTURES, compare.compare),
    "compare-cam": (_PICTURES, compare_cam.compare_cam),
    "export": (_PICTURES, export.export),
    "doctor": (_DATA, doctor.doctor),
    "eval": (_DATA, evaluate.evaluate),
    "sweep": (_DATA, sweep.sweep),
    "tune": (_DATA, tune.tune),
    "drift": (_DATA, drift.drift),
    "predict": (_DATA, predict.predict),
    "reproduce": (_DATA, reproduce.reproduce),
}


class _Command(TyperCommand):
    """A command whose arguments say something: `--out "$EMPTY"` would mean the current folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in zip(["", *args], args, strict=False):
            option, equals, value = argument.partition("=")
            if not argument or (option.startswith("--") and equals and not value):
                name = option or (before if before.startswith("-") else "an argument")
                raise ConfigError(f"expected something for {name}, got an empty text")
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    """The commands under two headings, each with the whole first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading in (_PICTURES, _DATA):
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name, " ".join((command.__doc__ or "").split("\n\n")[0].split()))
                        for name, (place, command) in _COMMANDS.items()
                        if place == heading
                    ]
                )


app = typer.Typer(
    name="papr",
    cls=_Group,
    help=(
        "Make pretrained vision models faster, without retraining: a tiny ConvNet looks at the "
        "image first, and only the patches it finds significant go through the big model."
    ),
    epilog=(
        "In Python: papr.prune(model, keep=0.5) and papr.unprune(model).\n\n"
        "Exit status: 0 where all of the data was answered, or some, and the rest is named; 1 "
        "where nothing was, or the call was wrong; with --strict 1 where anything was left out."
    ),
    rich_markup_mode=None,  # rich's tables cut names and defaults off where they do not fit
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, (_, _command) in _COMMANDS.items():
    app.command(_name, cls=_Command)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"papr {papr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["PAPR_DEBUG"] = "1"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Papr's own warnings in one line, without the place in papr that they come from."""
    if not issubclass(category, papr.PaprWarning):
        _others(message, category, filename, lineno, file, line)
        return
    errors.print("[yellow]warning:[/yellow] ", end="", highlight=False)
    errors.print(str(message), markup=False, highlight=False, soft_wrap=True)


_others = warnings.showwarning


def main() -> None:
    """The entry point of `papr`: errors in one line, tracebacks with --debug."""
    warnings.showwarning = _show_warning
    forgive_streams()
    hush()
    try:
        app()
    except SystemExit as end:
        # a wrong call is a wrong call, whoever notices: click's own status for it is 2
        sys.exit(1 if end.code == 2 else end.code)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("PAPR_DEBUG"):
            raise
        kind = "" if isinstance(error, PaprError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split()) or "no message"
        errors.print(f"[red]error:[/red] {kind}", end="", highlight=False)
        errors.print(message, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
