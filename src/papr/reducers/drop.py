"""Drop: keep the prefix tokens and the selected patch tokens, forget the rest.

Source: Mahmud et al., ECCV 2024 (arXiv 2403.16020), Sec. 3: one cut, after the position embedding
is added and before the first block.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from papr.errors import SelectionError
from papr.selecting import Selection, gather, kept_count, select
from papr.significance import describe, significance_map


def drop(tokens: Tensor, selection: Selection, prefix_tokens: int = 0) -> Tensor:
    """Keep what the selection keeps.

    Args:
        tokens: (B, prefix_tokens + N, C), N patches on `selection.grid`.
        selection: the kept patches.
        prefix_tokens: how many leading tokens are never dropped.

    Returns:
        (B, prefix_tokens + K, C).

    Raises:
        SelectionError: the tokens are not those of the selection's grid.
    """
    expected = prefix_tokens + math.prod(selection.grid)
    batch = selection.indices.shape[0]
    if tokens.ndim != 3 or tokens.shape[1] != expected or tokens.shape[0] != batch:
        raise SelectionError(
            f"expected tokens ({batch}, {expected}, C): {prefix_tokens} prefix tokens and patches "
            f"of the grid {selection.grid}, got {describe(tokens)}"
        )
    return gather(tokens, selection.indices, prefix_tokens)


def apply_papr(
    x: Tensor,
    f: Tensor,
    z: float,
    *,
    grid: Sequence[int] | None = None,
    prefix_tokens: int = 1,
) -> Tensor:
    """The method on your own tensors: tokens and a feature map in, fewer tokens out.

    Args:
        x: tokens after the position embedding, (B, prefix_tokens + N, C).
        f: the proposal's feature map, (B, K, h, w).
        z: fraction of the N patches to keep, 0 < z <= 1.
        grid: the patch grid (H, W), H * W = N. Left out, it is the one grid of N patches with the
            same aspect ratio as `f`.
        prefix_tokens: leading tokens that always stay (class, distillation, registers).

    Returns:
        (B, prefix_tokens + K, C), patches in their original order; K = z * N rounded down, at
        least 1.

    Raises:
        SelectionError: shapes do not fit, z is out of range, or the grid cannot be inferred.
    """
    if x.ndim != 3 or f.ndim != 4 or x.shape[0] != f.shape[0]:
        raise SelectionError(
            "expected tokens (B, N, C) and features (B, K, h, w) of one batch, "
            f"got {describe(x)} and {describe(f)}"
        )
    if not 0 < z <= 1:
        raise SelectionError(f"expected 0 < z <= 1, got {z}")
    patches = x.shape[1] - prefix_tokens
    if grid is None:
        grid = _grid_like(patches, f.shape[2], f.shape[3])
    elif len(grid) != 2 or math.prod(grid) != patches:
        raise SelectionError(
            f"expected a grid (H, W) of {patches} patches ({x.shape[1]} tokens less "
            f"{prefix_tokens} prefix tokens), got {tuple(grid)}"
        )
    chosen = select(significance_map(f, grid), kept_count(z, patches))
    return drop(x, chosen, prefix_tokens)


def _grid_like(patches: int, height: int, width: int) -> tuple[int, int]:
    """The grid of `patches` patches with the aspect ratio height : width."""
    for rows in range(1, patches + 1):
        if patches % rows == 0 and rows * width == (patches // rows) * height:
            return rows, patches // rows
    raise SelectionError(
        f"no grid of {patches} patches has the aspect ratio of a {height} x {width} feature map: "
        "pass grid=(H, W), and prefix_tokens if it is not 1"
    )
