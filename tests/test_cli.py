"""The commands as a newcomer runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.torch_version import TorchVersion
from typer.testing import CliRunner

from papr.cli import app, main
from papr.walking import look

runner = CliRunner()


def papr_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "papr", *arguments], capture_output=True, text=True, check=False
    )


def test_mask(photographs: Path, tmp_path: Path) -> None:
    done = papr_process(
        "mask", str(photographs), "--out", str(tmp_path / "o"), "--keep", "0.25", "--img-size", "64"
    )
    assert done.returncode == 0, done.stderr  # some were answered, the rest is named
    assert "broken.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(x) for x in (tmp_path / "o" / "masks.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "a.png"]
    assert [line["picture"] for line in lines] == ["a-papr.png", "a-2-papr.png"]
    for line in lines:
        assert line["grid"] == [4, 6]
        assert len(line["kept"]) == 6
        with Image.open(tmp_path / "o" / line["picture"]) as picture:
            assert picture.size == (3 * 96 + 12, 64 + 22)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        ".papr",
        "a-2-papr.png",
        "a-papr.png",
        "masks.jsonl",
    ]


def test_mask_kept_patches_are_as_they_were(photographs: Path, tmp_path: Path) -> None:
    result = runner.invoke(
        app, ["mask", str(photographs / "a.png"), "--out", str(tmp_path / "o"), "--img-size", "64"]
    )
    assert result.exit_code == 0
    line = json.loads((tmp_path / "o" / "masks.jsonl").read_text())
    picture = torch.from_numpy(__import__("numpy").array(Image.open(tmp_path / "o" / "a-papr.png")))
    original, kept = picture[22:, :96], picture[22:, -96:]
    for index in range(24):
        y, x = index // 6 * 16, index % 6 * 16
        same = torch.equal(original[y : y + 16, x : x + 16], kept[y : y + 16, x : x + 16])
        assert same == (index in line["kept"])


def test_bench(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    result = runner.invoke(
        app,
        [
            *("bench", "--model", "vit_tiny_patch16_224", "--keep", "0.5", "--batch", "1,2"),
            *("--rounds", "2", "--json", str(path), "--device", "cpu"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "GMACs" in result.output
    report = json.loads(path.read_text())
    assert report["provenance"]["host"]["kind"] == "random"
    assert {"torch", "timm", "device"} <= set(report["environment"])
    assert [(r["batch"], r["keep"]) for r in report["rows"]] == [(1, 1), (1, 0.5), (2, 1), (2, 0.5)]
    dense, pruned = report["rows"][:2]
    assert dense["gmacs_host"] == pytest.approx(1.25, abs=0.02)
    assert pruned["ideal"] == pytest.approx(
        dense["gmacs_host"] / (pruned["gmacs_host"] + pruned["gmacs_proposal"])
    )
    assert pruned["speedup"][0] > 0


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra: export")
    if suffix == ".onnx" and TorchVersion(torch.__version__) < (2, 8):
        pytest.skip("ONNX needs torch 2.8")
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "deep" / f"vit{suffix}"
    arguments = [
        "export",
        "--model",
        "test_vit",
        "--random-weights",
        "--keep",
        "0.3",
        "--out",
        str(path),
    ]
    result = runner.invoke(app, [*arguments, "--img-size", "64x96", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert "(random weights), keep 0.3 of the 4 x 6 patches" in result.output
    assert "input pixels (batch, 3, 64, 96), output logits" in result.output
    checked = re.findall(r"(\S+) at batch (1|3|8)", result.output)
    assert [b for _, b in checked] == ["1", "3", "8"] * (2 if suffix == ".onnx" else 1)
    assert all(float(gap) < 1e-4 for gap, _ in checked)
    rows = re.findall(r"(eager|Runtime|torch.export) +([\d.]+) +([\d.]+) +([\d.]+)", result.output)
    assert [row[0] for row in rows] == ["eager", "Runtime" if suffix == ".onnx" else "torch.export"]
    program = torch.export.load(path).module() if suffix == ".pt2" else None
    assert program is None or program(torch.randn(2, 3, 64, 96)).shape == (2, 1000)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr("papr.cli.demo.HOST", "vit_tiny_patch16_224")
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    monkeypatch.setattr("papr.cli.bars._EVERY", 0.0)
    mine = tmp_path / "coffee.png"
    Image.new("RGB", (20, 20)).save(mine)
    before = mine.read_bytes()
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--rounds", "1", "--batch", "1"])
    assert result.exit_code == 0, result.output
    assert "Egyptian cat" in result.output
    assert "weights are" in result.output
    assert "random" in result.output
    assert "loading vit_tiny_patch16_224 ...\n" in result.output  # and so it is where it is piped
    assert len(re.findall(r"timing: \d+ %, 0:\d\d:\d\d left", result.output)) == 8
    assert len(list(tmp_path.glob("*-papr.png"))) == 6
    assert look(tmp_path).files == ["coffee.png"]  # what was drawn is no photograph of the user's
    assert mine.read_bytes() == before
    with Image.open(tmp_path / "contact-sheet-papr.png") as sheet:
        assert sheet.width == 5 * 224 + 4 * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--keep", "0"], "error: expected 0 < keep <= 1, got 0.0"),
        (["bench", "--keep", "1"], "error: expected at least one --keep below 1, got '1'"),
        (["bench", "--keep", "a"], "error: cannot read 'a' in --keep 'a'"),
        (["bench", "--batch", "0"], "error: expected --batch of at least 1, got 0"),
        (["bench", "--dtype", "int8"], "error: cannot read 'int8' in --dtype 'int8'"),
        (["bench", "--device", "abacus"], "error: cannot use the device 'abacus'"),
        (["bench", "--model", "nope"], "expected the name of a timm model, local-dir: and"),
        (["bench", "--model", "resnet18", "--batch", "1"], "error: cannot prune ResNet"),
        (
            ["export", "-m", "vit_tiny_patch16_224", "--out", "m.bin"],
            "expected a path that ends in .onnx",
        ),
        (
            ["export", "-m", "nope", "--out", "m.onnx"],
            "expected the name of a timm model, got 'nope'",
        ),
        (
            ["export", "-m", "nope", "--out", "m.onnx", "--img-size", "a"],
            "expected --img-size such as",
        ),
        (
            ["export", "-m", "nope", "--out", "m.onnx", "--keep", "2"],
            "expected 0 < keep <= 1, got 2.0",
        ),
        (
            ["export", "-m", "resnet18", "--random-weights", "--out", "m.onnx"],
            "error: cannot prune ResNet",
        ),
        (["mask", "/no/such/file"], "expected an image or a folder, /no/such/file does not exist"),
        (
            ["mask", ".", "--img-size", "16", "--patch", "32"],
            "expected --img-size of at least one patch",
        ),
        (["mask", ".", "--proposal-size", "x"], "expected --proposal-size such as 160"),
    ],
)
def test_errors_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["papr", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    said = capsys.readouterr().err
    steps, error = said.strip().splitlines()[:-1], said.strip().splitlines()[-1]
    assert message in error
    assert all(step.endswith(" ...") for step in steps)  # what it was doing


def test_an_error_of_a_process_is_one_line_and_a_traceback_if_asked() -> None:
    done = papr_process("bench", "--keep", "0")
    assert done.returncode == 1
    assert done.stderr == "error: expected 0 < keep <= 1, got 0.0\n"
    assert "Traceback" in papr_process("--debug", "bench", "--keep", "0").stderr


def test_help_of_every_command() -> None:
    commands = [command.name for command in app.registered_commands]
    assert len(commands) == 14
    for command in ([], *([name] for name in commands)):
        result = runner.invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert "--" in result.output
    assert runner.invoke(app, ["--version"]).output.startswith("papr 0.")
