"""Skip: the grid stays dense; only selected positions go through the expensive per-token part.

Source: Mahmud et al., ECCV 2024 (arXiv 2403.16020), Sec. 3: MLPs of Swin (skip) and of ConvNeXt
(skip-and-zero).
"""

import math

import torch
from torch import Tensor

from papr.errors import SelectionError
from papr.selecting import Kept
from papr.significance import describe


def take_from_grid(x: Tensor, kept: Kept) -> Tensor:
    """The selected positions of a dense grid, channels last.

    By one index over the whole batch: rows are then copied whole, several times faster on a CPU
    than `gather`, whose index counts elements.

    Args:
        x: (B, N, C) or (B, H, W, C), N = H * W patches on `kept.grid`.
        kept: what is kept.

    Returns:
        (B, K, C) or (B, 1, K, C), of as many axes as `x`: norms, linear layers and norms over
        space work on it as on a grid.

    Raises:
        SelectionError: `x` is not on the selection's grid.
    """
    _check(x, kept, x.shape[1:-1])
    batch, count = kept.indices.shape
    # flatten, here and below: a view with -1 cannot be had of an empty batch
    rows = x.flatten(0, -2).index_select(0, kept.rows)
    return rows.view(batch, *[1] * (x.ndim - 3), count, x.shape[-1])


def put_on_grid(tokens: Tensor, kept: Kept) -> Tensor:
    """The inverse, zero elsewhere: (B, K, C) to (B, N, C), or (B, 1, K, C) to (B, H, W, C)."""
    batch, channels, patches = tokens.shape[0], tokens.shape[-1], math.prod(kept.grid)
    zeros = tokens.new_zeros(batch * patches, channels)  # nobody else's: rows go in without a copy
    zeros.index_copy_(0, kept.rows, tokens.flatten(0, -2))
    return zeros.view(batch, *([patches] if tokens.ndim == 3 else kept.grid), channels)


def put_into_grid(tokens: Tensor, kept: Kept, into: Tensor) -> Tensor:
    """The grid `into` (B, H, W, C), its selected positions replaced by `tokens` (B, 1, K, C)."""
    flat = into.flatten(0, -2).index_copy(0, kept.rows, tokens.flatten(0, -2))
    return flat.view(into.shape)


def take_from_map(x: Tensor, kept: Kept) -> Tensor:
    """As `take_from_grid` with channels first: (B, C, H, W) to (B, C, 1, K)."""
    return take_from_grid(x.permute(0, 2, 3, 1), kept).permute(0, 3, 1, 2)


def put_on_map(tokens: Tensor, kept: Kept) -> Tensor:
    """As `put_on_grid` with channels first: (B, C, 1, K) to (B, C, H, W)."""
    return put_on_grid(tokens.permute(0, 2, 3, 1), kept).permute(0, 3, 1, 2)


def mask_of_map(kept: Kept, dtype: torch.dtype) -> Tensor:
    """1 where something was selected, else 0: (B, 1, H, W), a factor on maps."""
    batch, patches = kept.indices.shape[0], math.prod(kept.grid)
    # not by `Selection.mask`: to bool and back would be two operations more
    zeros = torch.zeros(batch * patches, dtype=dtype, device=kept.rows.device)
    return zeros.scatter(0, kept.rows, 1.0).view(batch, 1, *kept.grid)


def zero_elsewhere(x: Tensor, mask: Tensor) -> Tensor:
    """A block's answer (B, C, H, W) that is zero where nothing was selected; see `mask_of_map`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x * mask
    return x.mul_(mask)  # a block's output is nobody else's yet


def _check(x: Tensor, kept: Kept, space: torch.Size) -> None:
    grid, batch = kept.grid, kept.indices.shape[0]
    if tuple(space) not in (tuple(grid), (math.prod(grid),)) or x.shape[0] != batch:
        raise SelectionError(
            f"expected {batch} x {math.prod(grid)} patches of the grid {grid}, got {describe(x)}"
        )
