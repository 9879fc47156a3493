"""What commands print: nothing is cut off, paths stay whole, one thing is singular."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from papr.cli import app
from papr.cli.tables import Sheet
from papr.words import counted

HEADINGS = ("ms/image", "images/s", "GMACs", "speed-up", "ideal")


def printed(sheet: Sheet, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(sheet)
    return [line.rstrip() for line in capture.get().splitlines()]


def speeds() -> Sheet:
    sheet = Sheet("keep", *HEADINGS, title="batch 8, float32, one of many long titles, longer")
    sheet.add_row("dense", "123.4", "81.0", "17.00")
    sheet.add_row("0.5", "66.4", "151.0", "8.60 + 0.39", "1.86 [dim](1.80-1.91)[/dim]", "1.90")
    return sheet


def test_a_table_that_fits_is_one() -> None:
    lines = printed(speeds(), 100)
    assert lines[0].startswith("batch 8")
    assert " keep   ms/image  images/s        GMACs          speed-up  ideal" in lines
    assert " 0.5        66.4     151.0  8.60 + 0.39  1.86 (1.80-1.91)   1.90" in lines


@pytest.mark.parametrize("width", [60, 40, 20])
def test_one_that_does_not_has_a_line_for_each_row(width: int) -> None:
    lines = printed(speeds(), width)
    whole = " ".join(" ".join(lines).split())
    assert "…" not in whole
    assert "dense: ms/image 123.4, images/s 81.0, GMACs 17.00 keep 0.5:" in whole
    assert whole.endswith("GMACs 8.60 + 0.39, speed-up 1.86 (1.80-1.91), ideal 1.90")
    if width >= 40:
        assert all(len(line) <= width for line in lines)
        assert any("8.60 + 0.39" in line for line in lines)  # no line ends inside a figure


def test_names_of_rows_are_never_cut() -> None:
    sheet = Sheet("", "top-1", "agree")
    name = "keep 0.5, efficientnet_lite0 at 128 x 128, r = 8 in the second half of the blocks"
    sheet.add_row(Text(name), "0.812", "0.950")
    assert name in " ".join(printed(sheet, 60))
    assert "top-1 0.812, agree 0.950" in " ".join(printed(sheet, 60))


@pytest.mark.parametrize(
    ("number", "what", "words"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2, "class", "2 classes"),
        (2, "query", "2 queries"),
        (1, "process", "1 process"),
        (3, "top-level folder", "3 top-level folders"),
        (2, "batch", "2 batches"),
        (2, "day", "2 days"),
    ],
)
def test_counts(number: int, what: str, words: str) -> None:
    assert counted(number, what) == words


def test_paths_are_printed_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    photograph = tmp_path / "a.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(photograph)
    out = tmp_path / ("a long name of a folder " * 3).strip() / "[bold] :car:"
    result = CliRunner().invoke(
        app, ["mask", str(photograph), "--out", str(out), "--img-size", "32"]
    )
    assert result.exit_code == 0, result.output
    assert f"1 image, pictures and masks.jsonl in {out}\n" in result.output


def test_no_count_is_glued_to_a_plural() -> None:
    """A number and a plural noun are put together by `counted` alone, in what commands print."""
    nouns = "images|samples|files|classes|workers|clips|frames|rounds|processes|pictures|windows"
    folder = Path(__file__).parents[1] / "src" / "papr" / "cli"
    found = [
        f"{path.name}: {line.strip()}"
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if re.search(rf"\}} ({nouns})\b", line)
    ]
    assert found == []
