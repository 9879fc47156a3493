"""A grid beside the baselines: what is on the front, what is drawn, what a killed run gives."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from typer.testing import CliRunner

import papr
from papr.baselines import centre_scores
from papr.cli import app
from papr.cli.sweep import table
from papr.errors import ConfigError
from papr.evaluate.sweep import Sweep, grid, sweep
from papr.measure import count_macs, pareto
from papr.plots import _staircase
from papr.provenance import GIVEN, Weights
from tiny_case import TinyProposal
from tiny_data import SIZE, host, pictures

COUNT = 10
CONFIGS = grid((0.75, 0.5), (0, 2), proposal_sizes=("input",))
RUN = {"tome_rs": (2, 4), "batch": 4, "part": 4, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), COUNT, broken=(2,))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def found(folder: Path, out: Path) -> Sweep:
    return sweep(host(), folder, CONFIGS, out, **RUN)


def rows(out: Path) -> list[dict]:
    return pq.read_table(out / "rows").to_pylist()


def dominated(points: list[tuple[float, float]], i: int) -> bool:
    """By the definition, one pair at a time."""
    cost, quality = points[i]
    return any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points)


def test_the_front_is_what_nothing_dominates() -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = torch.randint(6, (12, 2), generator=random).tolist()
        points = [(float(a), float(b)) for a, b in drawn]  # with equal ones and ties
        front = pareto(points)
        assert sorted(front) == [i for i in range(12) if not dominated(points, i)]
        assert [points[i] for i in front] == sorted(points[i] for i in front)
    assert pareto([]) == []


def test_points_are_those_of_the_grid_and_of_every_baseline(found: Sweep) -> None:
    families = {}
    for point in found.points:
        families.setdefault(point.family, []).append((point.keep, point.r))
    keeps = [(0.75, 0), (0.5, 0)]
    same = ("random", "centre", "stride", "embedding norm", "lower resolution")
    assert families == {
        "dense": [(1.0, 0)],
        "papr": keeps,
        "papr, r 2": [(0.75, 2), (0.5, 2)],
        **dict.fromkeys(same, keeps),
        "tome": [(1.0, 2), (1.0, 4)],
    }
    assert list(found.missing) == ["class attention"]  # of block 3, which this host has not
    assert "recut blocks among 0 to 1" in found.missing["class attention"]
    kept = {p.result.name: p.result.kept for p in found.points}
    own = "keep 0.5, proposal_size input"
    for name in (own, "random, keep 0.5", "centre, keep 0.5", "stride, keep 0.5"):
        assert kept[name] == 0.5
    assert len(found.report.skipped) == 1
    assert {p.result.images for p in found.points} == {COUNT - 1}


@torch.no_grad()
def test_a_baseline_is_what_the_public_call_makes(found: Sweep, folder: Path) -> None:
    dense, pruned = host(), papr.prune(host(), 0.5, centre_scores(8))
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    transform = create_transform(
        (3, SIZE, SIZE), interpolation="bicubic", crop_pct=0.875, **statistics
    )
    paths = [p for p in sorted(folder.rglob("*.png")) if p.stat().st_size > 20]
    images = [transform(Image.open(path).convert("RGB"))[None] for path in paths]
    agree = [bool(pruned(x).argmax() == dense(x).argmax()) for x in images]
    point = next(p for p in found.points if p.result.name == "centre, keep 0.5")
    assert point.result.agreement == sum(agree) / len(agree)
    macs = count_macs(pruned, images[0])
    assert point.result.gmacs_host == macs.host / 1e9
    merged = papr.prune(host(), 1.0, merge=papr.Merge(4))
    point = next(p for p in found.points if p.result.name == "tome, r 4")
    assert point.result.gmacs == count_macs(merged, images[0]).total / 1e9


def test_fronts_are_over_all_points(found: Sweep) -> None:
    assert found.quality == "top1"  # three folders for three classes
    for cost in ("gmacs", "ms_per_image"):
        spots = []
        for point in found.points:
            value = point.to_dict()[cost]
            spots.append((value[0] if cost == "ms_per_image" else value, point.result.top1))
        marked = {i for i, point in enumerate(found.points) if cost in point.fronts}
        assert marked == {i for i in range(len(spots)) if not dominated(spots, i)}


def test_axes_say_what_they_are_of(found: Sweep) -> None:
    of_videos = replace(found, report=replace(found.report, unit="video"))
    for sweep_, macs, time in ((found, "image", "image"), (of_videos, "view", "video")):
        titles = [panel.x_label for panel in sweep_.panels()]
        assert titles[0].endswith(f"MACs per {macs}, host and proposal")
        assert titles[1].startswith(f"ms per {time}, ")
    headings = [str(column.header) for column in table(of_videos, 3).columns]
    assert {"GMACs/view", "ms/video"} < set(headings)


def test_a_random_selection_is_the_same_where_a_run_is_taken_up(
    found: Sweep, folder: Path, out: Path, tmp_path: Path
) -> None:
    """What is answered anew, in a batch that is now the first, is what it was."""
    complete = rows(out)
    again = tmp_path / "again"
    sweep(host(), folder, CONFIGS, again, **RUN)
    parts = sorted((again / "rows").iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    taken_up = sweep(host(), folder, CONFIGS, again, **RUN)
    assert rows(again) == complete
    for before, after in zip(found.points, taken_up.points, strict=True):
        assert before.result.cosine == after.result.cosine
    keys = {c["name"]: c["configuration"] for c in found.report.configuration["contenders"]}
    random = [r["cosine"] for r in complete if r["configuration"] == keys["random, keep 0.5"]]
    assert len(set(random)) == COUNT - 1
    with pytest.raises(ConfigError, match="rows of another configuration"):
        sweep(host(), folder, CONFIGS[:1], again, **RUN)


def test_what_is_written_holds_the_same_points(found: Sweep, tmp_path: Path) -> None:
    written = found.write(tmp_path / "deep", "a note")
    assert [path.name for path in written] == ["sweep.json", "sweep.csv", "sweep.png", "sweep.html"]
    report = json.loads(written[0].read_text())
    with written[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(report["points"]) == len(table) == len(found.points)
    for point, stored, row in zip(found.points, report["points"], table, strict=True):
        assert stored["name"] == row["name"] == point.result.name
        assert float(row["gmacs"]) == stored["gmacs"] == point.result.gmacs
        assert float(row["ms_per_image_upper"]) == point.result.ms_per_image[2]
        assert row["fronts"].split() == stored["fronts"] == list(point.fronts)
    with Image.open(written[2]) as picture:
        assert picture.width > 1500
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(213, 94, 0), (201, 201, 201), (34, 34, 34)} <= colours  # papr, the front, dense
    page = written[3].read_text()
    assert not re.search(r"<script[^>]+src=", page)  # nothing is loaded
    traces = json.loads(re.search(r'Plotly\.newPlot\(\s*"papr",\s*(\[.*?\]),\s*\{"', page)[1])
    families = {point.family for point in found.points}
    assert {trace["name"] for trace in traces} == families | {"Pareto front"}
    assert len(traces) == 2 * len(families) + 2
    assert not list((tmp_path / "deep").glob(".*"))


def test_the_front_is_drawn_as_what_each_cost_buys() -> None:
    from papr.plots import Spot

    stairs = list(_staircase([Spot(1, 5), Spot(3, 7), Spot(4, 9)]))
    assert stairs == [(1, 5), (3, 5), (3, 7), (4, 7), (4, 9)]


def test_a_network_without_a_name_is_told_apart_by_its_weights(
    folder: Path, tmp_path: Path
) -> None:
    who = [papr.Proposal(TinyProposal()) for _ in range(2)]
    found = sweep(host(), folder, grid((0.5,), (0,), who), tmp_path, baselines=False, **RUN)
    families = [point.family for point in found.points]
    assert len(set(families)) == 3
    assert all(name.startswith("papr, TinyProposal-") for name in families[1:])
    one, other = (point.result.cosine for point in found.points[1:])
    assert one != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "speed"}, "expected quality among top1, agreement, cosine, got 'speed'"),
        ({"configs": [papr.PruneConfig(1.0)]}, "keep below 1"),
        ({"configs": []}, "keep below 1"),
    ],
)
def test_errors(folder: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(host(), folder, out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="empty grid"):
        grid(())


@pytest.mark.parametrize("weights", [GIVEN, Weights("random")], ids=["given", "random"])
def test_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("papr.cli.sweep.make_host", lambda *_: (host(), weights))
    arguments = ["sweep", "--data", str(folder), "--model", "tiny", "--keep", "0.5", "--limit", "6"]
    arguments += ["--proposal-size", "input,48", "--tome-r", "2", "--workers", "0", "--no-html"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "o"), "--merge-r", "0"])
    assert done.exit_code == 0, done.output
    for said in ("lower resolution, keep 0.5", "tome, r 2", "left out", "GMACs"):
        assert said in done.output
    assert "proposal_size 48" in done.output
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert {"sweep.csv", "sweep.json", "sweep.png", "rows"} < set(names)
    assert "sweep.html" not in names
    report = json.loads((tmp_path / "o" / "sweep.json").read_text())
    assert report["quality"] == (None if weights.random else "top1")
    assert report["provenance"]["host"] == weights.to_dict()
    assert ("Random weights (host): agreement, cosine" in done.output) == weights.random
    for point in report["points"]:
        for name in ("top1", "agreement", "cosine"):
            assert (point[name] is None) == weights.random
        assert not (weights.random and point["fronts"])
    page = (tmp_path / "o" / "sweep.csv").read_text()
    assert f"{weights} weights" in page
    families = [point["family"] for point in report["points"]]
    assert families[:3] == ["dense", "papr, proposal_size input", "papr, proposal_size 48"]
