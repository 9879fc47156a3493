"""Whose weights answered: refused where there are none, and said in every file."""

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

import papr
from papr import hub, named
from papr.cli import app
from papr.compare.rivals import answer
from papr.errors import ConfigError, ProposalError
from papr.evaluate import Predictor, evaluate, predict
from papr.proposals import as_proposal
from papr.provenance import GIVEN, Provenance, Weights
from tiny_data import KEEPS, host, pictures

HOST, PROPOSAL = "test_vit", "test_efficientnet"
RUN = ["--model", HOST, "--workers", "0", "--device", "cpu", "--batch", "4"]
RANDOM = {"kind": "random", "why": "asked for"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 6)


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("papr.hub.reachable", lambda url=None: False)
        patch.setenv("COLUMNS", "160")
        words = ["--data", folder, *RUN, "--random-weights", "--out"]
        done = call("eval", *words, out / "eval", "--keep", "0.5", "--proposal", PROPOSAL)
        assert done.exit_code == 0, done.output
        (out / "eval.txt").write_text(done.output)
        done = call("predict", *words, out / "predict", "--keep", "0.5")
        assert done.exit_code == 0, done.output
        (out / "predict.txt").write_text(done.output)
        done = call("drift", *words, out / "drift", "--keep", "0.5", "--k", "1")
        assert done.exit_code == 0, done.output
        (out / "drift.txt").write_text(done.output)
    return out


