"""What blocks did to the patch tokens of one pass, and where each of them ended by that.

Blocks only write down what they did; nothing is computed of it unless somebody asks.
"""

from typing import Any, NamedTuple

from torch import Tensor

from papr.reducers.merge import Matching, moved
from papr.selecting import Selection, follow

#: The newest step and those before it: (step, (step, (step, None))). A chain rather than a list,
#: since compiled blocks would make one graph for each length of a list.
Way = tuple["Matching | Cut", Any]


class Cut(NamedTuple):
    """Some of the patch tokens stay.

    Attributes:
        kept: (B, K) int64, ascending.
        patches: M, how many there were.
    """

    kept: Tensor
    patches: int


def walked(sources: Tensor, way: Way | None) -> Tensor:
    """Where patches are in the end that were at `sources` (B, N) when the first block began.

    Args:
        sources: which patch token each patch was in, int64, -1 where it had been dropped.
        way: what happened since.
    """
    steps = []
    while way is not None:
        step, way = way
        steps.append(step)
    for step in reversed(steps):
        sources = follow(sources, _onwards(step))
    return sources


def _onwards(step: Matching | Cut) -> Tensor:
    """Where a step moves each patch token, (B, M) int64; -1 where it drops it."""
    if isinstance(step, Matching):
        return moved(step)
    return Selection(step.kept, (step.patches,)).places()
