"""Drift of embeddings: an exact search in pieces, and what is said of an index."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("pyarrow")

import papr
from papr.cli import app
from papr.errors import ConfigError
from papr.evaluate import drift
from papr.evaluate import nearest as pieces
from papr.evaluate.drift import Column, Drift
from papr.evaluate.estimates import Estimate, mean_of, percentile_of, share_of
from papr.evaluate.predictor import Predictor
from test_predict import host


def slow_neighbours(index: np.ndarray, query: np.ndarray, own: int, count: int) -> list[int]:
    """One query at a time, every cosine in double precision, sorted by hand."""
    cosines = [float(np.dot(row.astype(np.float64), query.astype(np.float64))) for row in index]
    order = sorted((i for i in range(len(index)) if i != own), key=lambda i: (-cosines[i], i))
    return order[:count]


@pytest.mark.parametrize("held", [1, 7 * 40, 1 << 20])
def test_the_search_in_pieces_is_exact_whatever_the_pieces(tmp_path, monkeypatch, held):
    monkeypatch.setattr(pieces, "_HELD", held)
    index = F.normalize(torch.randn(40, 8), dim=1)
    path = tmp_path / "index.npy"
    np.save(path, index.numpy())
    mapped = np.load(path, mmap_mode="r")
    queries = F.normalize(index[::6] + 0.7 * torch.randn(7, 8), dim=1)
    own = torch.arange(0, 40, 6)
    cosines, rows = pieces.search(mapped, queries, own, 5)
    truth, near = pieces.search(mapped, index[::6], own, 5)[::-1]
    assert (cosines.diff(dim=1) <= 0).all()
    for number, query in enumerate(queries.numpy()):
        want = slow_neighbours(index.numpy(), query, 6 * number, 5)
        assert rows[number].tolist() == want
        torch.testing.assert_close(cosines[number], queries[number] @ index[want].T)
    for k in (1, 3, 5):
        got = pieces.found_again(mapped, index[::6], near, rows, k)
        want = [len({*truth[n, :k].tolist()} & {*rows[n, :k].tolist()}) / k for n in range(7)]
        assert got.tolist() == pytest.approx(want)
        assert 0 < sum(want) < 7  # neither all nor nothing, or this would show little


def test_of_equally_near_neighbours_any_counts():
    index = torch.eye(4)[[0, 1, 1, 1, 2]]
    near, _ = pieces.search(index.numpy(), index[:1], torch.tensor([0]), 2)
    for found in ([1, 2], [3, 2], [4, 1]):
        rows = torch.tensor([found])
        assert pieces.found_again(index.numpy(), index[:1], near, rows, 2).item() == 1
    truth, rows = pieces.search(index.numpy(), index[1:2], torch.tensor([1]), 2)
    assert rows.tolist() == [[2, 3]]
    found = torch.tensor([[2, 4]])
    assert pieces.found_again(index.numpy(), index[1:2], truth, found, 2).item() == 0.5


def test_products_are_whole_float32_whatever_the_process_asked_for():
    def precision() -> object:
        matmul = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):
            return matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        return torch.get_float32_matmul_precision()

    index, seen = F.normalize(torch.randn(9, 4), dim=1), []

    class Queries(torch.Tensor):
        def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
            seen.append(precision())
            return self.as_subclass(torch.Tensor) @ other

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    whole = precision()
    try:
        torch.set_float32_matmul_precision("medium")
        asked = precision()
        pieces.search(index.numpy(), index.as_subclass(Queries), torch.arange(9), 2)
        assert seen == [whole] != [asked]
        assert precision() == asked
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty pictures: a few shapes with noise on them, so that neighbours mean something."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(30):
        shape = np.random.default_rng(number % 5).integers(0, 256, (8, 8, 3))
        noise = np.random.default_rng(100 + number).integers(-60, 60, (64, 64, 3))
        pixels = np.clip(shape.repeat(8, 0).repeat(8, 1) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data / f"{number:02d}.png")
    (data / "broken.png").write_bytes(b"")
    return data


def test_the_figures_are_those_of_a_slow_count(folder, tmp_path):
    model = host()
    options = {"out": tmp_path / "out", "ks": (1, 4), "batch": 8, "part": 8, "workers": 0}
    found = drift(model, folder, [0.5, 0.1], **options)
    assert not papr.is_pruned(model)
    assert (found.images, found.queries, found.width) == (30, 30, 48)
    assert [sample.id for sample in found.skipped] == ["broken.png"]
    paths = sorted(folder.glob("[0-9]*.png"))
    embedded = {}
    for keep in (None, 0.5, 0.1):
        predictor = Predictor(host, keep, device="cpu", outputs=["embeddings"])
        embeddings = np.stack(predictor({"path": paths})["embedding"]).astype(np.float64)
        embedded[keep] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    dense = embedded[None]
    for column, keep in zip(found.columns, (0.5, 0.1), strict=True):
        pruned = embedded[keep]
        cosines = (dense * pruned).sum(1)
        assert column.cosine.value == pytest.approx(cosines.mean(), abs=1e-6)
        error = 1.96 * cosines.std(ddof=1) / math.sqrt(30)
        assert column.cosine.high - column.cosine.value == pytest.approx(error, abs=1e-6)
        assert column.fifth.value == pytest.approx(np.percentile(cosines, 5), abs=1e-6)
        assert column.least == pytest.approx(cosines.min(), abs=1e-6)
        own = [np.argmax(dense @ query) == n for n, query in enumerate(pruned)]
        assert column.own.value == pytest.approx(np.mean(own), abs=1e-6)
        for k in (1, 4):
            for index, estimate in ((dense, column.recall[k]), (pruned, column.again[k])):
                shares = [
                    len(
                        {*slow_neighbours(dense, dense[n], n, k)}
                        & {*slow_neighbours(index, pruned[n], n, k)}
                    )
                    / k
                    for n in range(30)
                ]
                assert estimate.value == pytest.approx(np.mean(shares), abs=1e-6)
    assert found.columns[1].recall[4].value < 0.9  # or there was nothing to find out
    assert not list((tmp_path / "out").glob(".index*"))
    again = drift(model, folder, [0.5, 0.1], **options)
    assert again.columns == found.columns
    few = drift(model, folder, [0.5, 0.1], queries=10, **options)
    assert (few.images, few.queries) == (30, 10)
    with pytest.raises(papr.errors.ConfigError, match="contenders"):
        drift(model, folder, [0.4], **options)


def test_one_patch_less_drifts_little_and_what_is_wrong_is_said(folder, tmp_path):
    options = {"out": tmp_path / "out", "ks": (5,), "workers": 0}
    found = drift(host(), folder, [0.99], **options)  # 15 of 16 patches
    assert found.columns[0].own.value == 1
    assert found.columns[0].recall[5].value > 0.8
    for wrong, match in (
        ({"ks": (0,)}, "k >= 1"),
        ({"queries": 1}, "2 queries"),
        ({"target": 1.0}, "target < 1"),
        ({"configs": [1.0]}, "prunes"),
    ):
        with pytest.raises(papr.errors.ConfigError, match=match):
            drift(host(), folder, **{"out": tmp_path / "other", **wrong})
    with pytest.raises(papr.errors.ConfigError, match="more than 30 images"):
        drift(host(), folder, [0.99], out=tmp_path / "out", ks=(30,), workers=0)


def column_of(recall: tuple[float, float], again: tuple[float, float]):
    kept, anew = (Estimate(sum(pair) / 2, *pair) for pair in (recall, again))
    sure = Estimate(1.0, 1.0, 1.0)
    return Column(
        "keep 0.5", "key", sure, sure, 1.0, {1: sure, 10: kept}, sure, {1: sure, 10: anew}
    )


@pytest.mark.parametrize(
    ("recall", "again", "verdict"),
    [
        ((0.96, 0.98), (0.5, 0.6), "keep"),
        ((0.94, 0.98), (0.99, 1.0), "unclear"),
        ((0.80, 0.85), (0.96, 0.97), "re-embed"),
        ((0.80, 0.85), (0.94, 0.97), "unclear"),
        ((0.80, 0.85), (0.85, 0.90), "dense"),
    ],
)
def test_the_verdict_follows_from_the_intervals(recall, again, verdict):
    column = column_of(recall, again)
    found = Drift("", 9, 9, 9, 0.95, [column], [], [], "", {}, {})
    assert found.verdict(column) == verdict
    assert found.to_dict()["columns"][0]["verdict"] == verdict
    json.dumps(found.to_dict())


def said_of(recall: Estimate) -> str:
    column = column_of((0, 1), (0, 1))
    column.recall[10] = recall
    return Drift("", 9, 9, 9, 0.95, [column], [], [], "", {}, {}).verdict(column)


@pytest.mark.parametrize("queries", [12, 30, 100])
def test_an_index_is_kept_on_evidence_alone(queries):
    """At a true recall of 0.93: all ten neighbours found or none, and each by itself."""
    draws = torch.Generator().manual_seed(queries)
    for neighbours in (1, 10):
        kept = 0
        for _ in range(400):
            found = torch.rand(queries, neighbours, generator=draws) < 0.93
            kept += said_of(share_of(found.float().mean(1))) == "keep"
        assert kept <= 0.04 * 400
    # and with enough of it, it is kept
    assert said_of(share_of((torch.rand(2000, generator=draws) < 0.97).float())) == "keep"
    perfect = share_of(torch.ones(queries))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(queries / (queries + 1.96**2), abs=1e-4)


def test_intervals_end_where_values_do():
    quarters = share_of(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert 0 < quarters.low < 0.25 < quarters.high < 1
    near = mean_of(torch.tensor([0.99, 1.0, 0.8]))
    assert near.high == 1
    assert 0 < near.low < near.value


@pytest.mark.parametrize("count", [1, 12, 30, 71, 72, 100, 5000])
def test_a_percentile_lies_between_the_values_that_bound_it(count):
    """The bounds are exact: of the places below the percentile's, as many as chance leaves."""
    places = torch.arange(count, dtype=torch.float64)  # a value is its own place
    low, high = percentile_of(places, 0.05, (-1.0, count))[1:]

    def at_most(k: float) -> float:
        """That at most k values are below the percentile, summed by hand."""
        return math.fsum(
            math.comb(count, i) * 0.05**i * 0.95 ** (count - i) for i in range(int(k) + 1)
        )

    if count < 1000:
        assert at_most(low) <= 0.025 < at_most(low + 1)
        assert at_most(high - 1) < 0.975 <= at_most(high)
        assert (low == -1) is (count < 72)
    assert low < 0.05 * count < high + 1
    if count == 5000:  # scipy.stats.binom(5000, 0.05).ppf([0.025, 0.975])
        assert low + 1 == 220
        assert high == 281


