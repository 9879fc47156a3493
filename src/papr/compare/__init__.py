"""Dense, pruned and rivals side by side: speed, selections on one host, maps of one proposal."""

from papr.compare.speed import Row as Row
from papr.compare.speed import compare as compare

__all__ = ["Row", "compare"]
