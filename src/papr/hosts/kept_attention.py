"""attention="kept": selected tokens travel through a stage of a Swin on their own.

The first block of a stage gathers them, the last one puts them back among the others, which are
as they were when the stage began. Between, blocks hand on both: (kept (B, 1, K, C), all the
stage's tokens (B, H, W, C)).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from papr.errors import PrunedModelError, UnsupportedModelError
from papr.hosts import Cut
from papr.hosts.bypassed import Bypassed, hanging, refusal
from papr.hosts.pyramid import Block, StageSite
from papr.hosts.sites import as_module
from papr.reducers.skip import put_into_grid, take_from_grid
from papr.reducers.windows import Pair, Windows, windows_of
from papr.wrappers import inside

Travelling = tuple[Tensor, Tensor]


class OnKept(StageSite):
    """Whatever computes attention of kept tokens from the parts of a module.

    A family names the modules that are not called then.
    """

    apart: Bypassed = ()
    padded_first = True  # see `windows_of`

    def _windows(
        self, window: Pair, shift: Pair, like: Tensor, apart: Callable[[Pair], Tensor | None]
    ) -> Windows:
        """Those of kept tokens; arguments as of `windows_of`, `apart` from the grid."""

        def make() -> Windows:
            kept = self._kept()
            grid = (kept.grid[0], kept.grid[1])
            return windows_of(kept, window, shift, apart(grid), like, self.padded_first)

        return self._shared(f"windows {window} {shift}", make)

    def _check(self) -> None:
        """Raise PrunedModelError where something hangs on those."""
        thing = hanging(as_module(self), self.apart)
        if thing is not None:
            where = f"the attention of stage {self._papr_stage}"
            raise PrunedModelError(refusal(where, thing, 'attention="kept"'))


def check_kept(host: nn.Module, cuts: Iterable[Cut]) -> None:
    """Refuse hosts where something hangs on a module that these cuts take apart.

    Raises:
        UnsupportedModelError: it does.
    """
    for path, behaviour, _ in cuts:
        apart = behaviour.apart if issubclass(behaviour, OnKept) else ()
        thing = hanging(inside(host.get_submodule(path)), apart)
        if thing is not None:
            where = f"{path} of {type(host).__name__}"
            raise UnsupportedModelError(refusal(where, thing, 'attention="kept"'))


class KeptBlock(Block):
    """A block inside a stage; blocks at its ends derive from it."""

    def _run(self, x: Travelling | Tensor) -> Travelling | Tensor:
        """Kept tokens through the original block, whose attention knows no others."""
        if self._papr.dense:
            answer: Tensor = super()._run(x)
            return answer
        kept, tokens = self._open(x)
        kept = super()._run(kept)
        return self._close(kept, tokens)

    def _open(self, x: Travelling | Tensor) -> Travelling:
        assert isinstance(x, tuple)
        return x

    def _close(self, kept: Tensor, tokens: Tensor) -> Travelling | Tensor:
        return kept, tokens


class Opening(KeptBlock):
    """The first block of a stage."""

    def _open(self, x: Travelling | Tensor) -> Travelling:
        assert isinstance(x, Tensor)
        return take_from_grid(x, self._kept()), x


class Closing(KeptBlock):
    """The last block of a stage."""

    def _close(self, kept: Tensor, tokens: Tensor) -> Tensor:
        return put_into_grid(kept, self._kept(), tokens)


class OnlyBlock(Opening, Closing):
    """The one block of a stage."""


class Kinds(NamedTuple):
    """The four behaviours as one family derives them."""

    opening: type[Block] = Opening
    inner: type[Block] = KeptBlock
    closing: type[Block] = Closing
    only: type[Block] = OnlyBlock


def kept_blocks(stage: int, blocks: Sequence[str], kinds: Kinds) -> list[Cut]:
    """The sites of one stage whose blocks have these paths."""
    if len(blocks) == 1:
        return [Cut(blocks[0], kinds.only, stage)]
    first, *inner, last = blocks
    return [
        Cut(first, kinds.opening, stage),
        *(Cut(path, kinds.inner, stage) for path in inner),
        Cut(last, kinds.closing, stage),
    ]
