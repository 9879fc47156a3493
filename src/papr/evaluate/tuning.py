"""Find a configuration that is near enough, or fast enough, on the user's own unlabelled images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist, pvariance
from typing import Any

from torch import nn

from papr.config import PruneConfig
from papr.environment import environment
from papr.errors import ConfigError
from papr.evaluate.contenders import DENSE, check_streamless, facts_of, names
from papr.evaluate.evaluation import statistics_of
from papr.evaluate.judging import Held, Quality, halves
from papr.evaluate.loading import Prepare, Skipped, usual_batch
from papr.evaluate.preparing import open_for, prepare_for
from papr.evaluate.searching import AGREEMENT, SPEEDUP, Clock, Goal, Ratio, Search, Trial, timed
from papr.evaluate.sources import Source, take
from papr.evaluate.sweep import RS, can_merge, grid
from papr.hosts import find_plan
from papr.later import Merge
from papr.measure import count_macs
from papr.proposals import as_proposal
from papr.provenance import GIVEN, KEY, Provenance, Weights
from papr.pruning import unprune
from papr.twins import twin
from papr.words import counted
from papr.wrappers import unwrap

#: Resolutions of the proposal that are tried unless told otherwise; None is its own.
SIZES = (None, 96)
#: What can be said of a target; see `tune`.
REACHED, NOT_REFUTED, NOT_REACHED = "reached", "not refuted", "not reached"
#: How a verdict begins where the target is met, but not faster than dense.
USELESS = "nothing pays here"


@dataclass(frozen=True)
class Tuned:
    """What was chosen, or the best that was found.

    Attributes:
        kind: of the target: "agreement", "cosine" or "speedup".
        target: as given.
        sure: as given.
        state: "reached", "not refuted" or "not reached"; see `tune`.
        verdict: that in words, and why.
        config: what `papr.prune` takes.
        tuning: its quality on the half it was chosen on: too good, if anything. None where weights
            are random.
        held_out: its quality on the other half, which chose nothing; likewise.
        speedup: over the dense host, measured anew, (median, lower, upper quartile).
        ms_per_image: of `config`, likewise.
        ms_per_image_dense: of the dense host in the same turns.
        gmacs: of one image, whoever looks first included.
        gmacs_dense: likewise.
        batch: images a call that was timed.
        trials: everything that was tried.
        stopped: whether time was up before all was tried.
        skipped: samples that could not be read.
        environment: versions and device.
        provenance: where weights come from.
    """

    kind: str
    target: float
    sure: float
    state: str
    verdict: str
    config: PruneConfig
    tuning: Quality | None
    held_out: Quality | None
    speedup: Ratio
    ms_per_image: Ratio
    ms_per_image_dense: Ratio
    gmacs: float
    gmacs_dense: float
    batch: int
    trials: list[Trial]
    skipped: list[Skipped]
    environment: dict[str, Any]
    stopped: bool = False
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def blank(self) -> str:
        """Why agreement and cosine are blank, in a sentence; empty where they are not."""
        return self.provenance.blank("agreement and cosine")

    @property
    def reached(self) -> bool:
        """Whether `config` may be used."""
        return self.state == REACHED

    @property
    def pays(self) -> bool:
        """Whether `config` is faster than the dense host."""
        return self.speedup[0] > 1

    def code(self) -> str:
        """The configuration as two lines of Python; a proposal without a name is `proposal`."""
        usual, parts = PruneConfig(), [f"keep={self.config.keep:g}"]
        for option in fields(PruneConfig)[1:]:
            value = getattr(self.config, option.name)
            if option.name == "proposal" and not isinstance(value, str):
                parts.append("proposal=proposal")
            elif option.name == "merge" and value is not None:
                parts.append(f"merge=papr.Merge({_unusual(value)})")
            elif value != getattr(usual, option.name):
                parts.append(f"{option.name}={value!r}")
        return f"import papr\npapr.prune(model, {', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "reached": self.reached,
            "pays": self.pays,
            "config": facts_of(self.config),
            "tuning": self.tuning and self.tuning.to_dict(),
            "held_out": self.held_out and self.held_out.to_dict(),
            KEY: self.provenance.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "skipped": [sample._asdict() for sample in self.skipped],
        }


def _unusual(merge: Merge) -> str:
    """The arguments that make this `Merge`."""
    usual = Merge(merge.r)
    others = [f.name for f in fields(Merge) if getattr(merge, f.name) != getattr(usual, f.name)]
    return ", ".join([repr(merge.r), *(f"{name}={getattr(merge, name)!r}" for name in others)])


def tune(
    host: nn.Module,
    data: Source | str | Path,
    candidates: Sequence[PruneConfig] | None = None,
    *,
    target_agreement: float | None = None,
    target_speedup: float | None = None,
    target_cosine: float | None = None,
    sure: float = 0.8,
    limit: int = 1000,
    name: str = "",
    weights: Weights = GIVEN,
    prepare: Prepare | None = None,
    batch: int | None = None,
    workers: int | None = None,
    rounds: int = 9,
    minutes: float | None = None,
    clock: Clock | None = None,
    told: Callable[[int, int], object] | None = None,
    watch: Callable[[Trial], object] | None = None,
) -> Tuned:
    """Find keep and the rest for a target, and say what it is worth on images that chose nothing.

    Images need no labels: the dense host's answers are what is kept or lost. Half of them, by a
    hash of their ids, is what is tuned on; the figures that count are of the other half. Images
    that are nearly the same in both, such as frames of one video, make them look too good.

    For a target agreement (or cosine) the smallest keep of each candidate is sought that meets it:
    at 0.8, 0.6, 0.4 and 0.2 until one fails, then by halving to a fortieth, seven passes over the
    tuning half at most. It meets the target if the lower end of a one-sided interval does, at
    `sure`: the point estimate alone would be chance's pick of the smallest keep, and too good every
    second time. Those found are timed in turns, and the fastest is chosen; of those that are as
    fast within the quartiles, the one of highest quality. For a target speed-up the largest keep of
    each candidate is sought whose lower quartile over the turns is as fast; the one of highest
    agreement is chosen, or of highest cosine where agreement is equal or there is none.

    The target is "reached" where the figure on the other half meets it, or the median of the
    speed-up measured anew does. Where the figure is below the target but its 95 % interval (the
    quartiles) holds it, it is "not refuted": there are too few images to tell. It is "not reached"
    where no candidate meets it on the tuning half, where the whole interval lies below it, or where
    the choice is not faster than the dense host.

    Args:
        host: in eval mode, on its device, in its dtype; left as it is.
        data: a source, or what `open_source` takes.
        candidates: of `grid`, whatever their keep; None for glance at its own resolution and at
            96, each without merging and, where the host can, with r = 8.
        target_agreement: share of images with the dense host's top-1, 0 to 1, both excluded.
        target_speedup: times as fast as the dense host, above 1.
        target_cosine: mean cosine between embeddings, 0 to 1, both excluded. Exactly one of three.
        sure: how sure to be, one-sided, that the tuning half meets the target, from 0.5 (the point
            estimate) to below 1. Measured on examples/cluttered_digits, 200 random
            draws of 200 or 500 pictures for each of five targets from 0.95 to 0.99: the choice
            truly met the target in 35 to 55 % of them at 0.5, in 79 to 92 % at 0.8, in 81 to 97 %
            at 0.9 (benchmarks/tuning_certainty.py).
        limit: samples taken, evenly spread over the data, of shards the first. Half of them is in
            memory at a time: 300 MB of 224 px in float32 for 1000.
        name: what the host was made by; see `evaluate`.
        weights: where the host's come from; with random ones, or a random proposal, only a speed-up
            can be asked for: the most that is kept at it is chosen.
        prepare: decodes a sample; None for what the host's own library does.
        batch: samples a call, also of those timed; None for 64 on a GPU, 16 elsewhere.
        workers: processes that decode ahead; see `loading.loader`.
        rounds: timed turns.
        minutes: for how long, from the call on; None for as long as it takes. When they are over
            nothing further is tried, and the best of what was is taken: one configuration always
            is, and what is decoded, checked and timed at the end is reckoned with as what it cost
            at the beginning.
        clock: how models are timed; None for `papr.measure.interleave`.
        told: called once, before the first trial, with how many images choose and how many check.
        watch: called after each trial.

    Raises:
        ConfigError: an option is out of range, or there are too few samples for the target.
        DataError: nothing that can be read is in `data`.
        UnsupportedModelError: the host cannot be pruned.
    """
    begun = time.monotonic()
    goal = Goal.read(sure, target_agreement, target_cosine, target_speedup)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ConfigError(f"expected minutes above 0, got {minutes!r}")
    looked = [as_proposal(config.proposal).weights for config in candidates or ()]
    judged = not any(one.random for one in (weights, *looked))
    if not judged and goal.kind != SPEEDUP:
        raise ConfigError(
            "expected a target speed-up (--target-speedup, target_speedup=) with random weights, "
            f"whose answers mean nothing, got a target {goal.kind} of {goal.target:g}"
        )
    if not isinstance(data, Source):
        data = open_for(host, data)
    prepare = prepare or prepare_for(host, name)
    if candidates is None:
        candidates = grid((0.5,), RS if can_merge(host) else (0,), proposal_sizes=SIZES)
    dense = unprune(twin(unwrap(host))).eval()
    candidates = _normalised(candidates, dense, prepare)
    weight = next(dense.parameters())
    load = partial(
        Held,
        dense,
        prepare=prepare,
        batch=batch or usual_batch(weight.is_cuda, prepare),
        workers=workers,
    )
    tuning_half, other_half = halves(take(data, limit))
    assert tuning_half.length is not None
    assert other_half.length is not None
    if told is not None:
        told(tuning_half.length, other_half.length)
    loading = time.monotonic()
    half = load(source=tuning_half)
    goal.check(half)
    clock = clock or partial(timed, rounds=rounds)
    until = float("inf")
    if minutes is not None:  # the other half will take as long to load
        until = begun + 60 * minutes - (time.monotonic() - loading)
    search = Search(dense, half, goal, clock, watch, statistics_of(prepare), judged, until)
    chosen, met = search.choose(candidates)
    skipped = half.skipped
    del half, search.half  # before the other one is decoded
    held = load(source=other_half)
    return _report(dense, chosen, met, search, held, skipped, weights)


def _normalised(
    candidates: Sequence[PruneConfig], dense: nn.Module, prepare: Prepare
) -> list[PruneConfig]:
    """The candidates, told what pixels are normalised with where the host does not say it."""
    mean, std = statistics_of(prepare)
    facts = find_plan(dense).facts
    if not candidates or any(c.share is not None for c in candidates):
        raise ConfigError("expected candidates with one keep, got none or budgets for each image")
    check_streamless(candidates)
    names(candidates)  # refuses a proposal that is a callable
    known = mean is None or std is None or (facts.mean, facts.std) == (tuple(mean), tuple(std))
    return [c if known or c.mean else replace(c, mean=mean, std=std) for c in candidates]


def _report(
    dense: nn.Module,
    chosen: Trial,
    met: bool,
    search: Search,
    held: Held,
    skipped: list[Skipped],
    weights: Weights,
) -> Tuned:
    model, goal = search.model(chosen.config), search.goal
    held_out = held.quality(model) if search.judged else None
    times = search.clock({DENSE: dense, "chosen": model}, held.first)
    batch, one = len(held.first), held.first[:1]
    speedup = times["chosen"].speedup_over(times[DENSE])
    state, verdict = _verdict(goal, met, held_out, speedup)
    if search.stopped:
        verdict += f" (time was up after {len(search.trials)} configurations; more may be found)"
    looked = [as_proposal(trial.config.proposal) for trial in search.trials.values()]
    return Tuned(
        kind=goal.kind,
        target=goal.target,
        sure=goal.sure,
        state=state,
        verdict=verdict,
        config=chosen.config,
        tuning=chosen.quality,
        held_out=held_out,
        speedup=speedup,
        ms_per_image=times["chosen"].ms_per_image(batch),
        ms_per_image_dense=times[DENSE].ms_per_image(batch),
        gmacs=count_macs(model, one).total / 1e9,
        gmacs_dense=count_macs(dense, one).total / 1e9,
        batch=batch,
        trials=list(search.trials.values()),
        skipped=[*skipped, *held.skipped],
        environment=environment(one.device),
        stopped=search.stopped,
        provenance=Provenance(weights, {who.name: who.weights for who in looked}),
    )


def _verdict(goal: Goal, met: bool, held_out: Quality | None, speedup: Ratio) -> tuple[str, str]:
    """What can be said of the target, and that in words."""
    if goal.kind == SPEEDUP:
        what, (middle, low, high) = "measured anew", speedup
    else:
        assert held_out is not None
        low, high = held_out.interval(goal.kind)
        what, middle = f"on the held-out half, {goal.kind}", held_out.value(goal.kind)
    figures = f"{what} {middle:.3f} ({low:.3f}-{high:.3f})"
    if not met:
        return NOT_REACHED, f"nothing meets {goal.kind} {goal.target:g} on the tuning half"
    if high < goal.target:
        return NOT_REACHED, f"{figures} is below the target {goal.target:g}"
    if speedup[0] <= 1:
        return NOT_REACHED, (
            f"{USELESS}: what meets {goal.kind} {goal.target:g} is not faster than dense, "
            f"{speedup[0]:.2f} times as fast"
        )
    if low >= goal.target:
        return REACHED, f"{figures} is above the target {goal.target:g}"
    if middle >= goal.target:
        return REACHED, f"{figures} meets the target {goal.target:g}, by less than chance may give"
    more = "more rounds"
    if goal.kind != SPEEDUP and held_out is not None:
        more = f"about {counted(_telling(held_out, goal), 'image')}, half of them held out,"
    near = f"{figures} is below the target {goal.target:g}, by less than chance may take"
    return NOT_REFUTED, f"{near}: {more} would tell"


def _telling(held_out: Quality, goal: Goal) -> int:
    """Of how many images, in both halves, the held-out figure would refute the target."""
    wanted = goal.target * (1 - goal.target)  # the variance that Wilson's interval goes by
    spread = wanted if goal.kind == AGREEMENT else pvariance(held_out.cosines)
    z, off = NormalDist().inv_cdf(0.975), goal.target - held_out.value(goal.kind)
    return 2 * max(held_out.images + 1, int(spread * (z / off) ** 2) + 1)