@pytest.mark.parametrize("count", [12, 30])
def test_few_values_bound_a_percentile_as_often_as_they_say(count):
    draws = torch.Generator().manual_seed(count)
    holds = 0
    for _ in range(500):
        values = torch.rand(count, generator=draws, dtype=torch.float64)
        found = percentile_of(values, 0.05)
        holds += found.low <= 0.05 <= found.high
    assert holds / 500 >= 0.95 - 0.02


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    draws = torch.Generator().manual_seed(3)
    hits = {"mean": 0, "share": 0, "percentile": 0}
    for _ in range(400):
        values = torch.rand(200, generator=draws, dtype=torch.float64) ** 2
        ones = (torch.rand(200, generator=draws) < 0.97).float()
        mean, share, fifth = mean_of(values), share_of(ones), percentile_of(values, 0.05)
        hits["mean"] += mean.low <= 1 / 3 <= mean.high
        hits["share"] += share.low <= 0.97 <= share.high
        hits["percentile"] += fifth.low <= 0.05**2 <= fifth.high
    assert all(0.90 <= count / 400 <= 0.99 for count in hits.values()), hits


def test_the_command_prints_a_column_for_each_keep_and_a_verdict(folder, tmp_path):
    line = ["drift", "--data", str(folder), "--out", str(tmp_path / "out"), "--model", "test_vit"]
    line += ["--keep", "0.5,0.2", "--k", "1,3", "--workers", "0", "--device", "cpu"]
    own = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(own, tmp_path / "own.pth")
    line += ["--num-classes", "0", "--checkpoint", str(tmp_path / "own.pth")]
    found = CliRunner().invoke(app, line, catch_exceptions=False, env={"COLUMNS": "120"})
    assert found.exit_code == 0, found.output
    assert "checkpoint own.pth" in found.output
    for text in ("keep 0.5", "keep 0.2", "recall@3 in a pruned index", "finds itself"):
        assert text in found.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    verdict = summary["columns"][0]["verdict"]
    said = {"keep": "keep the index", "re-embed": "re-embed the index", "dense": "do not prune"}
    assert said.get(verdict, "too few") in found.output
    assert "broken.png" in found.output


