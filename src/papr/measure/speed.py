"""Honest timing: rivals take turns in one run, and ratios are taken turn by turn.

A shared machine drifts by tens of per cent within minutes; a ratio of two medians taken one after
the other measures the drift. Rivals that run a few hundred milliseconds apart share it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """How long one rival took, turn by turn.

    Attributes:
        seconds: one figure a turn, in the order of the turns.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    def ms_per_image(self, batch: int) -> tuple[float, float, float]:
        """Milliseconds of a call on `batch` images by their number: (median, quartiles)."""
        return quartiles([1000 * s / batch for s in self.seconds])

    def speedup_over(self, other: "Timing") -> tuple[float, float, float]:
        """How many times faster than `other`, turn by turn: (median, lower, upper quartile)."""
        ratios = [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        return quartiles(ratios)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile); of fewer than two values, that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return middle, lower, upper


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    each_turn: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time several calls in turns: A B C, A B C, ...

    Args:
        rivals: name -> call.
        rounds: turns that count.
        warmup: turns before them that do not.
        device: synchronised before each reading of the clock.
        each_turn: called after every turn, for a progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(warmup + rounds):
        for name, call in rivals.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
            if each_turn is not None:
                each_turn()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done what it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
