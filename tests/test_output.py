"""Results outlive whatever happens to what is printed, and to the disk."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow", reason="needs the extra: eval")
pytest.importorskip("transformers", reason="needs the extra: hf")

import transformers

import clips
from papr.cli import app
from papr.cli.common import errors, out, results_first
from papr.errors import ConfigError, WriteError
from papr.evaluate.runs import default_folder
from papr.files import Lines, atomic, short, write_text

SPEED = ("--keep", "0.5", "--rounds", "1", "--device", "cpu")
RUN = ("--data", "{images}", "--keep", "0.5", "--workers", "0", "--batch", "4", "--device", "cpu")
#: Each command that writes, with small work; and what it must have written.
COMMANDS = {
    "mask": (("{images}", "--img-size", "32", "--out", "{o}"), "masks.jsonl"),
    "bench": (("--model", "test_vit", *SPEED, "--batch", "1", "--json", "{o}/b.json"), "b.json"),
    "compare": (
        ("{images}/№ 1.png", "--model", "{host}", *SPEED, "--out", "{o}", "--json", "{o}/c.json"),
        "c.json",
    ),
    "compare-cam": (
        (
            *("{images}/№ 1.png", "--methods", "papr", "--rounds", "0", "--img-size", "32"),
            *("--steps", "1", "--out", "{o}", "--device", "cpu"),
        ),
        "cams.json",
    ),
    "doctor": (("--model", "{host}", *SPEED, "--batch", "1", "--json", "{o}/d.json"), "d.json"),
    "eval": (("--model", "{host}", *RUN, "--out", "{o}"), "summary.json"),
    "sweep": (("--model", "{host}", *RUN, "--out", "{o}", "--no-baselines"), "sweep.json"),
    "drift": (("--model", "{host}", *RUN, "--out", "{o}", "--k", "1"), "summary.json"),
    "predict": (("--model", "{host}", *RUN, "--out", "{o}"), "summary.json"),
    "tune": (
        (
            *("--model", "{host}", "--data", "{images}", "--target-agreement", "0.1"),
            *("--proposal-size", "input", "--merge-r", "0", "--rounds", "1", "--workers", "0"),
            *("--out", "{o}/o", "--json", "{o}/t.json", "--device", "cpu"),
        ),
        "t.json",
    ),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT of grid (4, 4) and twelve classes."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=12,
    )
    folder = tmp_path_factory.mktemp("host")
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose names no narrow encoding has."""
    folder = tmp_path_factory.mktemp("photos") / "größe → 写真"
    folder.mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"№ {number}.png")
    return folder


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def run(arguments: list[str], stream: io.TextIOBase, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command whose two streams are this one."""
    monkeypatch.setattr("papr.hub.reachable", lambda: False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "argv", ["papr", *arguments])
    try:
        return app(arguments, standalone_mode=False) or 0
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("command", COMMANDS)
def test_results_are_written_whatever_can_be_printed(
    command: str, host: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, result = COMMANDS[command]
    names = {"host": host, "images": images}
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    for stream in (narrow, Closed()):
        folder = tmp_path / type(stream).__name__ / "→"
        folder.mkdir(parents=True)
        words = [command, *(a.format(o=folder, **names) for a in arguments)]
        assert run(words, stream, monkeypatch) in ((0, 1) if command == "tune" else (0,))
        assert (folder / result).stat().st_size > 0
        if command not in ("mask", "eval"):
            break  # once is enough: the console is the same
    assert len(raw.getvalue()) > 50


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_clip_is_drawn_whatever_can_be_printed(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from papr.hub import VIDEO_HOSTS

    pytest.importorskip("av", reason="needs the extra: video")
    tiny = {"image_size": 64, "num_frames": 4, "hidden_size": 32, "num_attention_heads": 2}
    tiny |= {"num_hidden_layers": 2}
    monkeypatch.setitem(VIDEO_HOSTS, "tiny", ("VideoMAEConfig", tiny))
    name = "写" * 60 + "!" * 60  # 240 bytes: their file system takes it, with an ending no more
    clip = clips.write(tmp_path / "a.mkv", clips.pictures(8, 64, 64)).rename(tmp_path / name)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    arguments = ["video", str(clip), "--model", "tiny", "--random-weights", "--rounds", "0"]
    arguments += ["--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        assert run(arguments, stream, patch) == 0
    stream.flush()
    (report,) = tmp_path.glob("*-papr.json")
    assert json.loads(report.read_text())["codec"] in ("h264", "mpeg4")
    assert {p.suffix for p in tmp_path.glob("*-papr.*")} == {".json", ".mp4", ".gif"}
    bars = "▁▂▃▄▅▆▇█" if encoding == "utf-8" else "12345678"
    assert any(bar in raw.getvalue().decode(encoding) for bar in bars)


def test_a_process_whose_pipe_is_closed_ends_well(images: Path, tmp_path: Path) -> None:
    """As `papr mask ... | head -0`: its exit status is that of the work, and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    words = ["mask", str(images), "--img-size", "32", "--out", str(tmp_path / "o")]
    done = subprocess.run(
        [sys.executable, "-m", "papr", *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    os.close(writing)
    assert (done.returncode, "Traceback" in done.stderr, "Ignored" in done.stderr) == (0, False, 0)
    assert len((tmp_path / "o" / "masks.jsonl").read_text().splitlines()) == 8


def test_long_names_are_cut_and_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    long = "x" * 240
    for name in (f"{long}a.png", f"{long}b.png", "short.png"):
        Image.new("RGB", (40, 40), "red").save(folder / name)
    words = ["mask", str(folder), "--img-size", "32", "--out", str(tmp_path / "o")]
    assert run(words, io.StringIO(), monkeypatch) == 0
    lines = [json.loads(x) for x in (tmp_path / "o" / "masks.jsonl").read_text().splitlines()]
    drawn = sorted(line["picture"] for line in lines)
    assert len(set(drawn)) == 3
    assert all((tmp_path / "o" / name).is_file() for name in drawn)
    assert drawn[0] == "short-papr.png"
    assert max(map(len, drawn)) <= 209


def test_short_names() -> None:
    assert short("a b.c") == "a b.c"
    assert short("a", {"a", "a-2"}) == "a-3"
    for name in ("写" * 80, "x" * 201, os.fsdecode(b"\xff" * 250)):
        cut = short(name)
        assert len(os.fsencode(cut)) <= 200
        assert cut != short(name + "y")
    assert short("x" * 200) == "x" * 200
    folders = [default_folder("papr-eval", {"model": "x" * 240 + end}).name for end in "ab"]
    assert max(map(len, folders)) < 220
    assert folders[0] != folders[1]


def test_the_temporary_name_of_a_file_does_not_grow_with_its_own(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    write_text(path, "{}")
    assert path.read_text() == "{}"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(WriteError, match=r"cannot write .*xy\.json: File name too long"):
        write_text(tmp_path / ("x" * 255 + "y.json"), "{}")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_picture_that_cannot_be_written_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for a disk without room for one of them."""
    (folder := tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.new("RGB", (256, 256)).save(folder / "a.png")
    Image.fromarray(noise).save(folder / "b.png")
    Image.new("RGB", (256, 256)).save(folder / "c.png")
    words = ["mask", str(folder), "--img-size", "256", "--out", str(tmp_path / "o")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    text = io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert run(words, text, monkeypatch) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = [json.loads(x) for x in (tmp_path / "o" / "masks.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == ["a-papr.png", None, "c-papr.png"]
    assert all(len(line["kept"]) == 128 for line in lines)
    assert f"cannot write {tmp_path / 'o' / 'b-papr.png'}: File too large" in text.getvalue()
    assert not list((tmp_path / "o").glob(".papr-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_a_command_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    (tmp_path / "masks.jsonl").symlink_to("/dev/full")
    words = ["mask", str(images), "--img-size", "32", "--out", str(tmp_path)]
    with pytest.raises(WriteError, match=r"cannot write .*masks\.jsonl: No space left on device"):
        run(words, io.StringIO(), monkeypatch)


def test_lines_are_there_at_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Lines(path) as lines:
        lines.add({"a": 1})
        assert path.read_text() == '{"a": 1}\n'
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            with pytest.raises(WriteError):
                lines.add({"b": "x" * 40})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_text() == '{"a": 1}\n'
        lines.add(2)
    assert path.read_text() == '{"a": 1}\n2\n'


@pytest.mark.parametrize(
    "arguments",
    [
        *(["bench", "--json"], ["compare", "a.png", "--json"], ["doctor", "--json"]),
        *(["video", "a.mp4", "--out"], ["mask", "a.png", "--out"], ["export", "--out"]),
        *(["compare-cam", "a.png", "--out"], ["eval", "--data", "a", "--out"], ["demo", "--out"]),
        *(["sweep", "--data", "a", "--out"], ["tune", "--data", "a", "--out"]),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    more = ["--target-agreement", "0.9"] if arguments[0] == "tune" else []
    for place, message in (("x" * 256, "255 bytes, got x{20}..., which has 2"), ("file/a", "file")):
        words = [*arguments, f"{tmp_path / place}.onnx", *more]
        with pytest.raises(ConfigError, match=message):
            app(words, standalone_mode=False)


def test_figures_that_cannot_be_written_are_printed_first(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise WriteError("cannot write it")

    def report() -> None:
        with results_first(fail):
            out.print("the figures")
            errors.print("and what was skipped")

    with pytest.raises(WriteError, match="cannot write it"):
        report()
    assert capsys.readouterr() == ("the figures\n", "and what was skipped\n")
