"""Window attention among kept tokens only, beyond the paper: attention="kept".

Queries, keys, values and the projection are computed for selected tokens alone. Between them the
tokens stand in their windows, where pruned ones are masked as keys: windows stay of one size, so
that shapes do not depend on the image.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.counts import ceiling
from papr.selecting import Kept, flat_rows

Pair = tuple[int, int]

# not -inf, and within float16 with what is added to it: a window without kept tokens would answer
# NaN, and its gradient would spread
_NEVER = -3e4


class Windows(NamedTuple):
    """Where kept tokens stand in the windows of a stage: the same for all blocks of one shift.

    Attributes:
        window: (height, width) of a window in patches; its area is their product.
        places: (B * K,) int64, of each kept token, its place among all B * windows * area.
        sources: (B * windows * area,) int64, whose queries, keys and values stand at each place:
            of the kept token there, else of any of its image, whose key is masked. With `padding`
            those of what stands in padding are 0, and of kept tokens 1 and on.
        mask: (B * windows, 1, 1 or area, area), what is added to the logits of all heads. On CUDA
            it is wider, see `_aligned`.
        padding: whether the grid is padded; hosts attend to what stands there.
    """

    window: Pair
    places: Tensor
    sources: Tensor
    mask: Tensor
    padding: bool


def windows_of(
    kept: Kept,
    window: Pair,
    shift: Pair,
    apart: Tensor | None,
    like: Tensor,
    padded_first: bool = False,
) -> Windows:
    """Find the windows of kept tokens.

    Args:
        kept: which there are.
        window: (height, width) of a window in patches.
        shift: how far the grid is rolled up and to the left beforehand.
        apart: what the host adds to the logits of a shifted grid, (windows, area, area).
        like: a tensor of the dtype and device that the mask is to have.
        padded_first: whether the padded grid is rolled, as in torchvision and transformers, or the
            rolled grid is padded, as in timm.
    """
    slots, count = window_slots(kept.grid, window, shift, like.device, padded_first)
    batch, number, area = kept.indices.shape[0], kept.rows.shape[0], window[0] * window[1]
    total = count * area
    places = flat_rows(slots[kept.indices], total)
    padding = count * area > kept.grid[0] * kept.grid[1]
    # scatter rather than index_fill, which OpenVINO does not know
    standing = torch.arange(int(padding), number + padding, device=like.device)
    if padding:
        others = standing.new_zeros(batch * total)
        mask = like.new_zeros(total).scatter(0, slots, _NEVER).repeat(batch)
    else:
        others = _any_of_the_image(standing.view(kept.indices.shape), total)
        mask = like.new_full((batch * total,), _NEVER)
    mask = mask.scatter(0, places, 0.0).view(batch, count, 1, 1, area)
    if apart is not None:
        mask = mask + apart.to(mask.dtype).unsqueeze(1)
    mask = _widened(mask, _aligned(area, like.device))
    return Windows(window, places, others.scatter(0, places, standing), mask.flatten(0, 1), padding)


def _any_of_the_image(rows: Tensor, total: int) -> Tensor:
    """For each place of an image one of its own rows (B, K), (B * total,).

    Not of another image: 0 times what is not finite would make this one's answer none either.
    """
    if not torch.is_grad_enabled():
        return rows[:, :1].expand(-1, total).flatten()
    # in turn, that gradients of 0 do not queue for one row
    return (rows[:, :1] + torch.arange(total, device=rows.device) % rows.shape[1]).flatten()


def window_slots(
    grid: tuple[int, ...], window: Pair, shift: Pair, device: torch.device, padded_first: bool
) -> tuple[Tensor, int]:
    """Where each patch of a grid stands after the cyclic shift, window by window.

    Args as of `windows_of`.

    Returns:
        (H * W,) int64: window * area + place in the window; and how many windows there are.
    """
    down, across = ceiling(grid[0], window[0]), ceiling(grid[1], window[1])
    total = down * across * window[0] * window[1]
    slots = torch.arange(total, device=device).view(down, across, *window).transpose(1, 2)
    slots = slots.reshape(down * window[0], across * window[1])
    if not padded_first:
        slots = slots[: grid[0], : grid[1]]
    if any(shift):
        slots = slots.roll(shift, (0, 1))
    return slots[: grid[0], : grid[1]].flatten(), down * across


def attend_in_windows(
    rows: Sequence[Tensor],
    bias: Tensor,
    windows: Windows,
    *,
    heads: int,
    cosine: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of kept tokens to the kept tokens of their own window.

    Args:
        rows: queries, keys and values of `with_padding`'s rows: (M, 3 * heads * d) in that order,
            or three of (M, heads * d).
        bias: added to the logits, (1, heads, area, area).
        windows: where they stand.
        heads: how many heads there are.
        cosine: (heads, 1, 1), factor on the cosine of queries and keys; None for their product
            times d ** -0.5.
        dropout: of the attention weights.

    Returns:
        (B * K, heads * d).
    """
    width = sum(part.shape[1] for part in rows) // 3
    if cosine is not None:
        rows = _directions(rows, cosine)
    area, count = windows.window[0] * windows.window[1], windows.mask.shape[0]
    parts: list[Tensor] = []
    for part in rows:
        dense = part.index_select(0, windows.sources)
        dense = dense.view(count, area, part.shape[1] // width, heads, width // heads)
        parts += dense.permute(2, 0, 3, 1, 4).unbind()
    q, k, v = parts
    mask = _widened(bias, windows.mask.shape[3]) + windows.mask
    mask = mask.to(q.dtype)[..., :area]
    scale = 1.0 if cosine is not None else None
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).reshape(count * area, width).index_select(0, windows.places)


def _aligned(area: int, device: torch.device) -> int:
    """How far apart the rows of a mask are to lie in memory.

    CUDA's memory-efficient attention asks for multiples of 8, and copies the mask of all windows
    and heads where it gets another; the bias and the mask of all heads, before they are added, are
    small.
    """
    return area + -area % 8 if device.type == "cuda" else area


def _widened(mask: Tensor, width: int) -> Tensor:
    """With zeros on the right; as it is where nothing is wanted, which `F.pad` would copy."""
    missing = width - mask.shape[-1]
    return F.pad(mask, (0, missing)) if missing else mask


def with_padding(rows: Tensor, windows: Windows) -> Tensor:
    """Kept tokens (B * K, C), and before them, where the grid is padded, what stands there: zeros.

    Hosts attend to what they make of these.
    """
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows]) if windows.padding else rows


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


def _directions(rows: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Queries and keys of each head at length 1, queries times a factor (heads, 1, 1); values."""
    heads = factor.shape[0]
    if len(rows) == 1:
        width = rows[0].shape[1] // 3
        q, k = _of_length_1(rows[0][:, : 2 * width], 2 * heads).chunk(2, dim=1)
        v = rows[0][:, 2 * width :]
    else:
        q, k, v = _of_length_1(rows[0], heads), _of_length_1(rows[1], heads), rows[2]
    q = q * factor.to(q.dtype).flatten(1)
    return [part.flatten(1).to(v.dtype) for part in (q, k)] + [v]


def _of_length_1(rows: Tensor, heads: int) -> Tensor:
    """Each head's part of the rows, (M, heads, d)."""
    eps = max(1e-12, torch.finfo(rows.dtype).tiny)  # 1e-12 is 0 in float16
    return F.normalize(rows.unflatten(1, (heads, rows.shape[1] // heads)), dim=-1, eps=eps)
