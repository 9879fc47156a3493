"""The table docs/capabilities.md: what each family can do, as the tests found it.

A test marked `@pytest.mark.capability(column)` and parametrised over the names in `tiny.CASES`
decides that column. `make table` runs those tests and writes the table from their outcomes;
`test_capabilities.py` fails where the stored table is not the one that the tests stand for.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from papr.hosts.versions import versions_tested
from tiny import CASES

TABLE = Path(__file__).parents[1] / "docs" / "capabilities.md"

#: Column -> what its tests show.
COLUMNS = {
    "torch.compile": "`fullgraph=True`, equal to eager, no recompilation over ten batches",
    "torch.export": "a dynamic batch, within 1e-5 of eager",
    "ONNX Runtime": "one file, batches 1, 3 and 8, within 1e-4 of eager",
    "OpenVINO": "the same file in float32, batches 1, 3 and 8, within 1e-4 of eager",
}

#: (family, column) -> why it does not work. Its test must fail: one that passes is reported.
LIMITS: dict[tuple[str, str], str] = {}

Outcomes = Mapping[tuple[str, str], bool]


def cell_of(item: pytest.Item) -> tuple[str, str] | None:
    """The (family, column) that a test decides, if any."""
    marker = item.get_closest_marker("capability")
    if marker is None:
        return None
    (column,) = marker.args
    family = family_of(item)
    if family not in CASES or column not in COLUMNS:
        raise pytest.UsageError(f"no cell for {family!r}, {column!r} in the capabilities' table")
    return family, column


def family_of(item: pytest.Item) -> str:
    """The host in `tiny.CASES` that a test runs on."""
    parameters = item.callspec.params
    return next(parameters[name] for name in ("case", "name") if name in parameters)


def promised() -> Outcomes:
    """What the parameter lists say: everything works but what LIMITS names."""
    return {(f, c): (f, c) not in LIMITS for f in CASES for c in COLUMNS}


def render(outcomes: Outcomes) -> str:
    """The table as Markdown, a row for each family in the order of `tiny.CASES`."""
    libraries = ("timm", "torchvision", "transformers")
    ranges = [f"{name} {' to '.join(versions_tested(name))}" for name in libraries]
    lines = [
        "# What works",
        "",
        "Written by `make table` from the outcomes of the tests; not by hand. Each row is a small",
        "random host of `tests/tiny.py`, pruned to keep 0.5.",
        "",
        *(f"- **{column}**: {meaning}." for column, meaning in COLUMNS.items()),
        "",
        f"Tested with {', '.join(ranges)}.",
        "",
        "| host | class | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for family, case in CASES.items():
        cls = type(case.build())
        cells = ["yes" if outcomes[family, column] else "no" for column in COLUMNS]
        name = f"{cls.__module__.partition('.')[0]} `{cls.__qualname__}`"
        lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
    reasons = [f"- {f}, {c}: {why}." for (f, c), why in LIMITS.items()]
    return "\n".join([*lines, *(["", *reasons] if reasons else [])]) + "\n"


class Recorder:
    """Collects outcomes, from the workers of pytest-xdist too, and writes the table at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, str], bool] = {}
        self.broken: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, call and tear-down of every test, where the results come together."""
        cell = dict(report.user_properties).get("capability")
        if cell is None:
            return
        family, column = cell
        if report.failed:
            self.broken.add((family, column))
        elif report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
            self.outcomes[family, column] = report.passed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write a whole table or none."""
        missing = [cell for cell in promised() if cell not in self.outcomes or cell in self.broken]
        if missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.message = f"{self.path} not written: no outcome for {missing}"
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(render(self.outcomes), encoding="utf-8")
            self.message = f"{self.path} written"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what became of it."""
        terminalreporter.write_line(self.message)
