"""Window attention among kept tokens only, beyond the paper: attention="kept".

Queries, keys, values and the projection are computed for selected tokens alone. Between them the
tokens stand in their windows, where pruned ones are masked as keys: windows stay of one size, so
that shapes do not depend on the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.counts import ceiling
from papr.selecting import flat_rows

Pair = tuple[int, int]


def window_slots(
    grid: Pair, window: Pair, shift: Pair, device: torch.device, padded_first: bool = False
) -> tuple[Tensor, int]:
    """Where each patch of a grid stands after the cyclic shift, window by window.

    Args:
        grid: (H, W) in patches; padded at the bottom and right to whole windows.
        window: (height, width) of a window in patches.
        shift: how far the grid is rolled up and to the left beforehand.
        device: where the answer is wanted.
        padded_first: whether the padded grid is rolled, as in torchvision and transformers, or the
            rolled grid is padded, as in timm.

    Returns:
        (H * W,) int64: window * area + place in the window; and how many windows there are.
    """
    down, across = ceiling(grid[0], window[0]), ceiling(grid[1], window[1])
    around = (down * window[0], across * window[1]) if padded_first else grid
    rows = (torch.arange(grid[0], device=device) - shift[0]) % around[0]
    columns = (torch.arange(grid[1], device=device) - shift[1]) % around[1]
    windows = (rows // window[0] * across).unsqueeze(1) + columns // window[1]
    places = (rows % window[0] * window[1]).unsqueeze(1) + columns % window[1]
    return (windows * (window[0] * window[1]) + places).flatten(), down * across


def attend_in_windows(
    qkv: Tensor,
    indices: Tensor,
    bias: Tensor,
    *,
    heads: int,
    grid: Pair,
    window: Pair,
    shift: Pair,
    padding: Tensor,
    padded_first: bool = False,
    cosine: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of kept tokens to the kept tokens of their own window.

    Args:
        qkv: queries, keys and values of kept tokens, (B, K, 3 * heads * d) in that order.
        indices: (B, K) where they stand on the grid.
        bias: added to the logits, (1 or windows, heads, area, area).
        heads: how many heads there are.
        grid: (H, W) in patches.
        window: (height, width) of a window in patches.
        shift: how far the grid is rolled up and to the left beforehand.
        padding: what stands where the grid is padded to whole windows, (3 * heads * d,): hosts
            attend to that.
        padded_first: see `window_slots`.
        cosine: (heads, 1, 1), factor on the cosine of queries and keys; None for their product
            times d ** -0.5.
        dropout: of the attention weights.

    Returns:
        (B, K, heads * d).
    """
    batch, kept, width = qkv.shape
    area = window[0] * window[1]
    slots, windows = window_slots(grid, window, shift, qkv.device, padded_first)
    places = windows * area
    flat = flat_rows(slots[indices], places)

    rows = qkv.reshape(batch * kept, width)
    if cosine is not None:  # before pruned places become zeros, which have no direction
        rows, padding = _directions(rows, heads, cosine), _directions(padding, heads, cosine)
    if places > grid[0] * grid[1]:
        dense = padding.expand(batch * places, -1).index_copy(0, flat, rows)
    else:
        dense = rows.new_zeros(batch * places, width).index_copy_(0, flat, rows)
    dense = dense.view(batch * windows, area, 3, heads, width // (3 * heads))
    q, k, v = dense.permute(2, 0, 3, 1, 4).unbind()

    # scatter rather than index_fill, which OpenVINO does not know
    # not -inf, in the dtype of attention: a window without kept tokens would answer NaN, and its
    # gradient would spread
    never = torch.finfo(q.dtype).min / 4
    pruned = bias.new_zeros(places).scatter(0, slots, never).expand(batch, -1).flatten()
    pruned = pruned.scatter(0, flat, 0.0).view(batch, windows, 1, 1, area)
    mask = (bias + pruned).view(batch * windows, heads, area, area).to(q.dtype)
    scale = 1.0 if cosine is not None else None
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale)
    out = out.transpose(1, 2).reshape(batch * places, width // 3)
    return out.index_select(0, flat).view(batch, kept, width // 3)


def cosine_factor(logit_scale: Tensor) -> Tensor:
    """Swin V2's learnt factor on cosines, at most 100: (heads, 1, 1).

    Source: Liu et al., CVPR 2022 (arXiv 2111.09883), Sec. 3.3.
    """
    return logit_scale.clamp(max=math.log(100.0)).exp()


def continuous_bias(table: Tensor, index: Tensor) -> Tensor:
    """Swin V2's position bias from what its small network answers.

    Source: Liu et al., CVPR 2022 (arXiv 2111.09883), Sec. 3.3.

    Args:
        table: a value for each relative position and head, (..., heads).
        index: (area, area) int64, which relative position two places of a window have.

    Returns:
        (1, heads, area, area), between 0 and 16.
    """
    bias = table.flatten(0, -2)[index].permute(2, 0, 1)
    return 16 * torch.sigmoid(bias).unsqueeze(0)


def shift_mask(grid: Pair, window: Pair, shift: Pair, device: torch.device) -> Tensor:
    """What hosts add to the logits of a shifted grid: -100 between patches that the roll joined.

    Args:
        grid: (H, W) in patches, before padding to whole windows.
        window: (height, width) of a window in patches.
        shift: how far the grid is rolled; 0 on an axis for not at all.
        device: where the answer is wanted.

    Returns:
        (windows, area, area), 0 or -100.
    """
    regions = []
    for side, w, s in zip(grid, window, shift, strict=True):
        padded = ceiling(side, w) * w
        place = torch.arange(padded, device=device)
        regions.append((place >= padded - w).long() + (place >= padded - s).long())
    region = regions[0].unsqueeze(1) * 3 + regions[1]
    down, across = region.shape[0] // window[0], region.shape[1] // window[1]
    region = region.view(down, window[0], across, window[1]).transpose(1, 2)
    region = region.reshape(down * across, window[0] * window[1])
    apart = region.unsqueeze(1) != region.unsqueeze(2)
    return apart.float() * -100.0


def _directions(qkv: Tensor, heads: int, factor: Tensor) -> Tensor:
    """Queries and keys of each head at length 1, queries times a factor (heads, 1, 1)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    eps = max(1e-12, torch.finfo(qkv.dtype).tiny)  # 1e-12 is 0 in float16
    q = F.normalize(q, dim=-1, eps=eps) * factor.to(q.dtype).flatten(1)
    k = F.normalize(k, dim=-1, eps=eps)
    return torch.stack([q.to(v.dtype), k.to(v.dtype), v], dim=-3).flatten(-3)
