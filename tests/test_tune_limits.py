"""What tuning never recommends, and when it stops trying."""

from pathlib import Path

import pytest

from papr.errors import ConfigError
from papr.evaluate import open_source, tune
from papr.evaluate.judging import Held
from papr.evaluate.preparing import timm_transform
from papr.evaluate.searching import Goal, Search, Trial
from test_tune import GIVEN, TINY, by_all, by_host, command
from tiny_data import host, pictures

RUN = {"batch": 8, "workers": 0, "clock": by_host, "sure": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), 24)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (("--target-cosine", "0.5"), "nothing pays here"),
        (("--target-speedup", "9"), "nothing meets"),
    ],
)
def test_code_that_is_slower_than_dense_is_never_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: tuple, words: str
) -> None:
    """With a clock by which the proposal costs more than the tiny host."""
    monkeypatch.setattr("papr.cli.tune.make_host", lambda *_: (host(), GIVEN))
    monkeypatch.setattr("papr.evaluate.tuning.timed", by_all)
    done = command(folder, tmp_path, "--sure", "0.5", *target)
    assert done.exit_code == 1, done.output
    assert words in done.output
    assert "than dense: do not prune" in " ".join(done.output.split())
    reached = words == "nothing pays here"  # so it is not said that the target was not
    assert ("Target not reached" in done.output) != reached
    assert "papr.prune(" not in done.output
    assert not (tmp_path / "o").exists()
    assert "Of 24 images 1" in done.output
    assert "choose the configuration, and the other" in " ".join(done.output.split())


def test_when_time_is_up_the_best_of_what_was_tried_is_taken(folder: Path) -> None:
    whole = tune(host(), folder, TINY, target_cosine=0.5, minutes=60, **RUN)
    assert not whole.stopped
    assert "time was up" not in whole.verdict
    short = tune(host(), folder, TINY, target_cosine=0.5, minutes=1e-9, **RUN)
    assert short.stopped
    assert len(short.trials) == 1 < len(whole.trials)
    assert short.config == short.trials[0].config
    assert short.config.keep == 0.8
    assert "time was up after 1 configurations" in short.verdict
    assert short.to_dict()["stopped"]


def test_time_that_is_up_while_a_keep_is_sought_leaves_the_last_that_met(folder: Path) -> None:
    dense = host()
    half = Held(dense, open_source(folder), timm_transform(dense), 8, 0)
    tried: list[Trial] = []

    def watch(trial: Trial) -> None:
        tried.append(trial)
        if len(tried) == 2:
            search.until = 0.0

    search = Search(dense, half, Goal("cosine", 0.01, 0.5), by_host, watch)
    chosen, met = search.choose(TINY)
    assert search.stopped
    assert met
    assert [trial.config.keep for trial in tried] == [0.8, 0.6]
    assert chosen.config == tried[1].config


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_minutes_are_above_0(folder: Path, minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes above 0"):
        tune(host(), folder, TINY, target_cosine=0.5, minutes=minutes, **RUN)


def test_it_is_told_how_many_choose_and_how_many_check(folder: Path) -> None:
    told = []
    found = tune(
        host(),
        folder,
        TINY[:1],
        target_cosine=0.5,
        told=lambda *counts: told.append(counts),
        **RUN,
    )
    assert told == [(found.tuning.images, found.held_out.images)]
