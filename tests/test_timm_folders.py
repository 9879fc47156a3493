"""Hosts in folders of timm's, by every command that takes a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("pyarrow", reason="needs the extra: eval")
import pyarrow.parquet as pq

import papr
from papr import named
from papr.cli import app
from papr.errors import ConfigError
from papr.evaluate.answers import class_names
from papr.preprocessing import preprocessing
from papr.provenance import digest_of
from tiny_data import pictures
from tiny_folder import NAMES, SIZE, timm_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a host at a/vit and pictures of its classes at data, to stand in."""
    timm_folder(tmp_path / "a" / "vit")
    pictures(tmp_path / "data", 24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert "andom weights" not in result.output
    assert "(random" not in result.output
    return result.output


def told(path: Path) -> dict[str, Any]:
    """The file of a report, whose host is the folder's."""
    report: dict[str, Any] = json.loads(path.read_text())
    sha256 = digest_of(Path("a/vit/model.safetensors"))
    wanted = {"kind": "pretrained", "source": "a/vit", "sha256": sha256}
    assert report["provenance"]["host"] == wanted
    return report


HOST = ("--model", "local-dir:a/vit", "--device", "cpu")
RUN = (*HOST, "--data", "data", "--proposal-size", "input", "--workers", "0", "--out", "out")


class TestTheHost:
    def test_is_the_one_that_was_written(self, tmp_path: Path) -> None:
        written = timm_folder(tmp_path)
        state = torch.get_rng_state()
        host, weights = named.create_host(f"local-dir:{tmp_path}", random_weights=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert (weights.kind, weights.source) == ("pretrained", str(tmp_path))  # as files are
        assert not host.training
        pixels = torch.randn(2, 3, SIZE, SIZE)
        torch.testing.assert_close(host(pixels), written(pixels))
        assert class_names(host) == list(NAMES)

    def test_sees_pictures_as_its_folder_says(self, tmp_path: Path) -> None:
        timm_folder(tmp_path)
        name = f"local-dir:{tmp_path}"
        found = preprocessing(named.create_host(name)[0], name)
        assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        said = repr(found.transform)
        for part in ("Resize(size=40", "interpolation=bilinear", "CenterCrop(size=(32, 32))"):
            assert part in said

    def test_may_have_another_classifier_or_none(self, tmp_path: Path) -> None:
        timm_folder(tmp_path)
        name, other = f"local-dir:{tmp_path}", tmp_path / "other.pth"
        bare, weights = named.create_host(name, classes=0)
        assert bare(torch.randn(1, 3, SIZE, SIZE)).shape == (1, 24)
        assert (weights.kind, class_names(bare)) == ("pretrained", None)
        with pytest.raises(ConfigError, match=r"expected one of 7 in --num-c.* of 3 c"):
            named.create_host(name, classes=7)
        host, weights = named.create_host(name, classes=7, random_weights=True)
        assert (weights.random, class_names(host)) == (True, None)
        torch.save(host.state_dict(), other)
        loaded, weights = named.create_host(name, other, classes=7)
        assert (weights.kind, weights.source) == ("checkpoint", str(other))
        assert torch.equal(loaded.head.weight, host.head.weight)

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ("folder", "a folder with config.json, got a/none, which does not exist"),
            ("file", "a folder with config.json, got data/ant/000.png, which is a file"),
            ("name", "a folder with config.json, got none behind the colon"),
            ("config", "a folder with config.json, got a/vit with model.safetensors"),
            ("weights", "or model.pth, got a/vit with config.json"),
            ("json", "expected JSON in a/vit/config.json, got Expecting"),
            ("other", 'expected "architecture" and its name in a/vit/config.json'),
            ("unknown", "cannot load a/vit/model.safetensors: Unknown model (vit_of_nobody)"),
            ("option", "cannot load a/vit/model.safetensors: .*unexpected keyword argument 'wide'"),
            ("shape", "cannot load a/vit/model.safetensors: .*Missing key"),
            ("empty", "cannot load a/vit/model.safetensors: "),
        ],
    )
    def test_is_refused_in_one_line(self, here: Path, broken: str, message: str) -> None:
        folder = {"folder": "a/none", "file": "data/ant/000.png", "name": ""}.get(broken, "a/vit")
        config, weights = here / "a/vit/config.json", here / "a/vit/model.safetensors"
        if broken == "config":
            config.unlink()
        elif broken == "weights":
            weights.unlink()
        elif broken == "json":
            config.write_text("")
        elif broken == "other":
            config.write_text('{"model_type": "vit"}')
        elif broken == "empty":
            weights.write_bytes(b"")
        else:
            changes: dict[str, Any] = {
                "unknown": {"architecture": "vit_of_nobody"},
                "option": {"model_args": {"wide": 2}},
                "shape": {"model_args": {"img_size": SIZE}},
            }
            timm_folder(here / "a/vit", **changes.get(broken, {}))
        for more in ((), ("--random-weights",)):
            done = call("bench", "--model", f"local-dir:{folder}", *more)
            assert isinstance(done.exception, ConfigError)
            said = str(done.exception)
            assert "\n" not in said
            start, _, rest = message.partition(".*")
            assert start in said
            assert rest in said


