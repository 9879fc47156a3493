"""The examples run as a reader would run them, only smaller."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARE = r"[01]\.\d{3} \(0\.\d{3}\)"  # with its standard error
ROW = re.compile(
    rf"^(.+?)  +\d+ \(\d+-\d+\) +(\d+\.\d\d)x \(.+?\) +{SHARE} +({SHARE})$", re.MULTILINE
)


def in_process(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As a reader runs it, to the last part of it: in a process of its own."""
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The same in this process, which has everything imported already."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def here(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code: object = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # what Python does with it
            code, err = 1, f"{err}{code}\n"
        return subprocess.CompletedProcess(sys.argv, int(code or 0), out, err)

    return here


def table(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    assert done.returncode == 0, done.stderr
    return {row[0]: (row[1], row[2]) for row in ROW.findall(done.stdout)}


def test_finetune_on_synthetic_images() -> None:
    done = in_process("finetune.py", "--steps", 3, "--batch", 2, "--size", 64, "--test", 4)
    rows = table(done)
    assert list(rows) == ["dense", "papr, keep 0.5", "random, keep 0.5"]
    assert rows["dense"][0] == "1.00"
    assert re.search(rf"dense, pruned afterwards .*not trained pruned +{SHARE}\n", done.stdout)
    assert "synthetic images, 64 px, batch 2; weights to start from: random" in done.stdout


def test_finetune_on_a_folder_of_images(run, tmp_path: Path) -> None:
    """Ten images of two classes: eight to train on, two to test on."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            noise = torch.randint(256, (40 + i, 50, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(tmp_path / name / f"{i}.png")
    done = run("finetune.py", "--data", tmp_path, "--steps", 2, "--batch", 4, "--size", 32)
    rows = table(done)
    possible = {"0.000 (0.000)", "0.500 (0.500)", "1.000 (0.000)"}
    assert {right for _, right in rows.values()} <= possible
    assert f"images of {tmp_path.name}, 32 px" in done.stdout


@pytest.mark.parametrize(
    ("example", "wrong", "message"),
    [
        ("finetune", ["--data", "no/such/folder"], "expected a folder, no/such/folder is none"),
        ("finetune", ["--keep", "1.5"], "expected 0 < keep <= 1, got 1.5"),
        (
            "segmentation",
            ["--size", "50"],
            "expected --size of at least 32, a multiple of 8, got 50",
        ),
        ("segmentation", ["--keep", "0"], "expected 0 < keep <= 1, got 0.0"),
    ],
)
def test_refused_in_one_line(run, example: str, wrong: list[str], message: str) -> None:
    done = run(f"{example}.py", *wrong)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_finetune_help_teaches(run) -> None:
    done = run("finetune.py", "--help")
    assert done.returncode == 0
    for word in ("SYNTHETIC", "RANDOM weights", "--keep", "--data", "quartiles", "proposal"):
        assert word in done.stdout


def test_segmentation(run) -> None:
    done = run("segmentation.py", "--steps", 3, "--batch", 2, "--size", 64, "--test", 4)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?)  +\d\.\d\dx \(.+?\) +([01]\.\d{3})$", done.stdout, re.MULTILINE)
    names = ["dense", "papr, zero", "papr, nearest", "papr, mean", "random, nearest"]
    assert [name for name, _ in rows] == names
    assert "synthetic images, 64 px, batch 2; trained from random weights" in done.stdout
