"""The behaviours of hierarchical hosts, whose grid stays dense."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from papr.hosts import Cut
from papr.hosts.passes import is_recomputing
from papr.hosts.sites import CarryingBlock, Site
from papr.reducers.skip import (
    mask_of_map,
    put_on_grid,
    put_on_map,
    take_from_grid,
    take_from_map,
    zero_elsewhere,
)
from papr.selecting import Kept

Thing = TypeVar("Thing")


class StageSite(Site):
    """A site in one stage, which has a selection of its own. Where keep is 1 it does nothing."""

    _papr_stage: int

    def _kept(self) -> Kept:
        indices, _, grid, notes = self._papr.part(self._papr_stage)
        return Kept(indices, grid, notes["rows"])

    def _shared(self, name: str, make: Callable[[], Thing]) -> Thing:
        """What several blocks of the stage need: made by the first of a pass that asks.

        Args:
            name: of the thing.
            make: from the selection and from what is alike in all these blocks; no parameter.
        """
        if is_recomputing():  # the stage has ended, after which nothing is held
            return make()
        known: dict[str, Thing] = self._papr.part(self._papr_stage)[3]["shared"]
        if name not in known:
            known[name] = make()
        return known[name]


class Take(StageSite):
    """The first module of the part that is skipped: it and what follows see kept tokens only."""

    def forward(self, x: Tensor) -> Any:
        """Tokens (B, N, C) or (B, H, W, C) to (B, K, ...) or (B, 1, K, ...)."""
        x = x if self._papr.dense else take_from_grid(x, self._kept())
        return super().forward(x)  # type: ignore[misc]


class Put(StageSite):
    """The last module of that part: its answer goes back to the grid, zero elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, K, ...) or (B, 1, K, ...) to (B, N, C) or (B, H, W, C)."""
        answer: Tensor = super().forward(x)  # type: ignore[misc]
        return answer if self._papr.dense else put_on_grid(answer, self._kept())


class TakeAndPut(Take, Put):
    """One module that only kept tokens go through; its answer is zero elsewhere."""


class TakeFromMap(StageSite):
    """As `Take`, channels first."""

    def forward(self, x: Tensor) -> Any:
        """A map (B, C, H, W) to (B, C, 1, K)."""
        x = x if self._papr.dense else take_from_map(x, self._kept())
        return super().forward(x)  # type: ignore[misc]


class TakeOfAnswer(StageSite):
    """A module that sees the whole map, and of whose answer what follows sees kept tokens only."""

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) to (B, C, 1, K)."""
        answer: Tensor = super().forward(x)  # type: ignore[misc]
        return answer if self._papr.dense else take_from_map(answer, self._kept())


class PutOnMap(StageSite):
    """As `Put`, channels first."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, K) to a map (B, C, H, W)."""
        answer: Tensor = super().forward(x)  # type: ignore[misc]
        return answer if self._papr.dense else put_on_map(answer, self._kept())


class Block(CarryingBlock, StageSite):
    """A block of a hierarchical host, whose selection its stage has."""


class ZeroingBlock(Block):
    """A block whose answer is zero where nothing was selected, shortcut included."""

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A map (B, C, H, W) to one that is zero where nothing was selected."""
        answer: Tensor = super()._run(x, *args, **kwargs)
        if self._papr.dense:
            return answer
        dtype = answer.dtype
        mask = self._shared(f"mask {dtype}", lambda: mask_of_map(self._kept(), dtype))
        return zero_elsewhere(answer, mask)


class PuttingBlock(Block):
    """The same of a block of which all after its convolution, shortcut too, is of kept tokens."""

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A map (B, C, H, W) to one that is zero where nothing was selected."""
        answer: Tensor = super()._run(x, *args, **kwargs)
        return answer if self._papr.dense else put_on_map(answer, self._kept())


class Whole(Block):
    """A whole stage, around which checkpoints may stand too; an eager pass ends with the last."""

    def _run(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super()._run(x, *args, **kwargs)
        self._papr.check_taken(self._papr_stage)
        record = self._papr.passes.under_way()
        part = record[self._papr_stage] if record else None
        if part is not None:
            part[3].get("shared", {}).clear()
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