@pytest.mark.usefixtures("here")
class TestCommands:
    def test_bench_and_doctor(self) -> None:
        timed = (*HOST, "--keep", "0.5", "--batch", "1", "--rounds", "1")
        done("bench", *timed, "--json", "b.json")
        told(Path("b.json"))
        done("doctor", *timed, "--json", "d.json", "--data", "data", "--workers", "0")
        told(Path("d.json"))

    def test_eval_finds_the_hosts_classes_by_the_folders_names(self) -> None:
        output = done("eval", *RUN, "--keep", "1.0,0.5")
        assert "top-1" in output
        summary = told(Path("out/summary.json"))
        labels = {row["id"].split("/")[0]: row["label"] for row in rows()}
        assert labels == {"cat": 0, "ant": 1, "bee": 2}
        host, _ = named.create_classifier("local-dir:a/vit")
        assert summary["results"][0]["top1"] == pytest.approx(top1(host))

    def test_predict_says_what_it_saw(self) -> None:
        output = done("predict", *RUN)
        found = told(Path("out/summary.json"))
        got = rows()
        assert all(row["class_name"] == NAMES[row["predicted"]] for row in got)
        often = found["likeliest"]
        assert sum(often.values()) == 24
        assert list(often.values()) == sorted(often.values(), reverse=True)
        assert f"predicted: {', '.join(f'{name} {n}' for name, n in often.items())}\n" in output

    def test_drift_sweep_and_tune(self) -> None:
        done("drift", *RUN, "--keep", "0.5", "--k", "1")
        told(Path("out/summary.json"))
        small = [word if word != "out" else "s" for word in RUN]
        done("sweep", *small, "--keep", "0.5", "--merge-r", "0", "--tome-r", "2")
        assert '"source": "a/vit"' in Path("s/configuration.json").read_text()
        small = [word if word != "s" else "t" for word in small]
        goal = ("--target-speedup", "1.01", "--minutes", "0.01", "--rounds", "1")
        found = call("tune", *small, *goal, "--json", "t.json")
        assert found.exit_code in (0, 1)  # a host so small may not be faster
        told(Path("t.json"))

    def test_compare_knows_top1_by_the_folders_names(self) -> None:
        words = ("compare", "data", *HOST, "--rounds", "1", "--figures", "0", "--json", "c.json")
        assert "top-1" in done(*words)
        dense = told(Path("c.json"))["rows"][0]
        host, _ = named.create_classifier("local-dir:a/vit")
        assert dense["top1"] == pytest.approx(top1(host))

    def test_export(self) -> None:
        words = ("export", "--model", "local-dir:a/vit", "--no-timing", "--format", "torch")
        assert "papr-export/vit-keep0.5.pt2" in done(*words)


def rows() -> list[dict[str, Any]]:
    return pq.read_table("out/rows").to_pylist()


def top1(host: torch.nn.Module) -> float:
    """By hand."""
    prepare, right = preprocessing(host, "local-dir:a/vit"), 0
    paths = sorted(Path("data").rglob("*.png"))
    for path in paths:
        with torch.no_grad():
            answer = host(prepare.transform(papr.images.load_image(path))[None]).argmax(1)
        right += NAMES[int(answer)] == path.parent.name
    return right / len(paths)
