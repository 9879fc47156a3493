"""How far answers of one number each are from others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Difference:
    """The mean distance of some numbers from a reference's, in the reference's own spread.

    A single number an input has no likeliest class, and its cosine is a sign; but it can be near or
    far, and how near is near follows from how much the reference varies between inputs.
    """

    _away: list[float] = field(default_factory=list)
    _sums: list[float] = field(default_factory=list)
    _squares: list[float] = field(default_factory=list)
    _count: int = 0

    def add(self, found: Sequence[float], reference: Sequence[float]) -> None:
        """Count some more inputs."""
        self._count += len(reference)
        self._away.append(math.fsum(abs(a - b) for a, b in zip(found, reference, strict=True)))
        self._sums.append(math.fsum(reference))
        self._squares.append(math.fsum(value * value for value in reference))

    @property
    def value(self) -> float | None:
        """The mean distance over the reference's standard deviation; None where it has none."""
        if not self._count:
            return None
        mean = math.fsum(self._sums) / self._count
        variance = math.fsum(self._squares) / self._count - mean * mean
        if variance <= 1e-12 * mean * mean:  # nothing that rounding does not explain
            return None
        return math.fsum(self._away) / self._count / math.sqrt(variance)