def test_a_tower_of_transformers_without_a_classifier_is_embedded(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    config = transformers.Dinov2Config(**small, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "tower")
    from papr.named import create_host

    model, weights = create_host(str(tmp_path / "tower"))
    assert (type(model).__name__, weights.kind) == ("Dinov2Model", "pretrained")
    found = drift(model, folder, [0.5], tmp_path / "out", ks=(2,), workers=0)
    assert found.width == 32
    assert found.columns[0].least < 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit", "4"], "expected more than 10 images for recall@10, got 4"),
        (["--k", "1,31"], "expected more than 31 images for recall@31, got 31"),
        (["--k", "0"], r"expected k >= 1, got \[0\]"),
        (["--target-recall", "2"], "expected 0 < target < 1, got 2"),
    ],
)
def test_too_few_images_are_named_before_a_model_is_made(more, message, folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was made")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    found = CliRunner().invoke(app, ["drift", "--data", str(folder), *more])
    with pytest.raises(ConfigError, match=message):
        raise found.exception


def test_too_few_images_are_named_before_any_is_embedded(folder, tmp_path):
    with pytest.raises(ConfigError, match="more than 40 images for recall@40, got 31"):
        drift(host(), folder, [0.5], tmp_path / "out", ks=(40,), workers=0)
    assert not (tmp_path / "out" / "rows").exists()
