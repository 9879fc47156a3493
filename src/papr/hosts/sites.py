"""The behaviours that most hosts share: where pixels come in, where tokens are dropped."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.errors import PaprError, PrunedModelError, SelectionError
from papr.graft import Grafted
from papr.hosts.explanations import TRACED_BY_FX
from papr.hosts.grids import stem_layout
from papr.hosts.state import HostState
from papr.reducers.drop import drop
from papr.reducers.pool import drop_and_pool
from papr.selecting import gather
from papr.significance import describe


class Site(Grafted):
    """A grafted module of a host; `_papr` is the state all sites of that host share."""

    asked_again = False  # whether a later site of the same pass needs the selection too
    needed = True  # whether answers are wrong without it

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if isinstance(self._papr, HostState):
            self._papr.presence.join(self)

    def _reduced(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to what stays of them, (B, P + K, C), and means where asked."""
        state, prefix = self._papr, self._papr.facts.prefix_tokens
        if state.ranked:
            chosen = state.take(again=True)
            order = chosen.ranked()
            state.placed(chosen.places(order), order.shape[1])
            return gather(tokens, order, prefix)
        if state.config.pool:
            tokens, places = drop_and_pool(
                tokens, state.take(again=True), prefix, state.config.pool
            )
            state.placed(places, tokens.shape[1] - prefix)
            return tokens
        return drop(tokens, state.take(self.asked_again), prefix)

    _papr: HostState


class Entry(Site):
    """Where pixels come in: the proposal looks at them, then the host goes on as ever.

    A family of image hosts says in `_layout` how its patch grid follows from the pixels: the grid,
    and the (height, width) in pixels that it covers. Video hosts have a `seen` of their own.
    """

    _layout: Callable[[Tensor], tuple[tuple[int, ...], tuple[int, int]]]

    def forward(self, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The original forward, after the proposal has looked."""
        seen, grid = self.seen(pixels, **kwargs)
        self._papr.look(seen, grid, as_module(self))
        return super().forward(pixels, *args, **kwargs)  # type: ignore[misc]

    def seen(self, pixels: Tensor, **options: Any) -> tuple[Tensor, tuple[int, ...]]:
        """What the proposal is to look at, cut or padded to what the patches cover; and the grid.

        Raises SelectionError where `pixels` are none that the host takes.
        """
        channels = self._papr.facts.channels
        if not is_pixels(pixels, 4) or pixels.shape[1] != channels:
            raise unfit(pixels, f"floating pixels (B, {channels}, H, W)")
        grid, covered = self._layout(pixels)
        return cover(pixels, covered), grid

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Moves and casts of the host reach the proposal, which is no child of it."""
        result = super()._apply(fn, *args, **kwargs)  # type: ignore[misc]
        self._papr.settle(as_module(self))
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._papr.settle(as_module(self))


class TimmEntry(Entry):
    """timm's patch embeddings: PatchEmbed, HybridEmbed and their like."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        rows, columns = super().dynamic_feat_size(tuple(pixels.shape[-2:]))  # type: ignore[misc]
        height, width = self.feat_ratio(as_scalar=False)  # type: ignore[attr-defined]
        return (rows, columns), (rows * height, columns * width)


class TimmDropEntry(TimmEntry):
    """The same where tokens are dropped."""

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Refuse while pruned: in timm only dense features ask, to reshape tokens to the grid.

        With K of N patches that reshape fails, or passes and scrambles (98 x 768 = 196 x 384).
        """
        grid: tuple[int, int] = super().dynamic_feat_size(img_size)  # type: ignore[misc]
        state = self._papr
        if state.dense and not state.steps:
            return grid
        also = ", its tokens merged or cut in its blocks" if state.steps else ""
        raise PrunedModelError(
            f"expected all patches of the {grid[0]} x {grid[1]} grid for a dense feature map, got "
            f"a host pruned to keep={state.config.keep:g}{also}: ask for output_fmt='NLC' and use "
            "papr.selection(model).restore(tokens), or papr.unprune(model) first"
        )


class StemEntry(Entry):
    """A stem of convolutions: patchify, or overlapping."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        return stem_layout(as_module(self), (pixels.shape[-2], pixels.shape[-1]))


class DropCut(Site):
    """Where tokens are cut: the original forward, then the selected tokens only."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens (B, P + N, C) to (B, P + K, C)."""
        return self._reduced(super().forward(tokens, *args, **kwargs))  # type: ignore[misc]


class CarryingBlock(Site):
    """A block that asks about the pass, and that gradient checkpointing may run a second time."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As ever; the selection travels with `x`."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self._run(x, *args, **kwargs)
        passes = self._papr.passes
        before = passes.enter(x if isinstance(x, Tensor) else x[0])
        try:
            answer = self._run(x, *args, **kwargs)
            # a checkpoint around the next block may stop this run as soon as it has its input
            passes.carry(answer[0] if isinstance(answer, tuple) else answer)
            return answer
        finally:
            passes.leave(before)

    def _run(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The original forward, and what a derived behaviour does around it."""
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]


def unfit(pixels: object, expected: str) -> PaprError:
    """What to raise of an input that no proposal can look at."""
    from torch.fx import Proxy

    if isinstance(pixels, Proxy):
        return PrunedModelError(TRACED_BY_FX)
    return SelectionError(f"expected {expected}, got {describe(pixels)}")


def is_pixels(pixels: object, axes: int) -> bool:
    """Whether this is a floating tensor of so many axes."""
    return isinstance(pixels, Tensor) and pixels.ndim == axes and pixels.is_floating_point()


def cover(pixels: Tensor, area: tuple[int, int]) -> Tensor:
    """Cut or zero-pad at the bottom and right, as patch embeddings do, to the area of the grid."""
    height, width = pixels.shape[-2:]
    if not torch.compiler.is_compiling() and area == (height, width):
        return pixels
    # Compiled code is not asked whether the two are equal: each answer would be another graph.
    covered = pixels[..., : area[0], : area[1]]
    if area[0] > height or area[1] > width:
        covered = F.pad(covered, (0, max(0, area[1] - width), 0, max(0, area[0] - height)))
    return covered


def as_module(site: Site) -> nn.Module:
    """The site as the module it is grafted on."""
    assert isinstance(site, nn.Module)
    return site
