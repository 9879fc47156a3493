"""Exact nearest neighbours by cosine, in pieces that fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Similarities held at once, floats: 256 MB with their sorting.
_HELD = 1 << 24
#: Cosines this near count as equal: float32 sums of the same numbers in another order. Where
#: embeddings have collapsed, so that many lie this near to each other, any of them counts as found:
#: recall is then high because the dense index cannot tell them apart either.
SLACK = 1e-6


def search(index: Any, queries: Tensor, own: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of an index to each query, its own row left out.

    Every query is compared to every row in float32, so the answer is exact up to rows whose cosines
    are within `SLACK` of each other; TF32, with errors of 1e-3, is off meanwhile, whatever the
    process asked for. At most `_HELD` similarities are in memory, whatever the index's length.

    Args:
        index: (N, D) float32 array, such as a numpy.memmap, each row of length 1.
        queries: (Q, D) float32 of length 1, on the device that computes.
        own: (Q,) int64, the index's row of each query; below 0 where none is left out.
        count: how many, below N.

    Returns:
        cosines (Q, count), falling, and rows of the index (Q, count); of equal ones, rows that come
        first come first.
    """
    best = queries.new_full((len(queries), 0), 0.0)
    rows = own.new_empty((len(queries), 0))
    for start, block in blocks(index, max(1, _HELD // max(1, len(queries)))):
        block = block.to(queries.device)
        with _whole_float32():
            cosines = queries @ block.T
        inside = (own >= start) & (own < start + len(block))
        cosines[inside.nonzero()[:, 0], own[inside] - start] = -torch.inf
        near, where = cosines.topk(min(count, len(block)), dim=1)
        best, rows = torch.cat([best, near], 1), torch.cat([rows, where + start], 1)
        best, rows = _first(best, rows, count)
    return best, rows


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of float32 in float32: no TF32, no bfloat16."""
    rooms: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(room, "fp32_precision") for room in rooms):  # torch before 2.9
        told = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(told)
        return
    # Not by the older call: it refuses to answer where somebody has used these.
    before = [room.fp32_precision for room in rooms]
    for room in rooms:
        room.fp32_precision = "ieee"
    try:
        yield
    finally:
        for room, precision in zip(rooms, before, strict=True):
            room.fp32_precision = precision


def _first(best: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    rows, order = rows.sort(1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best[:, :count], rows.gather(1, order)[:, :count]


def blocks(index: Any, size: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of an index, `size` rows at a time."""
    for start in range(0, len(index), size):
        yield start, torch.from_numpy(np.array(index[start : start + size], np.float32))


def found_again(index: Any, dense: Tensor, cosines: Tensor, rows: Tensor, count: int) -> Tensor:
    """The share of each query's true neighbours that another search found, 0 to 1.

    A found row counts if it is as near to the dense query as the last of its `count` nearest: of
    rows that are equally near, any will do.

    Args:
        index: (N, D).
        dense: (Q, D), the queries whose neighbours are the truth.
        cosines: (Q, >= count), of `search` for them.
        rows: (Q, >= count), what the other search found.
        count: k of recall@k.
    """
    found = rows[:, :count].cpu()
    far = cosines[:, count - 1] - SLACK
    right = torch.zeros(len(dense), device=dense.device)
    for column in range(count):
        other = torch.from_numpy(np.array(index[found[:, column].numpy()], np.float32))
        right += (other.to(dense.device) * dense).sum(1) >= far
    return right / count
