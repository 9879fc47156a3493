"""`papr video` as a newcomer runs it, on a tiny host."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import clips
import papr
from papr.cli import app
from papr.errors import PaprError
from papr.hub import VIDEO_HOSTS
from papr.video import View, average_views, open_video, read_views
from test_cli import papr_process

pytest.importorskip("av", reason="needs the extra: video")
transformers = pytest.importorskip("transformers", reason="needs the extra: hf")

TINY = {
    "image_size": 64,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
runner = CliRunner()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VideoMAE of grid (2, 4, 4) and seven classes."""
    torch.manual_seed(0)
    names = {i: f"class {i}" for i in range(7)}
    config = transformers.VideoMAEConfig(**TINY, intermediate_size=64, id2label=names)
    model = transformers.VideoMAEForVideoClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    folder = tmp_path_factory.mktemp("host")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.write(tmp_path / "a.mkv", clips.pictures(40, 64, 96))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> tuple[str, dict]:
    """The output, and the report."""
    result = runner.invoke(app, ["video", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    folder = Path(arguments[arguments.index("--out") + 1])
    return result.output, json.loads((folder / "a-papr.json").read_text())


def test_all_that_is_written(clip: Path, host: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "o"
    output, report = run(clip, "--model", host, "--out", folder, "--keep", 0.4, "--rounds", 1)
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        f"a-papr.{kind}" for kind in ("gif", "json", "mp4")
    ]
    assert report["clip"]["frames"] == 40
    assert report["clip"]["size"] == [64, 96]
    assert [w["frames"] for w in report["windows"]] == [
        [0, 4, 8, 12],
        [16, 20, 24, 28],
        [32, 36, 39, 39],
    ]
    for one in report["windows"]:
        assert one["grid"] == [2, 4, 4]
        assert one["crop"] == [0, 16, 64, 64]
        assert len(one["kept"]) == int(0.4 * 32)
        share = [sum(i // 16 == t for i in one["kept"]) / 16 for t in (0, 1)]
        assert one["kept_per_tubelet"] == pytest.approx(share, abs=1e-4)
    dense, pruned = report["speed"]
    assert (dense["keep"], pruned["keep"]) == (1, 0.4)
    assert pruned["gmacs_host"] < dense["gmacs_host"]
    assert pruned["gmacs_proposal"] > 0
    assert "ms/clip" in output
    assert "random" not in output
    with open_video(folder / "a-papr.mp4") as video:
        assert video.frames == 12
        assert video.fps == pytest.approx(2.5)


def test_the_classes_are_those_of_the_pruned_and_the_dense_host(
    clip: Path, host: Path, tmp_path: Path
) -> None:
    output, report = run(clip, "--model", host, "--out", tmp_path, "--windows", 2, "--rounds", 0)
    model = transformers.VideoMAEForVideoClassification.from_pretrained(host).eval()
    frames = [(0, 4, 8, 12), (16, 20, 24, 28)]
    with open_video(clip) as video, torch.inference_mode():
        pixels = read_views(video, [View(f, (64, 96), 0, 16, 64) for f in frames])
        expected = {"dense": average_views(model(pixels).logits)}
        statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        papr.prune(model, 0.35, **statistics)
        expected["pruned"] = average_views(model(pixels).logits)
    assert not np.allclose(expected["dense"], expected["pruned"], atol=1e-3)
    for who, probabilities in expected.items():
        best = probabilities.topk(5)
        assert [name for name, _ in report["top5"][who]] == [f"class {i}" for i in best.indices]
        shown = [probability for _, probability in report["top5"][who]]
        assert shown == pytest.approx(best.values.tolist(), abs=1e-3)
    assert report["top5"]["pruned"][0][0] in output
    assert report["speed"] == []


def test_random_weights_answer_nothing(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VIDEO_HOSTS, "tiny", ("VideoMAEConfig", TINY))
    arguments = ["--model", "tiny", "--out", tmp_path, "--score", "motion", "--rounds", 0]
    arguments += ["--random-weights"]
    output, report = run(clip, *arguments, "--start", 0.5, "--start", 3.8, "--stride", 2)
    assert [w["frames"] for w in report["windows"]] == [[5, 7, 9, 11], [38, 39, 39, 39]]
    assert report["windows"][0]["seconds"] == [0.5, 1.1]
    assert "no top-5" in output
    assert report["top5"] is None
    assert report["provenance"]["host"] == {"kind": "random", "source": "tiny", "why": "asked for"}
    assert report["provenance"]["proposals"]["glance"]["kind"] == "pretrained"


def test_seconds_are_those_of_the_time_stamps(host: Path, tmp_path: Path) -> None:
    """Ten frames a second for two seconds, then one a second."""
    stamps = [*range(20), *range(20, 220, 10)]
    clip = clips.write(tmp_path / "a.mkv", clips.pictures(40, 64, 64), stamps=stamps)
    arguments = ["--model", host, "--out", tmp_path, "--rounds", 0, "--stride", 2]
    output, report = run(clip, *arguments, "--start", 7, "--start", 10)
    assert "40 frames of 64 x 64 in 22.0 s" in output
    assert [w["frames"] for w in report["windows"]] == [[25, 27, 29, 31], [28, 30, 32, 34]]
    assert [w["seconds"] for w in report["windows"]] == [[7.0, 13.0], [10.0, 16.0]]
    assert "7.0 - 13.0" in output
    with open_video(tmp_path / "a-papr.mp4") as video:
        assert video.fps == pytest.approx(0.5)


def test_a_host_without_a_trained_head_answers_nothing(
    clip: Path, host: Path, tmp_path: Path
) -> None:
    """Its body is trained, its classifier is whatever transformers makes up."""
    torch.manual_seed(0)
    folder = tmp_path / "body"
    transformers.VideoMAEModel.from_pretrained(host).save_pretrained(folder)
    arguments = ["--model", folder, "--out", tmp_path, "--rounds", 0, "--windows", 1]
    refused = runner.invoke(app, ["video", str(clip), *map(str, arguments)])
    assert "has none for classifier" in str(refused.exception)
    assert "--random-weights" in str(refused.exception)
    output, report = run(clip, *arguments, "--random-weights")
    assert "no top-5" in output
    assert "classifier" in report["provenance"]["host"]["why"]
    assert report["top5"] is None


def test_statistics_are_those_of_the_hosts_processor(
    clip: Path, host: Path, tmp_path: Path
) -> None:
    """Where it has one beside its weights."""
    folder = tmp_path / "processed"
    shutil.copytree(host, folder)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    found = {}
    for name in (host, folder):
        _, report = run(clip, "--model", name, "--out", tmp_path, "--rounds", 0, "--windows", 1)
        found[name] = report["mean"], report["std"]
    assert found[host] == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert found[folder] == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "expected 0 < --keep < 1, got 0"),
        (["--keep", "1"], "expected 0 < --keep < 1, got 1"),
        (["--keep", "nan"], "expected 0 < --keep < 1, got nan"),
        (["--start", "nan"], r"expected --start within the video's 4.00 s, got nan"),
        (["--stride", "40"], r"expected --stride below the video's 40 frames, got 40"),
        (["--proposal", "x3d"], "x3d_s, x3d_m"),
        (["--windows", "2", "--start", "1"], "expected --windows or --start, got both"),
        (["--start", "4.5"], r"expected --start within the video's 4.00 s, got 4.5"),
        (["--score", "x"], "expected score"),
        (["--decoder", "x"], "expected a backend among"),
        (["--model", "nope"], "cannot load nope"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], message: str, clip: Path, host: Path, tmp_path: Path
) -> None:
    more = [] if "--model" in arguments else ["--model", str(host)]
    out = tmp_path / "o"
    result = runner.invoke(app, ["video", str(clip), "--out", str(out), *more, *arguments])
    assert isinstance(result.exception, PaprError)
    assert message in str(result.exception)
    assert not out.exists()


def test_what_cannot_be_written_to_is_refused_before_any_work(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papr.video.open_video", lambda *args: pytest.fail("it opened it"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        result = runner.invoke(app, ["video", str(clip), "--out", str(out)])
        assert isinstance(result.exception, papr.ConfigError)
        assert "file is a file" in str(result.exception)


def test_a_still_picture_is_no_video(tmp_path: Path) -> None:
    still = clips.write(tmp_path / "a.mkv", clips.pictures(1, 64, 96))
    result = runner.invoke(app, ["video", str(still), "--out", str(tmp_path)])
    assert "2 frames or more" in str(result.exception)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 99)
    done = papr_process("video", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "o"))
    assert done.returncode == 1
    assert "error: cannot read the video" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_help() -> None:
    result = runner.invoke(app, ["video", "--help"])
    assert result.exit_code == 0
    assert "significance map" in result.output
