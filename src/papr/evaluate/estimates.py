"""Figures over samples, each with the interval that chance leaves it."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Binomial

from papr.measure import mean_interval, wilson

#: What a 95 % interval leaves on either side.
_TAIL = 0.025
#: No cosine is further; where chance leaves a figure no end, it ends here.
_COSINES = (-1.0, 1.0)


class Estimate(NamedTuple):
    """A figure and the 95 % interval that chance leaves it."""

    value: float
    low: float
    high: float


def mean_of(values: Tensor, bounds: tuple[float, float] = _COSINES) -> Estimate:
    """The mean with its interval by the normal distribution, for some dozens of values.

    Args:
        values: (N,).
        bounds: what no value can be beyond, and so neither the interval.
    """
    numbers = values.double().tolist()
    low, high = mean_interval(numbers)
    value = math.fsum(numbers) / len(numbers)
    return Estimate(value, max(bounds[0], low), min(bounds[1], high))


def share_of(values: Tensor) -> Estimate:
    """The mean of shares with Wilson's interval, which stays honest at 0 and 1 and for few values.

    It is that of as many values that are 0 or 1 each. Shares of any other kind vary less about the
    same mean, so for them it is too wide rather than too narrow.

    Args:
        values: (N,), from 0 to 1.
    """
    numbers = values.double().tolist()
    total = min(math.fsum(numbers), len(numbers))
    return Estimate(total / len(numbers), *wilson(total, len(numbers)))


def percentile_of(values: Tensor, q: float, bounds: tuple[float, float] = _COSINES) -> Estimate:
    """A percentile with the order statistics that bound it, whatever the distribution.

    How many of N values lie below the percentile is binomial, and that says which two of them hold
    it between them in 95 of 100 draws at least. Of few values there may be none: fewer than 72 say
    nothing of how low the 5th percentile is, and the interval ends where values do.

    Args:
        values: (N,).
        q: 0 < q < 1.
        bounds: what no value can be beyond.
    """
    ordered, count = values.sort().values, len(values)
    lower, upper = _ranks(count, q)
    low = float(ordered[lower - 1]) if lower else bounds[0]
    high = float(ordered[upper - 1]) if upper <= count else bounds[1]
    return Estimate(float(np.quantile(ordered.numpy(), q)), low, high)


def _ranks(count: int, q: float) -> tuple[int, int]:
    """The places, from 1, of the values that hold a percentile; 0 or `count` + 1 for no value."""
    middle, reach = q * count, 12 * math.sqrt(q * (1 - q) * count) + 12  # beyond, chance is nil
    first, last = max(0, math.floor(middle - reach)), min(count, math.ceil(middle + reach))
    below = torch.arange(first, last + 1, dtype=torch.float64)
    chance = Binomial(count, torch.tensor(q, dtype=torch.float64)).log_prob(below).exp().cumsum(0)
    lower = first + int((chance <= _TAIL).sum())
    return lower, first + int((chance < 1 - _TAIL).sum()) + 1
