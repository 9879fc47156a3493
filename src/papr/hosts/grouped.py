"""A host whose images have budgets of their own: one pass for each number of patches that occurs.

The root module is a site. The proposal looks at the whole batch once; then the original forward
runs on the images of one budget at a time, all batches dense, and the answers go back in order.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from papr.budgets import budgets, from_zero, ladder
from papr.errors import PaprError, PrunedModelError, SelectionError
from papr.graft import Grafted
from papr.hosts.explanations import PASSED_BY
from papr.hosts.sites import Entry, Site, as_module, is_pixels
from papr.hosts.state import HostState
from papr.selecting import BudgetedSelection, Selection
from papr.significance import describe, to_grid

Function = TypeVar("Function", bound=Callable[..., Any])
# What is compiled is the original forward, a graph for each number of patches, and the proposal.
# The groups follow from the pixels: what makes them would be fragments of graphs, and those cost
# more than they save.
_eager = cast("Callable[[Function], Function]", torch.compiler.disable)
_eager_itself = cast(
    "Callable[[Function], Function]", partial(torch.compiler.disable, recursive=False)
)


class Grouped(Site):
    """The root of a host: splits the batch by budget, and joins the answers."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the original forward's signature: transformers' Trainer drops what is not in it."""
        super().__init_subclass__(**options)

        def forward(self: Grouped, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_dynamo_compiling():
                _refuse_tracing()
            return self.by_budget(*args, **kwargs)

        shown: Any = forward
        shown.__signature__ = inspect.signature(super().forward)  # type: ignore[misc]
        cls.forward = shown  # type: ignore[attr-defined]

    @_eager_itself
    def by_budget(self, *args: Any, **kwargs: Any) -> Any:
        """What the original forward answers, in the order of the images."""
        state = self._papr
        if state.given is not None:  # a wrapper of the same host called itself
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if dist.is_available() and dist.is_initialized():  # there are other processes
            check_unsharded(as_module(self))
        state.check_sites()
        pixels, entry = _pixels(args, kwargs), _entry(self)
        seen, grid = entry.seen(pixels)
        raw = state.raw_scores(seen, as_module(entry))
        counts, groups = _groups(raw, grid, state)
        answers: list[Any] = []
        found: list[Selection] = []
        for count, chosen in groups:
            some_args, some_kwargs = (_rows(given, chosen, len(pixels)) for given in (args, kwargs))
            with state.giving(_rows(raw, chosen, len(pixels)), count):
                answers.append(super().forward(*some_args, **some_kwargs))  # type: ignore[misc]
            found += _kept(state, grid)
        rows = [chosen for _, chosen in groups]
        if found:
            state.keep_groups(BudgetedSelection(tuple(found), tuple(rows), counts))
        return _join(answers, torch.cat(rows).argsort(), [len(r) for r in rows])


@_eager
def _groups(
    raw: Tensor, grid: tuple[int, ...], state: HostState
) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Each image's budget, (B,); and by budget which images have it, at least one group."""
    share, target = state.config.share, state.config.keep
    assert share is not None
    counts = budgets(from_zero(to_grid(raw, grid), state.proposal), share, target)
    occurring = counts.unique().tolist() or ladder(target, math.prod(grid))[:1]
    return counts, [(count, (counts == count).nonzero()[:, 0]) for count in occurring]


@_eager
def _kept(state: HostState, grid: tuple[int, ...]) -> list[Selection]:
    """What the group kept that has just run; nothing where nobody will ask."""
    part = state.passes.last()
    if part is None or part[0] is None:
        return []
    if not state.passes.is_taken(part[0]):
        raise PrunedModelError(PASSED_BY)
    if not state.config.trace:
        return []
    return [Selection(part[0][0], grid, part[0][1])]


#: Their forward gathers weights from other processes: FSDP2's and FSDP1's.
_SHARDED = ("FSDPModule", "FullyShardedDataParallel")


def check_unsharded(host: nn.Module, kind: type[PaprError] = PrunedModelError) -> None:
    """See that no part of a host waits for other processes in its forward.

    How many passes a batch takes follows from its images, and so differs from process to process:
    they would wait for one another for ever.

    Args:
        host: pruned, or about to be.
        kind: of the error.

    Raises:
        PrunedModelError: or `kind`: a part is sharded.
    """
    for path, module in host.named_modules():
        if any(base.__name__ in _SHARDED for base in type(module).__mro__):
            raise kind(
                "expected an unsharded host for a budget for each image, since processes would "
                f"make different numbers of passes and wait for each other for ever, got "
                f"{path or type(host).__name__} sharded by FSDP: papr.prune it with a fixed keep"
            )


def _refuse_tracing() -> None:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        raise PrunedModelError(
            "expected one number of patches to trace or export a host, got a budget for each "
            "image: papr.prune it with a fixed keep"
        )


@_eager
def _pixels(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if is_pixels(value, 4):
            pixels: Tensor = value
            return pixels
    given = ", ".join(describe(v) for v in (*args, *kwargs.values()))
    raise SelectionError(f"expected floating pixels (B, C, H, W), got {given or 'nothing'}")


@_eager
def _entry(root: Site) -> Entry:
    """The entry below the root, which knows how the grid follows from the pixels."""
    assert isinstance(root, nn.Module)
    found = [m for m in root.modules() if isinstance(m, Entry) and isinstance(m, Grafted)]
    if not found:
        raise PrunedModelError(
            "expected the module where pixels come in as papr.prune left it, got none that is "
            "pruned (papr.unprune of a part?): papr.prune the whole model again"
        )
    return found[0]


@_eager
def _rows(value: Any, chosen: Tensor, batch: int) -> Any:
    """The part of an argument that belongs to the chosen images."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return value[chosen.to(value.device)]
    if isinstance(value, dict):
        return {key: _rows(item, chosen, batch) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_rows(item, chosen, batch) for item in value)
    return value


@_eager
def _join(parts: list[Any], order: Tensor, sizes: list[int]) -> Any:
    """One answer of all groups': tensors by their first axis, what holds tensors item by item."""
    first = parts[0]
    if isinstance(first, Tensor):
        return _join_tensors(parts, order, sizes)
    if isinstance(first, Mapping):  # transformers' outputs too, which take their fields by name
        joined = {key: _join([part[key] for part in parts], order, sizes) for key in first}
        return type(first)(**joined) if type(first) is not dict else joined
    if isinstance(first, tuple | list):
        items = [_join(list(group), order, sizes) for group in zip(*parts, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _join_tensors(parts: list[Tensor], order: Tensor, sizes: list[int]) -> Tensor:
    """Groups' answers (group, ...) to (B, ...) in the order of the images."""
    fits = all(part.ndim and len(part) == size for part, size in zip(parts, sizes, strict=True))
    if not fits or len({part.shape[1:] for part in parts}) > 1:
        raise PrunedModelError(
            "expected answers (B, ...) alike for all images, got "
            f"{', '.join(describe(part) for part in parts[:2])} of images with budgets of their "
            "own: ask for logits or pooled features only, or papr.prune with a fixed keep"
        )
    return torch.cat(parts)[order.to(parts[0].device)]
