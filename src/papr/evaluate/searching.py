"""The search behind `papr.evaluate.tune`: what is asked for, what is tried, what is chosen."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from papr.config import PruneConfig
from papr.errors import ConfigError
from papr.evaluate.contenders import DENSE, facts_of, fingerprint, names
from papr.evaluate.judging import Held, Quality
from papr.measure import Timing, interleave
from papr.pruning import prune
from papr.twins import twin
from papr.words import counted

Ratio = tuple[float, float, float]
#: Times models on pixels of one batch, in turns.
Clock = Callable[[Mapping[str, nn.Module], Tensor], Mapping[str, Timing]]
AGREEMENT, COSINE, SPEEDUP = "agreement", "cosine", "speedup"
#: Keep is found to a fortieth: first at fifths, then by halving between two of them.
_STEPS, _COARSE = 40, (32, 24, 16, 8)


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried on the tuning half.

    Attributes:
        name: of the configuration.
        config: itself.
        quality: on the tuning half; None where it was timed only.
        speedup: over the dense host, (median, lower, upper quartile); None where it was not timed.
    """

    name: str
    config: PruneConfig
    quality: Quality | None = None
    speedup: Ratio | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "config": facts_of(self.config),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "speedup": self.speedup,
        }


def timed(models: Mapping[str, nn.Module], pixels: Tensor, rounds: int = 9) -> dict[str, Timing]:
    """Time models on one batch, in turns."""
    with torch.inference_mode():
        calls = {name: partial(model, pixels) for name, model in models.items()}
        return interleave(calls, rounds, 2, pixels.device)


@dataclass(frozen=True)
class Goal:
    """What is asked for, and when it is met.

    Attributes:
        kind: "agreement", "cosine" or "speedup".
        target: how much of it.
        sure: how sure to be of a quality, one-sided, 0.5 to 1.
    """

    kind: str
    target: float
    sure: float

    @classmethod
    def read(
        cls, sure: float, agreement: float | None, cosine: float | None, speedup: float | None
    ) -> "Goal":
        """The goal of one target among three. Raises ConfigError."""
        given = {AGREEMENT: agreement, COSINE: cosine, SPEEDUP: speedup}
        asked = {kind: value for kind, value in given.items() if value is not None}
        if len(asked) != 1:
            got = " and ".join(f"{kind} {value:g}" for kind, value in asked.items()) or "none"
            raise ConfigError(
                "expected exactly one of a target agreement, a target cosine and a target "
                f"speed-up, got {got}"
            )
        ((kind, target),) = asked.items()
        if kind == SPEEDUP and not 1 < target < float("inf"):
            raise ConfigError(f"expected a target speed-up above 1, got {target!r}")
        if kind != SPEEDUP and not 0 < target < 1:
            raise ConfigError(f"expected 0 < target {kind} < 1, got {target!r}")
        if not 0.5 <= sure < 1:
            raise ConfigError(f"expected 0.5 <= sure < 1, got {sure!r}")
        return cls(kind, target, sure)

    def check(self, half: Held) -> None:
        """Refuse what no configuration could meet on this half."""
        if self.kind != AGREEMENT:
            return
        if not half.classifies:
            raise ConfigError(
                "expected a host that tells classes apart for a target agreement, got one that "
                f"answers {'one number' if half.single else 'embeddings'}: give a target cosine"
            )
        perfect = Quality(half.images, half.images, ())
        if perfect.interval(AGREEMENT, 2 * self.sure - 1)[0] < self.target:
            z = NormalDist().inv_cdf(self.sure)
            least = int(z * z * self.target / (1 - self.target)) + 1
            raise ConfigError(
                f"expected at least {counted(least, 'image')} to tune on for a target agreement of "
                f"{self.target:g}, got {half.images}: give more, or be less sure than {self.sure:g}"
            )

    def met(self, trial: Trial) -> bool:
        """Whether the tuning half says so."""
        if self.kind == SPEEDUP:
            assert trial.speedup is not None
            return trial.speedup[1] >= self.target
        assert trial.quality is not None
        return trial.quality.interval(self.kind, 2 * self.sure - 1)[0] >= self.target


class _OutOfTimeError(Exception):
    """No further configuration is tried."""


