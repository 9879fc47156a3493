"""Figures over samples, each with the interval that chance leaves it."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from papr.measure import mean_interval, wilson

_SIDES = 1.96  # standard errors of a 95 % interval


class Estimate(NamedTuple):
    """A figure and the 95 % interval that chance leaves it."""

    value: float
    low: float
    high: float


def mean_of(values: Tensor) -> Estimate:
    """The mean with its interval by the normal distribution."""
    numbers = values.double().tolist()
    return Estimate(math.fsum(numbers) / len(numbers), *mean_interval(numbers))


def share_of(values: Tensor) -> Estimate:
    """The share of ones with Wilson's interval, which stays honest at 0 and 1."""
    count = int(values.sum())
    return Estimate(count / len(values), *wilson(count, len(values)))


def percentile_of(values: Tensor, q: float) -> Estimate:
    """A percentile with the order statistics that bound it, whatever the distribution."""
    ordered, count = values.sort().values, len(values)
    half = _SIDES * math.sqrt(q * (1 - q) * count)
    places = [q * count - half, q * count + half]
    low, high = (float(ordered[min(count - 1, max(0, round(place)))]) for place in places)
    return Estimate(float(np.quantile(ordered.numpy(), q)), low, high)
