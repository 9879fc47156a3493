"""A host whose images have budgets of their own: one pass for each number of patches that occurs.

The root module is a site. The proposal looks at the whole batch once; then the original forward
runs on the images of one budget at a time, all batches dense, and the answers go back in order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papr.budgets import budgets, ladder
from papr.errors import PrunedModelError, SelectionError
from papr.graft import Grafted
from papr.hosts.sites import Entry, Site, _module, is_pixels
from papr.selecting import BudgetedSelection, Selection
from papr.significance import describe, to_grid


class Grouped(Site):
    """The root of a host: splits the batch by budget, and joins the answers."""

    # the groups follow from the pixels: there is no one graph of them
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original forward answers, in the order of the images."""
        state = self._papr
        if state.given is not None:  # a wrapper of the same host called itself
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        _refuse_tracing()
        pixels, entry = _pixels(args, kwargs), _entry(self)
        seen, grid = entry._seen(pixels)
        raw = state.raw_scores(seen, _module(entry))
        share, target = state.config.share, state.config.keep
        assert share is not None
        counts = budgets(to_grid(raw, grid), share, target)
        answers, rows, found = [], [], []
        for count in counts.unique().tolist() or ladder(target, math.prod(grid))[:1]:
            chosen = (counts == count).nonzero()[:, 0]
            some_args, some_kwargs = (_rows(given, chosen, len(pixels)) for given in (args, kwargs))
            with state.giving(raw[chosen.to(raw.device)], count):
                answers.append(super().forward(*some_args, **some_kwargs))  # type: ignore[misc]
            rows.append(chosen)
            part = state.passes.last()
            if state.config.trace and part is not None and part[0] is not None:
                found.append(Selection(part[0][0], grid, part[0][1]))
        order = torch.cat(rows)
        if found:
            state.keep_groups(BudgetedSelection(tuple(found), tuple(rows), counts))
        return _join(answers, order.argsort(), [len(r) for r in rows])


def _refuse_tracing() -> None:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        raise PrunedModelError(
            "expected one number of patches to trace or export a host, got a budget for each "
            "image: papr.prune it with a fixed keep"
        )


def _pixels(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if is_pixels(value, 4):
            pixels: Tensor = value
            return pixels
    given = ", ".join(describe(v) for v in (*args, *kwargs.values()))
    raise SelectionError(f"expected floating pixels (B, C, H, W), got {given or 'nothing'}")


def _entry(root: Site) -> Entry:
    """The entry below the root, which knows how the grid follows from the pixels."""
    assert isinstance(root, nn.Module)
    return next(m for m in root.modules() if isinstance(m, Entry) and isinstance(m, Grafted))


def _rows(value: Any, chosen: Tensor, batch: int) -> Any:
    """The part of an argument that belongs to the chosen images."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return value[chosen.to(value.device)]
    if isinstance(value, dict):
        return {key: _rows(item, chosen, batch) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_rows(item, chosen, batch) for item in value)
    return value


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
