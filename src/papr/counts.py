"""Fractions as people write them, turned into counts."""

#: What binary fractions miss of decimal ones: 0.29 * 100 is 28.999999999999996, and a fraction that
#: came through float32 is off by 6e-8.
_HAIR = 1e-7


def count_of(fraction: float, whole: int) -> int:
    """How many of `whole` a fraction is, rounded down: `k / whole` is k, and 0.29 of 100 is 29."""
    return int((fraction + _HAIR) * whole)


def ceiling(whole: int, part: int) -> int:
    """How many parts hold the whole; not by -whole // part, which exporters round to zero."""
    return (whole + part - 1) // part
