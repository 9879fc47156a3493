"""From a significance map to the patches that stay, and back to the grid.

Pure functions and one frozen record. Indices count patches row by row on the patch grid
(frame by frame first in video); prefix tokens are never counted.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from papr.counts import count_of
from papr.errors import SelectionError
from papr.significance import check_scores, describe

if TYPE_CHECKING:
    from PIL.Image import Image

#: What pruned patches can be filled with by name.
FILLS = ("zero", "nearest", "mean")


@dataclass(frozen=True, eq=False)
class Selection:
    """Which patches one forward pass kept.

    Attributes:
        indices: (B, K) int64, ascending, on the patch grid, prefix tokens not counted.
        grid: the patch grid, (H, W) or (T, H, W).
        scores: the significance map (B, *grid), float32; None where nothing was ranked
            (keep=1.0 runs no proposal).
        sources: (B, N) int64, which of the host's final patch tokens each patch of the grid ended
            in, prefix tokens not counted; -1 where its token was dropped. None where tokens keep
            their places (Swin, ConvNeXt) and in what `select` returns.
        tokens: M, how many patch tokens the host had in the end, where they merged, were pooled or
            were cut again; None where each kept patch is one token still.
    """

    indices: Tensor
    grid: tuple[int, ...]
    scores: Tensor | None = None
    sources: Tensor | None = None
    tokens: int | None = None

    def __repr__(self) -> str:
        batch, kept = self.indices.shape
        grid = " x ".join(map(str, self.grid))
        scored = "" if self.scores is not None else ", no scores"
        return f"Selection({kept} of {grid} patches, batch {batch}{scored})"

    def mask(self) -> Tensor:
        """The kept patches as a bool tensor (B, *grid), True where kept."""
        # of ones, not of True: torch.jit, OpenVINO and the older ONNX exporter know no such scatter
        flat = self.indices.new_zeros(self.indices.shape[0], math.prod(self.grid))
        return flat.scatter(1, self.indices, 1).bool().view(-1, *self.grid)

    def places(self, order: Tensor | None = None) -> Tensor:
        """Where each patch stands among the kept ones, (B, N) int64; -1 for pruned ones.

        Args:
            order: the kept patches (B, K) in the order they stand in; by default `indices`.
        """
        kept = self.indices if order is None else order
        nowhere = kept.new_full((kept.shape[0], math.prod(self.grid)), -1)
        standing = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape)
        return nowhere.scatter(1, kept, standing)

    def ranked(self) -> Tensor:
        """The kept patches by falling score, (B, K) int64.

        Raises:
            SelectionError: nothing was ranked.
        """
        if self.scores is None:
            raise SelectionError("expected scores to rank by, got a selection that kept all")
        scores = self.scores.flatten(1).gather(1, self.indices)
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return self.indices.gather(1, order)

    def left(self) -> Tensor:
        """As `mask`, without the patches whose tokens the host dropped later on, (B, *grid)."""
        mask = self.mask()
        return mask if self.sources is None else self.sources.view(mask.shape) >= 0

    def restore(self, tokens: Tensor, fill: float | str = 0.0) -> Tensor:
        """Put kept patch tokens back where they came from.

        Args:
            tokens: (B, K, C), in the order of `indices`, prefix tokens removed. Where tokens
                merged, were pooled or were cut again: the host's last ones (B, M, C), of which
                each patch gets the one that it ended in.
            fill: what pruned patches get: a value, or "zero", "nearest" (the nearest kept patch on
                the grid) or "mean" (of the image's kept patches).

        Returns:
            (B, C, *grid), dtype of `tokens`.

        Raises:
            SelectionError: `tokens` is not (B, K, C), or (B, M, C), for this selection.
        """
        if self.tokens is not None:
            return _spread(tokens, self, fill)
        batch, kept = self.indices.shape
        if tokens.ndim != 3 or tokens.shape[:2] != (batch, kept):
            raise SelectionError(
                f"expected the kept patch tokens ({batch}, {kept}, C) without prefix tokens, "
                f"got {describe(tokens)}"
            )
        channels = tokens.shape[-1]
        dense = _filled(tokens, self, fill)
        return dense.transpose(1, 2).reshape(batch, channels, *self.grid)

    def overlay(self, photo: Any, index: int = 0) -> "Image":
        """The photograph with what was pruned faded.

        Args:
            photo: what the model saw, cropped as it was: a path, a PIL image, an array (H, W, 3) of
                bytes or of floats from 0 to 1, or a tensor (3, H, W) from 0 to 1, before it was
                normalised. It may be larger or smaller.
            index: which image of the batch.

        Returns:
            A PIL image of the photograph's size.

        Raises:
            SelectionError: no such image in the batch, a selection of clips, no photograph, or one
                whose aspect ratio is off the grid's by more than a patch.
        """
        from papr.draw import overlay  # pictures need more than tensors

        return overlay(photo, self.mask(), index)


@dataclass(frozen=True, eq=False)
class BudgetedSelection:
    """Which patches one forward pass kept, where each image has a budget of its own.

    Attributes:
        groups: a selection for each number of patches that occurs.
        rows: which images of the batch each of these is of, (group,) int64.
        counts: how many patches each image keeps, (B,) int64.
    """

    groups: tuple[Selection, ...]
    rows: tuple[Tensor, ...]
    counts: Tensor

    @property
    def grid(self) -> tuple[int, ...]:
        """The patch grid."""
        return self.groups[0].grid

    @property
    def scores(self) -> Tensor:
        """The significance map (B, *grid), float32."""
        scores = [group.scores for group in self.groups]
        return self._in_order([s for s in scores if s is not None])

    @property
    def indices(self) -> Tensor:
        """Raises SelectionError: no tensor (B, K) holds them."""
        raise SelectionError(
            "expected one number of patches for indices (B, K), got budgets from "
            f"{int(self.counts.min())} to {int(self.counts.max())}: ask for .mask(), or .of(image)"
        )

    def mask(self) -> Tensor:
        """The kept patches as a bool tensor (B, *grid), True where kept."""
        return self._in_order([group.mask() for group in self.groups])

    def of(self, image: int) -> Selection:
        """The selection of one image of the batch, indices (1, K).

        Raises:
            SelectionError: there is no such image.
        """
        for group, rows in zip(self.groups, self.rows, strict=True):
            for place in (rows == image).nonzero()[:, 0].tolist():
                scores = None if group.scores is None else group.scores[place : place + 1]
                return Selection(group.indices[place : place + 1], group.grid, scores)
        raise SelectionError(f"expected an image from 0 to {len(self.counts) - 1}, got {image!r}")

    def overlay(self, photo: Any, index: int = 0) -> "Image":
        """The photograph with what was pruned faded; see `Selection.overlay`."""
        from papr.draw import overlay

        return overlay(photo, self.mask(), index)

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[torch.cat(self.rows).argsort().to(parts[0].device)]


class Kept(NamedTuple):
    """What a stage keeps in one pass, as its blocks need it.

    Attributes:
        indices: (B, K) int64, ascending, on the grid.
        grid: the stage's patch grid, (H, W).
        rows: (B * K,) int64, the same as one index into the rows of all images.
    """

    indices: Tensor
    grid: tuple[int, ...]
    rows: Tensor


def kept_count(
    keep: float, patches: int, class_token: bool = False, reference: bool = False
) -> int:
    """How many of `patches` stay: keep * patches, rounded down, at least 1.

    Args:
        keep: fraction of patches that stay, 0 < keep <= 1 (the paper's z).
        patches: patches on the grid, prefix tokens not counted.
        class_token: reference mode of hosts with a class token, which counts it:
            `int(keep * (patches + 1))` patches stay beside it.
        reference: reference mode of other hosts: `int(keep * patches)`, where 0.29 of 100 are 28.
    """
    counted = patches + 1 if class_token else patches  # torch 2.6 adds no bool to a symbolic size
    exactly = reference or class_token
    return min(patches, max(1, int(keep * counted) if exactly else count_of(keep, counted)))


def select(scores: Tensor, count: int) -> Selection:
    """Keep the `count` most significant patches of each image.

    Ranking is in float32; of two equal scores the lower index wins.

    Args:
        scores: significance map (B, *grid).
        count: K, patches to keep of each image, 1 <= K <= patches.

    Returns:
        The selection, indices ascending.

    Raises:
        SelectionError: wrong rank, or K out of range.
        ProposalError: the map is not finite (see `check_scores`).
    """
    if scores.ndim not in (3, 4):
        raise SelectionError(
            f"expected a significance map (B, H, W) or (B, T, H, W), got {describe(scores)}"
        )
    grid = tuple(scores.shape[1:])
    if not 1 <= count <= math.prod(grid):
        raise SelectionError(
            f"expected to keep between 1 and {math.prod(grid)} patches of the grid {grid}, "
            f"got {count}"
        )
    check_scores(scores)
    return Selection(top_indices(scores, count), grid, scores)


def top_indices(scores: Tensor, count: int) -> Tensor:
    """The indices of the `count` highest scores, ascending, (B, *grid) to (B, count) int64.

    A stable sort rather than `topk`, which promises nothing about ties.
    """
    flat = scores.flatten(1)
    if torch.onnx.is_in_onnx_export():
        return _top_indices_without_sort(flat.float(), count)
    return _falling(flat)[:, :count].sort(dim=1).values


def split_top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest and all others: (B, N) to (B, count) and (B, N - count), each ascending.

    Of two equal scores the lower index is among the highest, as in `top_indices`.
    """
    if torch.onnx.is_in_onnx_export():
        return _split_top_without_sort(scores, count)
    order = _falling(scores)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def _falling(scores: Tensor) -> Tensor:
    """Indices by falling score, (B, N); of two equal scores the lower index first."""
    return scores.float().sort(dim=1, descending=True, stable=True).indices


def _top_indices_without_sort(flat: Tensor, count: int) -> Tensor:
    """The same for ONNX, which has no stable sort, (B, N) to (B, count).

    Its TopK is defined to put the lower of two equal elements first, but OpenVINO's does not. So
    TopK only finds the last score that stays, and what is equal to it fills up from the left.
    """
    last = flat.topk(count, dim=1).values[:, -1:]
    above, level = flat > last, flat == last
    room = count - above.sum(dim=1, keepdim=True)
    kept = above | (level & (level.long().cumsum(dim=1) <= room))
    patches = flat.shape[1]  # keys that differ, the leftmost highest: TopK has nothing to choose
    keys = torch.arange(patches, 0, -1, dtype=torch.float32, device=flat.device)
    return (kept * keys).topk(count, dim=1).indices


def _split_top_without_sort(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same for ONNX; see above."""
    top = _top_indices_without_sort(scores.float(), count)
    patches = scores.shape[1]
    rest = torch.ones_like(scores, dtype=torch.float32).scatter(1, top, 0.0)
    keys = torch.arange(patches, 0, -1, dtype=torch.float32, device=scores.device)
    return top, (rest * keys).topk(patches - count, dim=1).indices


def gather(tokens: Tensor, indices: Tensor, prefix_tokens: int = 0) -> Tensor:
    """Take prefix tokens and selected patch tokens out of a sequence.

    By one index over both: concatenating the prefix afterwards would copy every kept token twice.

    Args:
        tokens: (B, prefix_tokens + N, C).
        indices: (B, K) int64 on the patch grid, prefix tokens not counted.
        prefix_tokens: how many leading tokens are never ranked and never dropped.

    Returns:
        (B, prefix_tokens + K, C).
    """
    batch, count, channels = tokens.shape
    if prefix_tokens == 0 and tokens.is_contiguous():
        return take_rows(tokens, indices)
    if prefix_tokens == 0:  # as a convolution leaves them: rows that lie apart anyway
        return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, channels))
    rows = _all_rows(batch, count, indices.device)
    prefix, first = rows[:, :prefix_tokens], rows[:, prefix_tokens : prefix_tokens + 1]
    wanted = torch.cat([prefix, first + indices], dim=1)
    taken = tokens.flatten(0, 1).index_select(0, wanted.flatten())
    return taken.view(batch, prefix_tokens + indices.shape[1], channels)


def take_rows(tokens: Tensor, indices: Tensor) -> Tensor:
    """Selected rows of a sequence, (B, N, C) and (B, K) to (B, K, C).

    By one index over the whole batch: rows are then copied whole, several times faster on a CPU
    than `gather`, whose index counts elements.
    """
    batch, kept = indices.shape
    # flatten, here and below: a view with -1 cannot be had of an empty batch
    rows = tokens.flatten(0, 1).index_select(0, flat_rows(indices, tokens.shape[1]))
    return rows.view(batch, kept, tokens.shape[-1])


def put_rows(kept: Tensor, indices: Tensor, into: Tensor) -> Tensor:
    """`into` (B, N, C) with its rows at `indices` (B, K) replaced by `kept` (B, K, C)."""
    batch, patches, channels = into.shape
    rows = kept.flatten(0, 1)
    flat = into.flatten(0, 1).index_copy(0, flat_rows(indices, patches), rows)
    return flat.view(batch, patches, channels)


def fill_pruned(features: Tensor, selection: Selection, fill: float | str) -> Tensor:
    """A map (B, C, *grid) with its pruned cells filled in; see `Selection.restore`."""
    kept = take_rows(features.flatten(2).transpose(1, 2), selection.indices)
    return selection.restore(kept, fill)


def _filled(tokens: Tensor, selection: Selection, fill: float | str) -> Tensor:
    """Kept tokens (B, K, C) to all patches, (B, N, C)."""
    batch, _, channels = tokens.shape
    patches = math.prod(selection.grid)
    if isinstance(fill, str):
        check_fill(fill)
        if fill == "nearest":
            return take_rows(tokens, _nearest(selection))
        value = tokens.mean(1, keepdim=True) if fill == "mean" else tokens.new_zeros(1, 1, 1)
        dense = value.expand(batch, patches, channels)
    else:
        dense = tokens.new_full((batch, patches, channels), fill)
    return put_rows(tokens, selection.indices, dense)


def _spread(tokens: Tensor, selection: Selection, fill: float | str) -> Tensor:
    """The host's last patch tokens (B, M, C) to the patches that ended in them, (B, C, *grid)."""
    sources, batch = selection.sources, selection.indices.shape[0]
    assert sources is not None
    if tokens.ndim != 3 or tokens.shape[:2] != (batch, selection.tokens):
        raise SelectionError(
            f"expected the host's last patch tokens ({batch}, {selection.tokens}, C) without "
            f"prefix tokens, got {describe(tokens)}"
        )
    there = sources >= 0
    value: Tensor | float | str = fill
    if isinstance(fill, str):
        check_fill(fill)
        if fill == "nearest":
            places = _places_on(selection)
            far = torch.cdist(places, places).masked_fill(~there.unsqueeze(1), torch.inf)
            sources, there = sources.gather(1, far.argmin(dim=2)), torch.ones_like(there)
        value = 0.0
        if fill == "mean":
            weights = there / there.sum(1, keepdim=True)
            found = take_rows(tokens, sources.clamp(min=0))
            value = (found * weights.unsqueeze(2).to(tokens.dtype)).sum(1, keepdim=True)
    dense = take_rows(tokens, sources.clamp(min=0))
    dense = torch.where(there.unsqueeze(2), dense, value)  # type: ignore[arg-type]
    return dense.transpose(1, 2).reshape(batch, tokens.shape[2], *selection.grid)


def follow(sources: Tensor, onwards: Tensor) -> Tensor:
    """Where patches are that were at `sources` (B, N), now that tokens (B, M) went `onwards`.

    Both int64; -1 stays -1.
    """
    return torch.where(sources < 0, sources, onwards.gather(1, sources.clamp(min=0)))


def check_fill(fill: str) -> None:
    """Raise SelectionError where `fill` is not the name of a policy."""
    if fill not in FILLS:
        raise SelectionError(f"expected fill among {', '.join(FILLS)}, got {fill!r}")


def _nearest(selection: Selection) -> Tensor:
    """For every patch which kept one is nearest, (B, N); of two at one distance the first."""
    places = _places_on(selection)
    return torch.cdist(places, places[selection.indices]).argmin(dim=2)


def _places_on(selection: Selection) -> Tensor:
    """The coordinates of all patches on their grid, (N, axes) float32."""
    sides = [torch.arange(side, device=selection.indices.device) for side in selection.grid]
    return torch.cartesian_prod(*sides).float()


def flat_rows(indices: Tensor, patches: int) -> Tensor:
    """Indices (B, K) into images of `patches` rows each, as one index into all rows: (B * K,)."""
    first = _all_rows(indices.shape[0], patches, indices.device)[:, :1]
    return (indices + first).flatten()


def _all_rows(batch: int, patches: int, device: torch.device) -> Tensor:
    """The numbers of all rows, (batch, patches) int64: by one operation.

    In steps of `patches` there would be fewer, but symbolic sizes would have to be divided.
    """
    return torch.arange(batch * patches, device=device).view(batch, patches)
