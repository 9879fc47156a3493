"""What a host makes of its pixels before its first block, overheard: its grid and its tokens.

A dense host is grafted like a pruned one, but nothing is dropped: the pass ends where its tokens
would be, and costs no more than that.
"""

from typing import Any, NamedTuple, NoReturn

from torch import Tensor, nn

from papr.errors import UnsupportedModelError
from papr.graft import Grafted, graft
from papr.hosts import Plan
from papr.hosts.hf_common import EmbeddingsEntry
from papr.hosts.sites import DropCut
from papr.hosts.state import HostFacts
from papr.hosts.timm_eva import IndexedCut
from papr.hosts.timm_vit import PatchDropCut


class Patches(NamedTuple):
    """How a host divides its pixels.

    Attributes:
        grid: the patch grid, (H, W) or (T, H, W); of the first stage, where there are stages.
        covered: the pixels that the grid covers, (height, width) or (frames, height, width).
    """

    grid: tuple[int, ...]
    covered: tuple[int, ...]

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = (a // b for a, b in zip(self.covered[-2:], self.grid[-2:], strict=True))
        return height, width


class _Heard(Exception):  # noqa: N818
    """Not an error: carries out of a forward pass what it was run for."""


class _Ear:
    """Stands where a pruned host has its state; prunes nothing."""

    dense = True

    def __init__(self, facts: HostFacts, only_patches: bool) -> None:
        self.facts = facts
        self.only_patches = only_patches

    def look(self, pixels: Tensor, grid: tuple[int, ...], entry: nn.Module) -> None:
        """Where the proposal would look."""
        if self.only_patches:
            raise _Heard(Patches(tuple(grid), tuple(pixels.shape[2:])))

    def settle(self, module: nn.Module) -> None:
        """There is no proposal to settle."""


def _tokens_out(module: nn.Module, args: Any, tokens: Tensor) -> NoReturn:
    """On an entry that returns the positioned tokens: those, after all hooks that are there."""
    raise _Heard(tokens)


class _TokensIn(Grafted):
    """On a module that the positioned tokens go into."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """The tokens, and no further."""
        raise _Heard(tokens)


def prepare_patches(host: nn.Module, plan: Plan) -> None:
    """Graft a dense host (a twin) so that `patches` can be overheard."""
    path, behaviour = plan.entry
    graft(host, path, behaviour, _Ear(plan.facts, only_patches=True))


def patches(host: nn.Module, plan: Plan, pixels: Tensor, **options: Any) -> Patches:
    """How a prepared host divides these pixels.

    Args:
        host: from `prepare_patches`.
        plan: of that host.
        pixels: as the host takes them.
        **options: what else its forward takes.
    """
    heard: Patches = _listen(host, plan, pixels, options)
    return heard


def prepare_tokens(host: nn.Module, plan: Plan) -> None:
    """Graft a dense host (a twin) so that `tokens` can be overheard.

    Raises:
        UnsupportedModelError: the host drops no tokens, so there is no place where they would be.
    """
    path, behaviour = plan.entry
    if issubclass(behaviour, EmbeddingsEntry) and not plan.facts.stages:
        host.get_submodule(path).register_forward_hook(_tokens_out)
        return
    dropping = (DropCut, PatchDropCut, IndexedCut)
    found = [cut.path for cut in plan.cuts if issubclass(cut.behaviour, dropping)]
    if not found:
        raise UnsupportedModelError(
            f"expected a host whose tokens are dropped, got a {plan.family}, which keeps its grid"
        )
    graft(host, found[0], _TokensIn, _Ear(plan.facts, only_patches=False))


def tokens(host: nn.Module, plan: Plan, pixels: Tensor, **options: Any) -> Tensor:
    """The positioned tokens of a prepared host as they stand at the cut, (B, P + N, C)."""
    heard: Tensor = _listen(host, plan, pixels, options)
    return heard


def _listen(host: nn.Module, plan: Plan, pixels: Tensor, options: dict[str, Any]) -> Any:
    try:
        plan.features(host, pixels, **options)
    except _Heard as heard:
        return heard.args[0]
    raise UnsupportedModelError(
        f"expected the pixels of a {plan.family} to pass {plan.entry[0]}, they did not"
    )
