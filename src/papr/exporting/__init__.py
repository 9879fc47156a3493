"""Models that leave Python: one file with proposal and host, checked against eager."""

from papr.exporting.agreement import BATCHES, TOLERANCE, differences
from papr.exporting.writing import Exported, export

__all__ = ["BATCHES", "TOLERANCE", "Exported", "differences", "export"]
