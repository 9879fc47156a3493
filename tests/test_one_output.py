"""Hosts that answer one number: it has no likeliest class, and is never called kept or lost."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.compare.rivals import rivals
from papr.errors import ConfigError
from papr.evaluate import Predictor, drift, evaluate, grid, predict, tune
from papr.evaluate.preparing import timm_transform
from papr.images import load_image
from papr.measure import Difference
from papr.video import average_views
from test_tune import by_host
from tiny_data import SIZE, pictures

KEEP = papr.PruneConfig(0.5, proposal_size="input")
COUNT = 12


def single() -> nn.Module:
    """A random ViT of 16 patches that answers one number; the same one every time."""
    torch.manual_seed(1)
    options = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    host = VisionTransformer(num_classes=1, **options).eval()
    host.head.weight.data *= 50
    return host


def yes_or_no() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = transformers.ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=1,
        problem_type="multi_label_classification",
    )
    host = transformers.ViTForImageClassification(config).eval()
    host.classifier.weight.data *= 50
    return host


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), COUNT)


def outputs(host: nn.Module, folder: Path, pruned: bool = False) -> np.ndarray:
    """Each image by itself."""
    prepare = timm_transform(host)
    if pruned:
        papr.prune(host, KEEP, mean=prepare.mean, std=prepare.std)
    found = []
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder)):
        answer = host(prepare.transform(load_image(path))[None])
        found.append(float(getattr(answer, "logits", answer)[0, 0]))
    return np.array(found)


@torch.no_grad()
def slow_difference(make, folder: Path) -> float:
    dense, pruned = outputs(make(), folder), outputs(make(), folder, pruned=True)
    return float(np.abs(pruned - dense).mean() / dense.std())


def test_an_evaluation_says_how_far_the_number_is_and_no_agreement(folder, tmp_path):
    found = evaluate(single(), folder, [KEEP], tmp_path, batch=5, part=5, workers=0)
    dense, pruned = found.results
    assert dense.difference == 0
    assert pruned.difference == pytest.approx(slow_difference(single, folder), rel=1e-4)
    assert pruned.difference > 0.05
    for result in found.results:
        assert result.agreement is None
        assert result.top1 is None
        assert result.top5 is None
        assert result.cosine is not None  # of what goes into the classifier


def test_rows_hold_the_number_as_it_is(folder, tmp_path):
    predict(Predictor(single, device="cpu"), folder, tmp_path, batch=5, workers=0)
    rows = pq.read_table(tmp_path / "rows").sort_by("position").to_pylist()
    with torch.no_grad():
        expected = outputs(single(), folder)
    assert [row["output"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert all(row[n] is None for row in rows for n in ("predicted", "top5", "score"))


def test_tuning_for_an_agreement_is_refused_and_for_a_cosine_it_says_how_far(folder):
    options = {"batch": 4, "workers": 0, "clock": by_host, "sure": 0.5}
    candidates = grid((0.5,), proposal_sizes=("input",))
    with pytest.raises(ConfigError, match="answers one number: give a target cosine"):
        tune(single(), folder, candidates, target_agreement=0.9, **options)
    found = tune(single(), folder, candidates, target_cosine=0.5, **options)
    assert found.held_out.agree is None
    assert found.held_out.difference > 0
    assert found.to_dict()["held_out"]["difference"] == found.held_out.difference


@torch.no_grad()
def test_rivals_are_compared_by_how_far_they_are():
    images = torch.randn(6, 3, SIZE, SIZE)
    rows = rivals(single(), images, 0.5, batch=4, rounds=1, warmup=0, proposal_size="input")
    assert all(row.agreement is None and row.cosine is None for row in rows)
    dense = single()(images)[:, 0]
    pruned = papr.prune(single(), KEEP)(images)[:, 0]
    expected = float((pruned - dense).abs().mean() / dense.std(correction=0))
    found = {row.name: row.difference for row in rows}
    assert found["dense"] == 0
    assert found["papr"] == pytest.approx(expected, rel=1e-4)


def test_a_yes_or_no_has_two_classes_by_its_threshold(folder, tmp_path):
    predict(Predictor(yes_or_no, device="cpu"), folder, tmp_path / "a", batch=5, workers=0)
    rows = pq.read_table(tmp_path / "a" / "rows").sort_by("position").to_pylist()
    with torch.no_grad():
        numbers = outputs(yes_or_no(), folder)
    yes = 1 / (1 + np.exp(-numbers))
    assert [row["predicted"] for row in rows] == (yes > 0.5).astype(int).tolist()
    sure = [row["score"][0] for row in rows]
    assert sure == pytest.approx(np.maximum(yes, 1 - yes).tolist(), abs=1e-5)
    assert {row["output"] for row in rows} == {None}
    dense, pruned = evaluate(
        yes_or_no(), folder, [KEEP], tmp_path / "b", batch=5, workers=0
    ).results
    assert dense.agreement == 1
    assert pruned.agreement is not None
    assert pruned.difference is None


def test_directions_of_one_number_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="got one number a sample"):
        drift(single(), folder, [KEEP], tmp_path, ks=(1,), output=True, batch=5, workers=0)
    with pytest.raises(ConfigError, match="two classes or more"):
        average_views(torch.zeros(3, 1))


@pytest.mark.parametrize("command", ["eval", "sweep", "compare"])
def test_columns_left_blank_are_those_that_one_number_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("papr.named.create", lambda *_, **__: single())
    asked = [str(folder)] if command == "compare" else ["--data", str(folder), "--workers", "0"]
    more = {"compare": ["--rounds", "1", "--figures", "0"], "sweep": ["--merge-r", "0"]}
    done = CliRunner().invoke(
        app,
        [
            *(command, *asked, "--model", "vit_tiny_patch16_224", "--keep", "0.5"),
            *("--num-classes", "1", "--random-weights", "--out", str(tmp_path / "o")),
            *more.get(command, []),
        ],
    )
    assert done.exit_code == 0, done.output
    heading = next(li for li in done.output.splitlines() if "GMACs" in li and "speed-up" in li)
    assert "differs" in heading
    assert not {"agree", "top-1", "top-5"} & {*heading.split()}


def test_a_difference_is_told_in_the_references_spread():
    found = Difference()
    assert found.value is None
    found.add([2.0, 2.0], [2.0, 2.0])
    assert found.value is None  # no spread
    found.add([0.0, 5.0], [0.0, 4.0])
    assert found.value == pytest.approx(0.25 / np.std([2, 2, 0, 4]))