class Search:
    """Trials on the tuning half.

    Attributes:
        trials: what was tried, by what tells configurations apart.
        stopped: whether time was up before all was tried.
    """

    def __init__(
        self,
        dense: nn.Module,
        half: Held,
        goal: Goal,
        clock: Clock,
        watch: Callable[[Trial], object] | None,
        statistics: tuple[Any, Any] = (None, None),
        judged: bool = True,
        until: float = float("inf"),
    ) -> None:
        self.dense, self.half, self.goal, self.clock = dense, half, goal, clock
        self.watch = watch or (lambda trial: None)
        self.judged = judged  # whether answers mean anything
        self.statistics = statistics  # what pixels are normalised with
        self.trials: dict[str, Trial] = {}
        self.until, self.stopped = until, False  # by time.monotonic

    def model(self, config: PruneConfig) -> nn.Module:
        """The host pruned so; shares its weights."""
        return prune(twin(self.dense), config)

    def choose(self, candidates: Sequence[PruneConfig]) -> tuple[Trial, bool]:
        """The best trial, judged and timed, and whether the target is met on this half.

        Where time is up, the best of those that were tried; one always is.
        """
        found = [trial for trial in map(self._edge, candidates) if trial is not None]
        met = bool(found)
        if not found:  # the nearest miss
            rank = self._quality if self.goal.kind != SPEEDUP else self._speed
            found = [max(self.trials.values(), key=rank)]
        if not self.judged:  # the more is kept, the nearer, as a rule
            return max(found, key=lambda t: (t.config.keep, *self._speed(t))), met
        if self.goal.kind == SPEEDUP:
            found = [self._judged(trial) for trial in found]
            return max(found, key=lambda t: (*self._quality(t), *self._speed(t))), met
        found = self._timed(found)
        fastest = max(found, key=self._speed)
        assert fastest.speedup is not None
        alike = [t for t in found if t.speedup is not None and t.speedup[2] >= fastest.speedup[0]]
        return max(alike, key=self._quality), met

    def _quality(self, trial: Trial) -> tuple[float, float]:
        assert trial.quality is not None
        main = COSINE if self.goal.kind == COSINE or trial.quality.agree is None else AGREEMENT
        return trial.quality.value(main), trial.quality.cosine

    def _speed(self, trial: Trial) -> tuple[float]:
        assert trial.speedup is not None
        return (trial.speedup[0],)

    def _edge(self, candidate: PruneConfig) -> Trial | None:
        """The trial whose keep is the last that meets the target; None where none does.

        Where time is up, the last so far.
        """
        fast = self.goal.kind == SPEEDUP
        stops = reversed(_COARSE) if fast else _COARSE
        ends = (0, _STEPS) if fast else (_STEPS, 0)
        last: Trial | None = None

        def meets(step: int) -> bool:
            nonlocal last
            trial = self._trial(replace(candidate, keep=step / _STEPS))
            if not self.goal.met(trial):
                return False
            last = trial
            return True

        try:
            edge(meets, *ends, list(stops))
        except _OutOfTimeError:
            self.stopped = True
        return last

    def _trial(self, config: PruneConfig) -> Trial:
        key = _key(config)
        if key not in self.trials:
            if self.trials and time.monotonic() >= self.until:
                raise _OutOfTimeError
            trial = Trial(names([config], *self.statistics)[0], config)
            if self.goal.kind == SPEEDUP:
                (trial,) = self._timed([trial])
            else:
                trial = self._judged(trial)
            self.watch(trial)
        return self.trials[key]

    def _judged(self, trial: Trial) -> Trial:
        if trial.quality is None:
            trial = replace(trial, quality=self.half.quality(self.model(trial.config)))
        self.trials[_key(trial.config)] = trial
        return trial

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        keys = [_key(trial.config) for trial in trials]
        models = {key: self.model(t.config) for key, t in zip(keys, trials, strict=True)}
        times = self.clock({DENSE: self.dense} | models, self.half.first)
        timed = [
            replace(trial, speedup=times[key].speedup_over(times[DENSE]))
            for key, trial in zip(keys, trials, strict=True)
        ]
        self.trials |= dict(zip(keys, timed, strict=True))
        return timed


def _key(config: PruneConfig) -> str:
    return fingerprint(facts_of(config), "")


def edge(meets: Callable[[int], bool], met: int, failed: int, stops: Sequence[int]) -> int:
    """The last number that meets, on the way from one that does to one that does not.

    Args:
        meets: asked of each number at most once; once it fails it is taken to fail beyond.
        met: taken to meet, without asking.
        failed: taken to fail, without asking.
        stops: numbers between, in order, that are asked first.
    """
    for stop in stops:
        if not meets(stop):
            failed = stop
            break
        met = stop
    while abs(failed - met) > 1:
        middle = (met + failed) // 2
        if meets(middle):
            met = middle
        else:
            failed = middle
    return met
