"""MACs, speed and memory of any `nn.Module` or callable. Imports nothing else of papr."""

from papr.measure.curves import Curves, curves
from papr.measure.difference import Difference
from papr.measure.intervals import mean_and_error, mean_interval, wilson
from papr.measure.macs import Macs, count_macs
from papr.measure.memory import peak_memory
from papr.measure.pareto import pareto
from papr.measure.speed import Timing, interleave, quartiles
from papr.measure.spread import spread

__all__ = [
    "Curves",
    "Difference",
    "Macs",
    "Timing",
    "count_macs",
    "curves",
    "interleave",
    "mean_and_error",
    "mean_interval",
    "pareto",
    "peak_memory",
    "quartiles",
    "spread",
    "wilson",
]
