"""Skip: the grid stays dense; only selected positions go through the expensive per-token part.

Source: Mahmud et al., ECCV 2024 (arXiv 2403.16020), Sec. 3: MLPs of Swin (skip) and of ConvNeXt
(skip-and-zero).
"""

import math

import torch
from torch import Tensor

from papr.errors import SelectionError
from papr.selecting import Selection, spread_rows, take_rows
from papr.significance import describe


def take_from_grid(x: Tensor, selection: Selection) -> Tensor:
    """The selected positions of a dense grid, channels last.

    Args:
        x: (B, N, C) or (B, H, W, C), N = H * W patches on `selection.grid`.
        selection: what is kept.

    Returns:
        (B, K, C) or (B, 1, K, C), of as many axes as `x`: norms, linear layers and norms over
        space work on it as on a grid.

    Raises:
        SelectionError: `x` is not on the selection's grid.
    """
    _check(x, selection, x.shape[1:-1])
    kept = take_rows(x.flatten(1, -2), selection.indices)
    return kept if x.ndim == 3 else kept.unsqueeze(1)


def put_on_grid(kept: Tensor, selection: Selection) -> Tensor:
    """The inverse, zero elsewhere: (B, K, C) to (B, N, C), or (B, 1, K, C) to (B, H, W, C)."""
    batch, channels = kept.shape[0], kept.shape[-1]
    dense = spread_rows(kept.flatten(1, -2), selection.indices, math.prod(selection.grid))
    return dense if kept.ndim == 3 else dense.view(batch, *selection.grid, channels)


def take_from_map(x: Tensor, selection: Selection) -> Tensor:
    """As `take_from_grid` with channels first: (B, C, H, W) to (B, C, 1, K)."""
    return take_from_grid(x.permute(0, 2, 3, 1), selection).permute(0, 3, 1, 2)


def put_on_map(kept: Tensor, selection: Selection) -> Tensor:
    """As `put_on_grid` with channels first: (B, C, 1, K) to (B, C, H, W)."""
    return put_on_grid(kept.permute(0, 2, 3, 1), selection).permute(0, 3, 1, 2)


def zero_elsewhere(x: Tensor, selection: Selection) -> Tensor:
    """A map (B, C, H, W) that is zero where nothing was selected."""
    _check(x, selection, x.shape[2:])
    # not by `Selection.mask`: to bool and back would be two operations more in every block
    dense = x.new_zeros(x.shape[0], math.prod(selection.grid))
    mask = dense.scatter(1, selection.indices, 1.0).view(-1, 1, *x.shape[2:])
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x * mask
    return x.mul_(mask)  # a block's output is nobody else's yet


def _check(x: Tensor, selection: Selection, space: torch.Size) -> None:
    grid, batch = selection.grid, selection.indices.shape[0]
    if tuple(space) not in (tuple(grid), (math.prod(grid),)) or x.shape[0] != batch:
        raise SelectionError(
            f"expected {batch} x {math.prod(grid)} patches of the grid {grid}, got {describe(x)}"
        )
