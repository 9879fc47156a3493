"""The stored table of what works is the one that the tests stand for."""

import ast
from pathlib import Path

import pytest

from capabilities import COLUMNS, LIMITS, TABLE, Recorder, promised, render
from papr.graft import Grafted
from papr.hosts import qualified_name
from tiny import CASES, KINDS


def test_the_stored_table_is_current() -> None:
    """A family added, a limit lifted or a hand's edit shows here: `make table` writes it anew."""
    if "hf_swin_kept" not in CASES:
        pytest.skip("the table is for a transformers whose Swin has attention='kept'")
    assert TABLE.read_text(encoding="utf-8") == render(promised()), "stale: run `make table`"


def test_every_column_has_one_test_over_all_cases() -> None:
    """What is promised is tested: a marked test for each column."""
    marked = []
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith(".capability"):
                    marked.append(ast.literal_eval(mark.args[0]))
    assert sorted(marked) == sorted(COLUMNS)


def test_every_kind_is_among_the_kinds() -> None:
    """Exhaustive tests run on `KINDS` only by default: what any host is grafted with is there."""

    def kind(name: str) -> tuple[str, frozenset[type]]:
        model = CASES[name].prune(CASES[name].build(depth=2), 0.5)
        grafts = [m for m in model.modules() if isinstance(m, Grafted)]
        library = qualified_name(getattr(type(model), "_papr_base", type(model))).partition(".")[0]
        return library, frozenset(m._papr_behaviour for m in grafts)

    kinds = {name: kind(name) for name in CASES}
    covered = {kinds[name] for name in KINDS}
    assert not {name: found for name, found in kinds.items() if found not in covered}


def test_limits_name_what_exists() -> None:
    assert all(family in CASES and column in COLUMNS for family, column in LIMITS)


def _report(cell: tuple[str, str], outcome: str, **more: object) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid="x",
        location=("x", 0, "x"),
        keywords={},
        outcome=outcome,
        longrepr=None,
        when="call",
        user_properties=[("capability", list(cell))],
        **more,
    )


@pytest.mark.parametrize("spoiled", [None, "failed", "never ran"])
def test_recorder_writes_a_whole_table_or_none(tmp_path: Path, spoiled: str | None) -> None:
    recorder = Recorder(tmp_path / "table.md")
    cells = list(promised())
    for cell in cells[1:]:
        recorder.pytest_runtest_logreport(_report(cell, "passed"))
    if spoiled != "never ran":
        recorder.pytest_runtest_logreport(_report(cells[0], spoiled or "skipped", wasxfail="why"))

    class Session:
        exitstatus = 0

    recorder.pytest_sessionfinish(Session)
    assert recorder.path.exists() == (spoiled is None)
    assert bool(Session.exitstatus) == (spoiled is not None)
    if spoiled is None:
        outcomes = {cell: cell != cells[0] for cell in cells}
        assert recorder.path.read_text() == render(outcomes) != render(dict.fromkeys(cells, True))
