"""Runs with a configuration that keeps no selections (trace=False): they need and have them."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

import papr
from papr.compare.rivals import rivals
from papr.evaluate import Predictor, evaluate, predict, sweep
from tiny_data import host, pictures
from tiny_pyramid import PYRAMID_CASES

UNTRACED = papr.PruneConfig(0.5, proposal_size="input", trace=False)
TRACED = papr.PruneConfig(0.5, proposal_size="input")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"), 6)


def rows(out):
    return pq.read_table(out / "rows").to_pylist()


def test_an_evaluation_does_not_need_trace(folder, tmp_path):
    for config, name in ((UNTRACED, "a"), (TRACED, "b")):
        evaluate(host(), folder, [config], tmp_path / name, batch=4, workers=0)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert {row["kept"] for row in rows(tmp_path / "a")} == {1.0, 0.5}


def test_a_sweep_with_its_baselines_does_not_need_trace(folder, tmp_path):
    found = sweep(host(), folder, [UNTRACED], tmp_path, tome_rs=(2,), batch=4, workers=0)
    assert {"random", "tome"} <= {point.family for point in found.points}


def pruned_host():
    return papr.prune(host(), replace(UNTRACED, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize(("make", "config"), [(host, UNTRACED), (pruned_host, None)])
def test_a_predictor_does_not_need_trace(folder, tmp_path, make, config):
    predict(Predictor(make, config, device="cpu"), folder, tmp_path, batch=4, workers=0)
    assert all(bytes(row["mask"]) for row in rows(tmp_path))


def test_a_comparison_does_not_need_trace():
    options = {"proposal_size": "input", "trace": False, "rounds": 1, "warmup": 0}
    swin = PYRAMID_CASES["swin"].build()
    found = rivals(swin, torch.randn(2, 3, 64, 64), 0.5, **options)
    assert [row.name for row in found][:2] == ["dense", "papr"]
