"""How far a share or a mean of some samples may be from that of all."""

import math
import statistics
from collections.abc import Sequence

from torch import Tensor


def wilson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of a share, which stays inside 0 to 1 and is no point at either end.

    It holds the shares that a score test does not reject: those p with
    |successes / trials - p| <= z sqrt(p (1 - p) / trials). Source: Wilson, "Probable Inference, the
    Law of Succession, and Statistical Inference", JASA 1927.

    Args:
        successes: 0 to `trials`; of trials that succeed in part, the sum of their shares.
        trials: from 1.
        confidence: two-sided, 0 <= confidence < 1; 0 gives the share itself, twice.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected successes among trials, got {successes} of {trials}")
    z = _z(confidence)
    share, more = successes / trials, z * z / trials
    middle = (share + more / 2) / (1 + more)
    half = z * math.sqrt(share * (1 - share) / trials + more / trials / 4) / (1 + more)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of a mean, by the normal distribution: for some dozens of values.

    Args:
        values: from 1; of a single one the interval is without bounds.
        confidence: two-sided, 0 <= confidence < 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not values:
        raise ValueError("expected at least one value, got none")
    z, mean = _z(confidence), math.fsum(values) / len(values)
    if len(values) < 2:
        return (-math.inf, math.inf) if z else (mean, mean)
    half = z * statistics.stdev(values, mean) / math.sqrt(len(values))
    return mean - half, mean + half


def mean_and_error(values: Tensor) -> list[float]:
    """The mean of a figure of each sample, (N,), and its standard error.

    Of a single sample the error is not a number.
    """
    values = values.double()
    return [float(values.mean()), float(values.std() / len(values) ** 0.5)]


def _z(confidence: float) -> float:
    if not 0 <= confidence < 1:
        raise ValueError(f"expected 0 <= confidence < 1, got {confidence}")
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
