"""Tuning: a target is met on images that chose nothing, or it is said that it is not."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import papr
from papr.baselines import centre_scores
from papr.cli import app
from papr.errors import ConfigError
from papr.evaluate import grid, tune
from papr.evaluate.finding import open_source
from papr.evaluate.judging import halves
from papr.evaluate.searching import edge
from papr.evaluate.sources import Item, Source, take
from papr.evaluate.tuning import _unusual
from papr.measure import Timing, count_macs, mean_interval, wilson
from papr.provenance import GIVEN
from tiny_data import host, pictures

COUNT = 24
TINY = grid((0.5,), (0, 2), proposal_sizes=("input",))


def by_host(models: Mapping[str, nn.Module], pixels: Tensor, **_: Any) -> dict[str, Timing]:
    """A clock that no neighbour can disturb: multiply-accumulates of the host alone."""
    costs = {name: count_macs(model, pixels[:1]).host / 1e9 for name, model in models.items()}
    return {name: Timing((cost, cost, cost)) for name, cost in costs.items()}


def by_all(models: Mapping[str, nn.Module], pixels: Tensor, **_: Any) -> dict[str, Timing]:
    """The same with the proposal, which costs more than the tiny host."""
    costs = {name: count_macs(model, pixels[:1]).total / 1e9 for name, model in models.items()}
    return {name: Timing((cost, cost)) for name, cost in costs.items()}


# ------------------------------------------------------------------ intervals


def slow_wilson(successes: int, trials: int, z: float) -> tuple[float, float]:
    """By its definition: the shares that a score test does not reject, found by halving."""
    share = successes / trials

    def rejected(p: float) -> bool:
        return abs(share - p) > z * (p * (1 - p) / trials) ** 0.5

    ends = []
    for outside in (0.0, 1.0):
        inside = share
        for _ in range(100):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        ends.append(inside)
    return ends[0], ends[1]


@pytest.mark.parametrize(("successes", "trials"), [(0, 9), (9, 9), (1, 3), (495, 500), (1, 1)])
def test_wilson_is_the_score_tests_interval(successes: int, trials: int) -> None:
    for confidence, z in ((0.95, 1.959963984540054), (0.6, 0.8416212335729143)):
        found = wilson(successes, trials, confidence)
        assert found == pytest.approx(slow_wilson(successes, trials, z), abs=1e-12)
    assert wilson(successes, trials, 0) == pytest.approx((successes / trials,) * 2)


def test_wilson_holds_the_share_about_as_often_as_it_says() -> None:
    """Of all outcomes of 300 draws, weighed by their probability."""
    binomial = torch.distributions.Binomial(300, torch.tensor(0.97, dtype=torch.float64))
    outcomes = torch.arange(301, dtype=torch.float64)
    chance = binomial.log_prob(outcomes).exp()
    holds = torch.tensor([wilson(k, 300)[0] <= 0.97 <= wilson(k, 300)[1] for k in range(301)])
    assert chance[holds].sum() == pytest.approx(0.95, abs=0.02)


def test_intervals_refuse_what_has_none() -> None:
    for arguments in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="expected successes among trials"):
            wilson(*arguments)
    with pytest.raises(ValueError, match="confidence < 1"):
        wilson(1, 2, 1.0)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    # scipy.stats.norm.interval(0.95, 2.5, 1.29099 / 2)
    assert mean_interval([1, 2, 3, 4]) == pytest.approx((1.2348, 3.7652), abs=1e-4)


# ------------------------------------------------------------------ the search


@pytest.mark.parametrize("last", range(1, 41))
def test_the_edge_is_found_in_seven_questions_at_most(last: int) -> None:
    asked: list[int] = []

    def meets(step: int) -> bool:
        asked.append(step)
        return step >= last

    assert edge(meets, 40, 0, (32, 24, 16, 8)) == last
    assert len(asked) == len(set(asked)) <= 7
    assert min(asked, default=1) > 0
    assert max(asked, default=39) < 40
    # from the other end, as for a speed-up
    assert edge(lambda step: step < last, 0, 40, (8, 16, 24, 32)) == last - 1


def test_a_sample_keeps_its_half_whatever_else_there_is(tmp_path: Path) -> None:
    source = open_source(pictures(tmp_path, COUNT))
    tuning, held_out = halves(source)
    sides = [{part.item(i).id for i in range(part.length or 0)} for part in (tuning, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == COUNT
    for side, names in enumerate(sides):
        for name in names:
            assert int(hashlib.sha256(name.encode()).hexdigest()[:2], 16) % 2 == side
    fewer = halves(take(source, 10))
    assert sum(part.length or 0 for part in fewer) == 10
    for side, part in enumerate(fewer):
        assert {part.item(i).id for i in range(part.length or 0)} < sides[side]
    with pytest.raises(ConfigError, match="samples for both halves"):
        halves(take(source, 1))


def test_halves_are_told_by_names_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path, COUNT)
    stored = open_source(f"file://{folder}")
    expected = [half.numbers for half in halves(stored)]

    def never(*args: object) -> Item:
        raise AssertionError("a sample was fetched for its name")

    monkeypatch.setattr(type(stored), "named", never)
    assert [half.numbers for half in halves(stored)] == expected
    assert all(expected)
    assert stored.name(1) == "ant/003.png"
    assert Digits().name(7) == "0007"  # a source that has no list of names


# ------------------------------------------------- a trained host, whose answers mean something


class Digits(Source):
    """Pictures of examples/cluttered_digits, drawn when asked for."""

    kind, shards, length = "digits", ("digits",), 400

    def item(self, number: int) -> Item:
        return Item(f"{number:04d}", None, b"")

    def identity(self) -> dict[str, Any]:
        return {}


def draw(item: Item) -> Tensor:
    import data

    pixels: Tensor = data.batch("held-out", 1, [int(item.id)])[0]
    return pixels


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, papr.Proposal]:
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    pytest.importorskip("skimage", reason="needs scikit-image's photographs")
    folder = str(Path(__file__).parents[1] / "examples" / "cluttered_digits")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import evaluate

    found: tuple[nn.Module, papr.Proposal] = evaluate.networks()
    return found


@torch.no_grad()
def test_what_is_chosen_meets_the_target_on_images_that_chose_nothing(digits: Any) -> None:
    dense, proposal = digits
    found = tune(
        dense,
        Digits(),
        grid((0.5,), (0,), (proposal,)),
        target_agreement=0.95,
        sure=0.95,
        prepare=draw,
        batch=50,
        workers=0,
        clock=by_all,
    )
    assert found.reached, found.verdict
    assert found.held_out.agreement is not None
    assert found.held_out.agreement >= 0.95
    assert found.config.keep < 0.8
    assert found.speedup[0] > 1.1
    assert found.tuning.interval("agreement", 0.9)[0] >= 0.95  # one-sided 0.95

    # the next smaller keep was tried, and failed; and no more than seven were
    below = next(
        t for t in found.trials if t.config.keep == pytest.approx(found.config.keep - 1 / 40)
    )
    assert below.quality is not None
    assert below.quality.interval("agreement", 0.9)[0] < 0.95
    assert len(found.trials) <= 7

    # the held-out half, one picture at a time through the public call
    names = [f"{i:04d}" for i in range(400)]
    others = [n for n in names if hashlib.sha256(n.encode()).digest()[0] % 2]
    assert len(others) == found.held_out.images == 400 - found.tuning.images
    pixels = torch.cat([draw(Item(name, None, b"")) for name in others])
    wanted = dense(pixels).argmax(1)
    model = papr.prune(dense, found.config)
    same = sum(int(model(x[None]).argmax() == y) for x, y in zip(pixels, wanted, strict=True))
    papr.unprune(dense)
    assert found.held_out.agree == pytest.approx(same, abs=1)  # batches round otherwise
    assert "proposal=proposal" in found.code()


def test_code_says_what_is_unusual() -> None:
    for merge in (papr.Merge(8), papr.Merge([4, 2], start=0.25), papr.Merge(8, 0.1, False, -0.5)):
        assert eval(f"papr.Merge({_unusual(merge)})") == merge
    assert _unusual(papr.Merge(8)) == "8"


# ------------------------------------------------------------------------- mechanics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), COUNT, broken=(5,))


RUN = {"batch": 8, "workers": 0, "clock": by_host}


def test_for_a_speedup_the_nearest_of_those_fast_enough_is_chosen(folder: Path) -> None:
    found = tune(host(), folder, TINY, target_speedup=1.5, **RUN)
    assert found.reached, found.verdict
    assert found.speedup[0] >= 1.5
    fast = {}  # the largest keep of each candidate that is fast enough, by trying all
    pixels = torch.zeros(1, 3, 32, 32)
    dense = count_macs(host(), pixels).host
    for candidate in TINY:
        for keep in (step / 40 for step in range(15, 40)):  # below, all are fast enough
            config = replace(candidate, keep=keep, proposal=centre_scores(8), proposal_size=None)
            model = papr.prune(host(), config)
            if dense / count_macs(model, pixels).host >= 1.5:
                fast[candidate.merge] = keep
    assert len(fast) == 2
    judged = [t for t in found.trials if t.quality is not None]
    assert {t.config.merge: t.config.keep for t in judged} == fast
    best = max(t.quality.agree for t in judged if t.quality)
    assert found.tuning.agree == best
    assert len(found.skipped) == 1
    assert found.tuning.images + found.held_out.images == COUNT - 1
    assert found.gmacs > found.gmacs_dense  # the proposal is larger than this host


def test_candidates_that_merge_otherwise_have_results_of_their_own(folder: Path) -> None:
    merges = [papr.Merge(2), papr.Merge(2, start=0.0), papr.Merge(2, proportional=False)]
    candidates = [replace(TINY[0], merge=merge) for merge in merges]
    found = tune(host(), folder, candidates, target_speedup=50, **RUN)
    shallow = {trial.config.merge: trial for trial in found.trials if trial.config.keep == 0.2}
    assert set(shallow) == set(merges)
    assert len({trial.name for trial in shallow.values()}) == 3
    pixels = torch.zeros(1, 3, 32, 32)
    dense = count_macs(host(), pixels).host
    for trial in shallow.values():
        own = count_macs(papr.prune(host(), trial.config), pixels).host
        assert trial.speedup is not None
        assert trial.speedup[0] == pytest.approx(dense / own)
    assert shallow[merges[0]].speedup != shallow[merges[1]].speedup


def test_a_target_out_of_reach_is_said_with_the_best_found(folder: Path) -> None:
    found = tune(host(), folder, TINY[:1], target_speedup=50, **RUN)
    assert not found.reached
    assert "nothing meets speedup 50" in found.verdict
    assert found.speedup[0] == max(t.speedup[0] for t in found.trials if t.speedup)
    slow = tune(host(), folder, TINY[:1], target_cosine=0.5, **{**RUN, "clock": by_all})
    assert not slow.reached
    assert "not faster than dense" in slow.verdict


def test_what_the_held_out_half_refutes_is_not_reached(folder: Path) -> None:
    """A clock that is kind while tuning only: measured anew, the choice is too slow."""
    calls = []

    def kind(models: Mapping[str, nn.Module], pixels: Tensor) -> dict[str, Timing]:
        found = by_host(models, pixels)
        if "chosen" in models:
            found["chosen"] = Timing(tuple(s * 0.9 for s in found["dense"].seconds))
        calls.append(list(models))
        return found

    found = tune(host(), folder, TINY[:1], target_speedup=1.5, **{**RUN, "clock": kind})
    assert not found.reached
    assert "measured anew 1.111 (1.111-1.111) is below the target 1.5" in found.verdict
    assert calls[-1] == ["dense", "chosen"]


def test_hosts_without_classes_are_tuned_on_embeddings(folder: Path) -> None:
    bare = host()
    bare.reset_classifier(0)  # type: ignore[operator]
    found = tune(bare, folder, TINY[:1], target_cosine=0.9, sure=0.5, **RUN)
    assert found.held_out.agree is None
    assert found.tuning.cosine >= 0.9
    assert set(found.held_out.to_dict()) == {"images", "agree", "cosine", "cosine_95"}
    with pytest.raises(ConfigError, match="give a target cosine"):
        tune(bare, folder, TINY[:1], target_agreement=0.5, **RUN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of a target agreement, .* got none"),
        ({"target_agreement": 0.9, "target_speedup": 2.0}, "exactly one of"),
        ({"target_agreement": 1.0}, "expected 0 < target agreement < 1, got 1.0"),
        ({"target_speedup": 1.0}, "expected a target speed-up above 1, got 1.0"),
        ({"target_cosine": 0.9, "sure": 1.0}, "0.5 <= sure < 1"),
        ({"target_agreement": 0.99}, "at least 71 images to tune on .* of 0.99, got 1[0-9]"),
    ],
)
def test_errors(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(host(), folder, TINY[:1], **options, **RUN)


def command(folder: Path, out: Path, *more: str) -> Any:
    arguments = ["tune", "--data", str(folder), "--model", "tiny", "--workers", "0", "--batch", "8"]
    arguments += ["--proposal-size", "input", "--merge-r", "0,2", "--out", str(out / "o")]
    return CliRunner().invoke(app, [*arguments, "--json", str(out / "all.json"), *more])


@torch.no_grad()
def test_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("papr.cli.tune.make_host", lambda *_: (host(), GIVEN))
    monkeypatch.setattr("papr.evaluate.tuning.timed", by_host)
    done = command(folder, tmp_path, "--target-speedup", "1.5")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["reached"]
    assert "held out" in done.output
    assert "import papr" in done.output

    # the file and the printed line prune alike
    line = next(li for li in done.output.splitlines() if li.startswith("papr.prune("))
    model, pixels = host(), torch.randn(2, 3, 32, 32)
    eval(line, {"papr": papr, "model": model})
    stored = papr.prune(host(), tmp_path / "o" / "chosen.json")
    assert torch.equal(model(pixels), stored(pixels))
    assert not torch.equal(model(pixels), host()(pixels))


def test_command_says_where_nothing_is_chosen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papr.cli.tune.make_host", lambda *_: (host(), GIVEN))
    monkeypatch.setattr("papr.evaluate.tuning.timed", by_all)
    done = command(folder, tmp_path, "--target-speedup", "1.5")
    assert done.exit_code == 1
    assert "Target not reached" in done.output
    assert not (tmp_path / "o" / "chosen.json").exists()
    assert json.loads((tmp_path / "all.json").read_text())["reached"] is False


def test_command_writes_nothing_where_it_cannot_tell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fast as asked while tuning; measured anew, in some turns only."""

    def moody(models: Mapping[str, nn.Module], pixels: Tensor, **_: Any) -> dict[str, Timing]:
        found = by_host(models, pixels)
        if "chosen" in models:
            (dense, *_) = found["dense"].seconds
            found["chosen"] = Timing((dense / 1.2, dense / 1.4, dense / 1.6))
            found["dense"] = Timing((dense,) * 3)
        return found

    monkeypatch.setattr("papr.cli.tune.make_host", lambda *_: (host(), GIVEN))
    monkeypatch.setattr("papr.evaluate.tuning.timed", moody)
    done = command(folder, tmp_path, "--target-speedup", "1.5")
    assert done.exit_code == 1, done.output
    assert "neither reached nor refuted" in done.output
    assert "papr.prune(model, keep=" in done.output
    assert not (tmp_path / "o" / "chosen.json").exists()
    assert json.loads((tmp_path / "all.json").read_text())["state"] == "not refuted"