class TestWithoutWeights:
    @pytest.mark.parametrize(
        "words",
        [
            ["predict", "--data", "DATA", *RUN],
            ["eval", "--data", "DATA", *RUN],
            ["drift", "--data", "DATA", *RUN, "--k", "1"],
            ["tune", "--data", "DATA", "--target-speedup", "1.5", *RUN],
            ["sweep", "--data", "DATA", *RUN],
            ["compare", "DATA", "--model", HOST],
            ["doctor", "--model", HOST],
            ["reproduce", "augreg", "--data", "DATA"],
            ["export", "--model", HOST],
            ["eval", "--data", "DATA", *RUN, "--num-classes", "7"],
            ["eval", "--data", "DATA", *RUN, "--model", "torchvision/vit_b_16"],
            ["eval", "--data", "DATA", *RUN, "--model", "videomae_small"],
            ["eval", "--data", "DATA", *RUN, "--model", "nobody/vit"],
            ["mask", "DATA", "--proposal", PROPOSAL],
            ["mask", "DATA", "--proposal", "mc3_18"],
        ],
        ids=lambda words: " ".join(words[:1] + words[-2:]),
    )
    def test_a_command_ends_and_names_the_flag(
        self, words: list[str], folder: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / ("m.onnx" if words[0] == "export" else "o")
        more = [] if words[0] == "doctor" else ["--out", out]
        done = call(*(folder if word == "DATA" else word for word in words), *more)
        assert isinstance(done.exception, papr.PaprError)
        said = str(done.exception)
        assert "--random-weights" in said
        assert "\n" not in said
        others = {"7": "classifier of 7", "videomae_small": "configuration without weights"}
        assert others.get(words[-1], "network: ") in said
        assert not out.exists()

    def test_the_reason_is_the_network_a_file_or_its_hash(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert hub.why_not(OSError("no such tensor")) == "file: OSError: no such tensor"
        wrong = RuntimeError('invalid hash value (expected "a", got "b")')
        assert hub.why_not(wrong).startswith("hash: RuntimeError: invalid hash value")
        assert hub.why_not(ConnectionError("x")) == "network: huggingface.co cannot be reached"
        monkeypatch.setattr("papr.hub.reachable", lambda url=None: True)
        away = HTTPError("https://a.b/c", 404, "not found", {}, None)  # type: ignore[arg-type]
        assert hub.why_not(away) == "network: HTTPError: HTTP Error 404: not found"

    def test_in_python_too(self) -> None:
        with pytest.raises(ConfigError, match="random_weights=True"):
            named.create_host(HOST)
        with pytest.raises(ConfigError, match="random_weights=True"):
            Predictor(HOST, 0.5, device="cpu").load()
        model, weights = named.create_host(HOST, random_weights=True)
        assert weights.to_dict() == {**RANDOM, "source": HOST}
        other = named.create_host(HOST, random_weights=True)[0]
        both = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(one, two) for one, two in both)  # the same at every call

    def test_a_pretrained_model_may_go_without_its_classifier(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights that are there, as if from the hub: those of another classifier are not."""
        make = timm.create_model
        asked: list[tuple[Any, ...]] = []

        def create(name: str, pretrained: bool = False, **options: Any) -> Any:
            asked.append((name, pretrained, options))
            return make(name, pretrained=False, **options)

        monkeypatch.setattr("timm.create_model", create)
        assert named.create_host(HOST, classes=0)[1].kind == "pretrained"
        assert named.create_host(HOST, classes=1000)[1].source == "timm/test_vit.r160_in1k"
        assert [pretrained for _, pretrained, _ in asked] == [True, True]


class TestFilesSay:
    @pytest.mark.parametrize("command", ["eval", "predict", "drift"])
    def test_rows_summary_and_configuration(self, run: Path, command: str) -> None:
        summary, configuration = (
            json.loads((run / command / f"{name}.json").read_text())["provenance"]
            for name in ("summary", "configuration")
        )
        files = list((run / command / "rows").glob("*.parquet"))
        rows = [json.loads(pq.read_schema(path).metadata[b"provenance"]) for path in files]
        assert rows
        assert all(said == summary == configuration for said in rows)
        assert summary["host"] == {**RANDOM, "source": HOST}
        if command == "eval":
            assert summary["proposals"] == {PROPOSAL: {**RANDOM, "source": PROPOSAL}}
        else:  # glance needs no download
            found = summary["proposals"]["glance"]
            assert (found["kind"], len(found["sha256"])) == ("pretrained", 64)

    def test_an_evaluation_judges_nothing(self, run: Path) -> None:
        rows = pq.read_table(run / "eval" / "rows").to_pydict()
        assert set(rows["agrees"]) == set(rows["cosine"]) == {None}
        for result in json.loads((run / "eval" / "summary.json").read_text())["results"]:
            for name in ("top1", "top5", "agreement", "cosine"):
                assert result[name] is None
            assert result["gmacs_host"] > 0
        said = (run / "eval.txt").read_text()
        whose = f"Random weights (host, proposal {PROPOSAL}): agreement, cosine and accuracy would"
        assert whose in " ".join(said.split())
        table = [line for line in said.splitlines() if line.strip().startswith("keep 0.5")]
        assert table[0].split().count("-") == 4

    def test_drift_embeds_and_has_no_verdict(self, run: Path) -> None:
        summary = json.loads((run / "drift" / "summary.json").read_text())
        assert (summary["images"], summary["columns"]) == (6, [])
        said = (run / "drift.txt").read_text()
        assert "recall@" not in said
        assert "Random weights (host): cosine and recall would mean nothing" in said

    def test_predict_says_why_labels_are_null(self, run: Path, folder: Path) -> None:
        said = (run / "predict.txt").read_text()
        assert "3 folders for the host's 1000 classes: labels are not used" in said
        assert "Random weights (host): the answers mean nothing" in said
        out = run / "features"
        words = ["--data", folder, *RUN, "--random-weights", "--num-classes", "0", "--keep", "1"]
        done = call("predict", *words, "--out", out)
        assert done.exit_code == 0, done.output
        assert "predicted, class_name, top5 and score are null: the host has no" in done.output
        assert "mask and grid are null: no patch is pruned" in done.output

    def test_where_a_checkpoint_lies_is_said_and_changes_no_run(
        self, folder: Path, tmp_path: Path
    ) -> None:
        """A run goes on with the same weights from elsewhere."""
        options = {"out": tmp_path / "run", "workers": 0, "batch": 4}
        here, there = (Weights("checkpoint", path, "abc") for path in ("a.pth", "b.pth"))
        report = evaluate(host(), folder, KEEPS[:1], weights=here, **options)
        again = evaluate(host(), folder, KEEPS[:1], weights=there, **options)
        assert again.results[1].cosine == report.results[1].cosine
        assert json.loads((tmp_path / "run" / "configuration.json").read_text())["provenance"][
            "host"
        ] == {"kind": "checkpoint", "source": "a.pth", "sha256": "abc"}
        with pytest.raises(ConfigError, match="judged"):  # whose rows judge nothing
            evaluate(host(), folder, KEEPS[:1], weights=Weights("random"), **options)

    def test_a_module_is_given(self, folder: Path, tmp_path: Path) -> None:
        found = predict(Predictor(host, 0.5, device="cpu"), folder, tmp_path, workers=0)
        assert found.provenance.host == GIVEN
        assert found.to_dict()["provenance"]["host"] == {"kind": "given"}
        assert str(found.provenance) == "given weights"

    def test_pictures_and_lines_of_masks(self, folder: Path, tmp_path: Path) -> None:
        one = next(folder.rglob("*.png"))
        words = ["--img-size", "64", "--proposal", PROPOSAL, "--random-weights"]
        done = call("mask", one, "--out", tmp_path / "o", *words)
        assert done.exit_code == 0, done.output
        line = json.loads((tmp_path / "o" / "masks.jsonl").read_text())
        wanted = {"proposals": {PROPOSAL: {**RANDOM, "source": PROPOSAL}}}
        assert line["provenance"] == wanted
        with Image.open(tmp_path / "o" / line["picture"]) as picture:
            assert json.loads(picture.text["provenance"]) == wanted  # type: ignore[attr-defined]
            noted = picture.height
        call("mask", one, "--out", tmp_path / "p", "--img-size", "64")
        with Image.open(tmp_path / "p" / line["picture"]) as picture:
            assert noted == picture.height + 22  # the line that says so

    @pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
    def test_exported_files(self, suffix: str, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx", reason="needs the extra: export")
        path, weights = tmp_path / f"m{suffix}", Weights("checkpoint", "a.pth", "abc")
        found = papr.export(papr.prune(host(), 0.5, proposal_size="input"), path, weights=weights)
        if suffix == ".onnx":
            (said,) = (p.value for p in onnx.load(path).metadata_props if p.key == "provenance")
        else:
            extra = {"provenance.json": ""}
            torch.export.load(path, extra_files=extra)
            said = extra["provenance.json"]
        assert json.loads(said) == found.provenance.to_dict()
        assert json.loads(said)["host"] == weights.to_dict()
        assert json.loads(said)["proposals"]["glance"]["kind"] == "pretrained"


class TestSpeedAlone:
    def test_tune_takes_a_speed_and_no_agreement(self, folder: Path, tmp_path: Path) -> None:
        words = ["tune", "--data", folder, *RUN, "--random-weights", "--rounds", "1"]
        words += ["--merge-r", "0", "--proposal", PROPOSAL, "--proposal-size", "32"]
        words += ["--out", tmp_path / "o", "--json", tmp_path / "all.json"]
        done = call(*words, "--target-agreement", "0.9")
        assert isinstance(done.exception, ConfigError)
        assert "with random weights, whose answers mean nothing" in str(done.exception)
        done = call(*words, "--target-speedup", "1.001")
        report = json.loads((tmp_path / "all.json").read_text())
        assert report["tuning"] is report["held_out"] is None
        assert all(trial["quality"] is None for trial in report["trials"])
        assert report["provenance"]["host"]["kind"] == "random"
        for word in ("agreement 0", "agreement 1", "held out", "cosine 0", "cosine 1"):
            assert word not in done.output
        assert "agreement and cosine would mean nothing" in done.output
        if report["reached"]:
            chosen = json.loads((tmp_path / "o" / "chosen.json").read_text())
            assert chosen.pop("provenance") == report["provenance"]
            assert papr.PruneConfig.from_file(tmp_path / "o" / "chosen.json").to_dict() == {
                **papr.PruneConfig(**chosen).to_dict()
            }
            assert chosen["proposal"] == PROPOSAL

    def test_bench_goes_on_by_itself_and_says_so(self, tmp_path: Path) -> None:
        words = ["bench", "--model", HOST, "--keep", "0.5", "--batch", "1", "--rounds", "1"]
        path = tmp_path / "b.json"
        done = call(*words, "--device", "cpu", "--proposal", PROPOSAL, "--json", path)
        assert done.exit_code == 0, (done.output, done.exception)
        assert "the proposal's weights are random, the speed is the same: cannot" in done.output
        assert f"{HOST} (random weights, proposal {PROPOSAL} random)" in done.output
        said = json.loads(path.read_text())["provenance"]
        assert said["proposals"][PROPOSAL]["kind"] == said["host"]["kind"] == "random"
        done = call(*words, "--proposal", "test_eficientnet")
        assert isinstance(done.exception, ProposalError)  # a name that nobody has stays an error


def test_a_proposal_is_random_only_where_it_would_be_downloaded() -> None:
    assert as_proposal("glance", random_weights=True).weights.kind == "pretrained"
    assert as_proposal("efficientnet_lite0", random_weights=True).weights.kind == "pretrained"
    one, two = (as_proposal(PROPOSAL, random_weights=True) for _ in range(2))
    assert one.weights.random
    both = zip(one.net.parameters(), two.net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    with pytest.raises(ProposalError, match=r"network: .*--random-weights"):
        as_proposal(PROPOSAL)


def test_words() -> None:
    own = Weights("checkpoint", "/somewhere/own.pth", "0123456789abcdef")
    said = Provenance(own, {"a": Weights("pretrained"), "b": Weights("random")})
    assert str(said) == "checkpoint own.pth 01234567 weights, proposal b random"
    assert said.random == ["proposal b"]
    assert said.note == "random weights: proposal b"
    assert Provenance(own).blank("top-1") == ""


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_left_out(tmp_path: Path) -> None:
    """The rest is pretrained, and so is the answer: the class token."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    saved = transformers.ViTModel(config, add_pooling_layer=False).eval()
    saved.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    for asked in (False, True):
        host, weights = named.create_host(str(tmp_path), random_weights=asked)
        assert weights.kind == "pretrained"
        found, classifies = answer(host, host(pixels))
        assert torch.equal(found, saved(pixels).last_hidden_state[:, 0])
        assert not classifies
        papr.prune(host, 0.5)(pixels)
