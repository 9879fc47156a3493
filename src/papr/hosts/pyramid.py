"""The behaviours of hierarchical hosts, whose grid stays dense."""

from typing import Any

import torch
from torch import Tensor

from papr.hosts import Cut
from papr.hosts.sites import CarryingBlock, Site
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


class TakeAndPut(Take, Put):
    """One module that only kept tokens go through; its answer is zero elsewhere."""


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


class Block(CarryingBlock, StageSite):
    """A block of a hierarchical host, whose selection its stage has."""


class ZeroingBlock(Block):
    """A block whose answer is zero where nothing was selected, shortcut included."""

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A map (B, C, H, W) to one that is zero where nothing was selected."""
        return zero_elsewhere(super()._run(x, *args, **kwargs), self._chosen())


class Whole(Block):
    """A whole stage, around which checkpoints may stand too; an eager pass ends with the last."""

    def _run(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super()._run(x, *args, **kwargs)
        self._papr.check_taken(self._papr_stage)
        if not torch.compiler.is_compiling() and self._papr_stage == self._papr.last_stage:
            self._papr.passes.finish()
        return answer


def block_cuts(
    stage: int,
    path: str,
    first: str,
    last: str,
    kind: type[Block] = Block,
    put: type[StageSite] = Put,
) -> list[Cut]:
    """The sites of a block, of which one part sees kept tokens only.

    Args:
        stage: the stage it is in.
        path: where the block is.
        first: path in the block of the first module of that part.
        last: of the last one; may not be the first.
        kind: the block's own behaviour.
        put: the last one's.
    """
    return [
        Cut(path, kind, stage),
        Cut(f"{path}.{first}", Take, stage),
        Cut(f"{path}.{last}", put, stage),
    ]


class End(Site):
    """The first module after all stages: nothing will ask for this pass's selection again."""

    needed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As ever."""
        self._papr.passes.finish()
        return super().forward(*args, **kwargs)  # type: ignore[misc]
