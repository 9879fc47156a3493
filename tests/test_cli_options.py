"""Options of all commands side by side: one name, one meaning, one text for one thing."""

import re

import pytest
import typer
from typer.testing import CliRunner

from papr.cli import _COMMANDS, app

GROUP = typer.main.get_command(app)
OPTIONS = {
    command: {
        max(option.opts, key=len): option
        for option in GROUP.commands[command].params
        if option.param_type_name == "option"
    }
    for command in _COMMANDS
}
#: One or several, none allowed or not, and what a recipe of the paper has of its own.
VARIANTS = {
    **dict.fromkeys(
        ("--keep", "--dtype", "--rounds", "--num-classes", "--checkpoint", "--model"), 2
    ),
    **dict.fromkeys(("--img-size", "--merge-r", "--proposal-size"), 2),
    **dict.fromkeys(("--batch", "--data", "--proposal", "--out"), 3),
}


def test_one_name_has_one_text() -> None:
    texts: dict[str, set[str]] = {}
    for options in OPTIONS.values():
        for name, option in options.items():
            texts.setdefault(name, set()).add(option.help)
    assert {name: len(found) for name, found in texts.items() if len(found) > 1} == VARIANTS


@pytest.mark.parametrize(
    ("name", "short"), [("--model", "-m"), ("--batch", "-b"), ("--workers", "-j")]
)
def test_short_names_are_timms(name: str, short: str) -> None:
    having = [command for command, options in OPTIONS.items() if name in options]
    assert having
    assert all(short in OPTIONS[command][name].opts for command in having)


def test_results_lie_in_a_folder_named_after_the_command() -> None:
    for command, options in OPTIONS.items():
        if "--out" in options:
            option = options["--out"]
            shown = option.default or option.show_default
            assert re.match(rf"papr-{command}(/|$)", str(shown)), (command, shown)
            assert not option.required


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (["sweep", "--data", "x", "--proposals", "a"], "--proposal"),
        (["mask", "x", "--size", "64"], "--img-size"),
        (["export", "--random"], "--random-weights"),
    ],
)
def test_a_name_of_old_is_answered_with_that_of_today(call: list[str], meant: str) -> None:
    result = CliRunner().invoke(app, call, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert re.search(rf"Did you mean.* {meant}\b|Possible options:.*{meant}", result.output)


def test_every_option_says_what_it_is() -> None:
    for command, options in OPTIONS.items():
        for name, option in options.items():
            assert (option.help or "").endswith((".", ")", "...")), (command, name, option.help)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", _COMMANDS)
def test_help_cuts_nothing_off(command: str, width: int) -> None:
    found = CliRunner().invoke(app, [command, "--help"], terminal_width=width).output
    assert "…" not in found
    assert max(map(len, found.splitlines())) <= width
    words = "".join(found.split())
    for name, option in OPTIONS[command].items():
        assert re.search(rf"^  (-\w, )?{name}\b", found, re.MULTILINE), name
        assert "".join((option.help or "").split()) in words
        if isinstance(option.default, str):
            assert f"default:{option.default}" in words


def test_help_of_all_lists_each_under_its_heading() -> None:
    found = CliRunner().invoke(app, ["--help"], terminal_width=60).output
    pictures, data = found.index("Pictures, clips and models:"), found.index("Data sets:")
    for command, (heading, function) in _COMMANDS.items():
        place = found.index(f"\n  {command} ", pictures)
        assert (place > data) == (heading == "Data sets")
        summary = (function.__doc__ or "").split("\n\n")[0]
        assert "".join(summary.split()) in "".join(found.split())
