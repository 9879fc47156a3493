"""Rows of an evaluation: what every contender answers to every sample, beside the dense host."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from papr.ambient import seed_on
from papr.evaluate.answers import Answers, ask, classifier_path, cosines
from papr.evaluate.contenders import Contender, kept_shares
from papr.evaluate.loading import Batch
from papr.measure import peak_memory
from papr.measure.speed import synchronize

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int32()),
        ("configuration", pa.string()),
        ("top5", pa.list_(pa.int32())),
        ("kept", pa.float64()),
        ("agrees", pa.bool_()),
        ("cosine", pa.float64()),
        ("output", pa.float64()),
    ]
)
#: Samples whose peak memory is measured on a CPU: that takes a pass of its own there.
PEAK_BATCH = 8


class Evaluator:
    """Answers batches with every contender, in turns, the dense host first.

    Columns of the rows: shard and position say which sample, id and label are the source's,
    configuration the contender's fingerprint; top5 class indices, the likeliest first; kept the
    share of patches, 0 to 1; agrees whether the top-1 is the dense host's; cosine of the embedding
    with the dense host's; output the number that a host of one output answers. top5 and agrees are
    null where the host does not classify, output where it answers several numbers; agrees, cosine
    and output where weights are random.

    Attributes:
        contenders: the dense host first.
        keys: their fingerprints.
        device: where they are.
        dtype: what pixels they take.

    Args:
        judged: whether answers are compared with the dense host's.
    """

    schema = SCHEMA

    def __init__(
        self,
        contenders: Sequence[Contender],
        keys: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        judged: bool = True,
    ) -> None:
        self.contenders, self.keys = list(contenders), list(keys)
        self.device, self.dtype = device, dtype
        self._judged = judged
        self._head = classifier_path(contenders[0].model)
        self._seconds: dict[str, list[float]] = {key: [] for key in keys}
        self._images: list[int] = []
        self._peak: dict[str, int] = {}
        self._warm = False

    def __call__(self, batch: Batch) -> pa.Table:
        """The rows of a batch: contender by contender, each in the order of the samples."""
        if batch.pixels is None:
            return SCHEMA.empty_table()
        pixels = batch.pixels.to(device=self.device, dtype=self.dtype, non_blocking=True)
        if not self._peak:
            self._measure_peaks(pixels)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            tables = self._in_turns(batch, pixels)
        self._images.append(len(batch.ids))
        return pa.concat_tables(tables)

    def _in_turns(self, batch: Batch, pixels: Tensor) -> list[pa.Table]:
        tables: list[pa.Table] = []
        dense: Answers | None = None
        best: list[int] | None = None  # the dense host's classes
        for contender, key in zip(self.contenders, self.keys, strict=True):
            seed_on(self.device, _seed(batch))  # a random selection is the same at every call
            synchronize(self.device)
            start = time.perf_counter()
            found = ask(contender.model, pixels, batch.views, self._head)
            synchronize(self.device)
            self._seconds[key].append(time.perf_counter() - start)
            kept = _means(kept_shares(contender.model, len(pixels)), batch.views)
            top5 = None if found.scores is None else top_classes(found.scores).tolist()
            if dense is None:
                dense, best = found, top5 and [row[0] for row in top5]
            near, outputs, judge = None, None, None
            if self._judged:
                judge, near = best, cosines(found.embeddings, dense.embeddings)
                outputs = None if found.outputs is None else found.outputs.tolist()
            tables.append(_rows(batch, key, top5, judge, kept, near, outputs))
        return tables

    def times(self) -> dict[str, Any]:
        """Seconds of every contender in each batch since the last call, and images in each.

        "cold" says that the first of them is the first of this process, which warms up.
        """
        found: dict[str, Any] = {"images": self._images, "seconds": self._seconds}
        found["cold"] = not self._warm
        if not self._warm:
            found["peak"] = self._peak
        self._warm = True
        self._images, self._seconds = [], {key: [] for key in self.keys}
        return found

    def _measure_peaks(self, pixels: Tensor) -> None:
        few = pixels if self.device.type == "cuda" else pixels[:PEAK_BATCH]
        for contender, key in zip(self.contenders, self.keys, strict=True):
            with torch.inference_mode():
                self._peak[key] = peak_memory(partial(contender.model, few), self.device)


def _seed(batch: Batch) -> int:
    first = (batch.positions or [0])[0]
    return batch.part.shard * 1_000_003 + first


def _means(values: Sequence[float], views: Sequence[int]) -> list[float]:
    """The mean over each sample's views."""
    found, start = [], 0
    for count in views:
        found.append(sum(values[start : start + count]) / count)
        start += count
    return found


def _rows(
    batch: Batch,
    key: str,
    top5: list[list[int]] | None,
    best: list[int] | None,
    kept: list[float],
    cosine: list[float] | None,
    outputs: list[float] | None,
) -> pa.Table:
    """One contender's rows; `best` are the dense host's classes. Where there is none: nulls."""
    count = len(batch.ids)
    nothing = [None] * count
    agrees: list[bool] | list[None] = nothing
    if top5 is not None and best is not None:
        agrees = [row[0] == other for row, other in zip(top5, best, strict=True)]
    columns = [
        [batch.part.shard] * count,
        batch.positions,
        batch.ids,
        batch.labels,
        [key] * count,
        nothing if top5 is None else top5,
        kept,
        agrees,
        nothing if cosine is None else cosine,
        nothing if outputs is None else outputs,
    ]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def top_classes(scores: Tensor, count: int = 5) -> Tensor:
    """(N, at most `count`) class indices, the likeliest first; of equal ones the lower first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count]
