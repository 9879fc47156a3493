"""MACs, speed and memory of any `nn.Module` or callable. Imports nothing else of papr."""

from papr.measure.curves import Curves, curves
from papr.measure.macs import Macs, count_macs
from papr.measure.memory import peak_memory
from papr.measure.speed import Timing, interleave, quartiles

__all__ = [
    "Curves",
    "Macs",
    "Timing",
    "count_macs",
    "curves",
    "interleave",
    "peak_memory",
    "quartiles",
]
