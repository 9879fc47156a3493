"""Figures over samples, each with the interval that chance leaves it."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

_SIDES = 1.96  # standard errors of a 95 % interval


class Estimate(NamedTuple):
    """A figure and the 95 % interval that chance leaves it."""

    value: float
    low: float
    high: float


def mean_of(values: Tensor) -> Estimate:
    """The mean, plus and minus 1.96 standard errors."""
    values = values.double()
    middle, error = float(values.mean()), _SIDES * float(values.std()) / math.sqrt(len(values))
    return Estimate(middle, middle - error, middle + error)


def share_of(values: Tensor) -> Estimate:
    """The share of ones with Wilson's interval, which stays honest at 0 and 1."""
    count, share = len(values), float(values.double().mean())
    z = _SIDES**2 / count
    middle = (share + z / 2) / (1 + z)
    half = _SIDES / (1 + z) * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def percentile_of(values: Tensor, q: float) -> Estimate:
    """A percentile with the order statistics that bound it, whatever the distribution."""
    ordered, count = values.sort().values, len(values)
    half = _SIDES * math.sqrt(q * (1 - q) * count)
    places = [q * count - half, q * count + half]
    low, high = (float(ordered[min(count - 1, max(0, round(place)))]) for place in places)
    return Estimate(float(np.quantile(ordered.numpy(), q)), low, high)
