"""The behaviours of hierarchical hosts, whose grid stays dense, and how their grids shrink."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papr.hosts.sites import Site
from papr.hosts.state import Grid
from papr.reducers.skip import (
    put_on_grid,
    put_on_map,
    take_from_grid,
    take_from_map,
    zero_elsewhere,
)
from papr.selecting import Selection


class StageSite(Site):
    """A site in one stage, which has a selection of its own."""

    def _chosen(self) -> Selection:
        assert self._papr_stage is not None
        return self._papr.take(again=True, stage=self._papr_stage)


class Take(StageSite):
    """The first module of the part that is skipped: it and what follows see kept tokens only."""

    def forward(self, x: Tensor) -> Any:
        """Tokens (B, N, C) or (B, H, W, C) to (B, K, ...) or (B, 1, K, ...)."""
        return super().forward(take_from_grid(x, self._chosen()))  # type: ignore[misc]


class Put(StageSite):
    """The last module of that part: its answer goes back to the grid, zero elsewhere."""

    def forward(self, kept: Tensor) -> Tensor:
        """Tokens (B, K, ...) or (B, 1, K, ...) to (B, N, C) or (B, H, W, C)."""
        return put_on_grid(super().forward(kept), self._chosen())  # type: ignore[misc]


class TakeFromMap(StageSite):
    """As `Take`, channels first."""

    def forward(self, x: Tensor) -> Any:
        """A map (B, C, H, W) to (B, C, 1, K)."""
        return super().forward(take_from_map(x, self._chosen()))  # type: ignore[misc]


class PutOnMap(StageSite):
    """As `Put`, channels first."""

    def forward(self, kept: Tensor) -> Tensor:
        """(B, C, 1, K) to a map (B, C, H, W)."""
        return put_on_map(super().forward(kept), self._chosen())  # type: ignore[misc]


class Block(StageSite):
    """A block of a hierarchical host, which gradient checkpointing may run a second time."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As ever; the selection travels with `x`."""
        self._papr.carry(x)
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]


class ZeroingBlock(Block):
    """A block whose answer is zero where nothing was selected, shortcut included."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A map (B, C, H, W) to one that is zero where nothing was selected."""
        return zero_elsewhere(super().forward(x, *args, **kwargs), self._chosen())


class End(Site):
    """The first module after all stages: nothing will ask for this pass's selection again."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As ever."""
        self._papr.finish()
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class Halving:
    """Grids of `stages` stages, each half of the one before, odd sides padded: Swin's merging."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def __call__(self, grid: Grid) -> tuple[Grid, ...]:
        """The first stage's grid to all stages' grids."""
        grids = [grid]
        for _ in range(self.stages - 1):
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        return tuple(grids)


class Convolved:
    """Grids of stages that are entered by convolutions.

    Args:
        entrances: for each stage, the convolutions before its blocks; the first stage's are none.
    """

    def __init__(self, entrances: Sequence[Sequence[nn.Conv2d]]) -> None:
        self.rules = [[conv_rule(conv) for conv in convs] for convs in entrances]

    def __call__(self, grid: Grid) -> tuple[Grid, ...]:
        """The first stage's grid to all stages' grids."""
        grids = []
        for rules in self.rules:
            grid = convolved(grid, rules)
            grids.append(grid)
        return tuple(grids)


Rule = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]


def conv_rule(conv: nn.Conv2d) -> Rule:
    """(kernel, stride, padding, dilation) on each axis; padding -1 where it is "same"."""
    same = isinstance(conv.padding, str) or type(conv).__name__ == "Conv2dSame"

    def axis(i: int) -> tuple[int, int, int, int]:
        padding = -1 if same else int(conv.padding[i])
        return conv.kernel_size[i], conv.stride[i], padding, conv.dilation[i]

    return axis(0), axis(1)


def convolved(size: Grid, rules: Sequence[Rule]) -> Grid:
    """What convolutions make of a (height, width)."""
    for rule in rules:
        size = tuple(
            -(-side // s) if p < 0 else (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, (k, s, p, d) in zip(size, rule, strict=True)
        )
    return size


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions in a module, in order."""
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
