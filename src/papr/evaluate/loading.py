"""Batches for the host, read and decoded ahead of it in other processes.

Which samples stand in which batch depends on the data and the batch size alone: not on how many
processes read, nor on where a run was taken up. A network's answers depend on the batch in their
last bits; so the rows of a run are the same whatever happened on the way.
"""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from papr.errors import PaprError, PaprWarning, one_line
from papr.evaluate.sharing import from_bytes, share, to_bytes
from papr.evaluate.sources import DataError, Item, Source, item_or_fault, to_its_end

#: Decodes a sample into its views, (V, *pixels of the host): one of an image, several of a video.
#: Raises PaprError where it cannot be read.
Prepare = Callable[[Item], Tensor]
#: Seconds after which loading processes are taken to be stuck. Slow shards may take minutes.
PATIENCE = 1800.0


class Part(NamedTuple):
    """Samples whose rows lie in one file: a slice of a shard, whole batches but for the last."""

    shard: int
    number: int

    @property
    def name(self) -> str:
        """Sorts as the samples do."""
        return f"{self.shard:05d}-{self.number:06d}"


class Skipped(NamedTuple):
    """A sample that could not be read."""

    position: int
    id: str
    reason: str


@dataclass
class Batch:
    """Samples that go through the host together.

    Attributes:
        part: where their rows belong.
        positions: of each sample in its shard.
        ids: likewise.
        labels: likewise; None where unknown.
        views: how many rows of `pixels` each sample has.
        pixels: (sum of views, ...); None where no sample could be read.
        skipped: samples that could not be, which have no row above.
        copied: whether the pixels came as bytes, for want of shared memory.
        closes: whether the part is complete with this batch.
        ends: whether its shard is.
    """

    part: Part
    closes: bool
    ends: bool
    positions: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    pixels: Tensor | None = None
    skipped: list[Skipped] = field(default_factory=list)
    copied: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """From a loading process pixels travel in shared memory, or as bytes where it is full."""
        state = dict(vars(self))
        if get_worker_info() is not None and self.pixels is not None and not share(self.pixels):
            state["pixels"] = to_bytes(self.pixels)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(state["pixels"], bytes):
            self.pixels, self.copied = from_bytes(state["pixels"]), True

    def pin_memory(self) -> "Batch":
        """For the DataLoader: copies to a GPU need not wait then."""
        self.pixels = None if self.pixels is None else self.pixels.pin_memory()
        return self


@dataclass(frozen=True)
class Plan:
    """How a source is cut into batches and parts.

    Attributes:
        batch: samples a batch.
        part: samples a part, a multiple of `batch`.
    """

    batch: int
    part: int

    def parts(self, source: Source) -> list[Part]:
        """All parts of a source without shards."""
        assert source.length is not None
        return [Part(0, n) for n in range(-(-source.length // self.part))]


#: About a hundred files, none with more rows than this or fewer than that.
_MOST_ROWS, _LEAST_ROWS, _FILES = 8192, 64, 100


def make_plan(source: Source, batch: int, part: int | None = None) -> Plan:
    """A plan with parts of about `part` samples; None for a hundredth of the source, 64 to 8192."""
    if part is None:
        part = 1024 if source.length is None else -(-source.length // _FILES)
        part = min(_MOST_ROWS, max(_LEAST_ROWS, part))
    return Plan(batch, max(1, -(-part // batch)) * batch)


def usual_batch(gpu: bool, prepare: Prepare) -> int:
    """Samples a call where nobody says: about 64 views on a GPU, 16 elsewhere."""
    most = 64 if gpu else 16
    return most // min(most, getattr(prepare, "views", 1))


def make_batch(items: Sequence[Item], first: int, prepare: Prepare, batch: Batch) -> Batch:
    """Fill a batch: every item decoded, or named as skipped."""
    pixels = []
    for position, item in enumerate(items, first):
        if item.fault:
            batch.skipped.append(Skipped(position, item.id, item.fault))
            continue
        try:
            found = prepare(item)
        except (PaprError, MemoryError) as error:
            reason = " ".join(str(error).split()) or "out of memory"
            batch.skipped.append(Skipped(position, item.id, reason))
            continue
        pixels.append(found)
        batch.positions.append(position)
        batch.ids.append(item.id)
        batch.labels.append(item.label)
        batch.views.append(len(found))
    batch.pixels = torch.cat(pixels) if pixels else None
    return batch


class _Indexed(Dataset[Batch]):
    """Batches of chosen parts of a source whose samples can be had by number."""

    def __init__(self, source: Source, plan: Plan, parts: Sequence[Part], prepare: Prepare) -> None:
        self.source, self.plan, self.prepare = source, plan, prepare
        self.starts = [(part, start) for part in parts for start in self._starts(part)]

    def _starts(self, part: Part) -> range:
        assert self.source.length is not None
        first = part.number * self.plan.part
        stop = min(first + self.plan.part, self.source.length)
        return range(first, stop, self.plan.batch)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        part, start = self.starts[index]
        assert self.source.length is not None
        stop = min(start + self.plan.batch, self.source.length)
        items = [item_or_fault(self.source, number) for number in range(start, stop)]
        closes = index + 1 == len(self.starts) or self.starts[index + 1][0] != part
        ends = stop == self.source.length
        return make_batch(items, start, self.prepare, Batch(part, closes, ends))


class _Streamed(IterableDataset[Batch]):
    """Batches of chosen shards; each loader process reads shards of its own."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        shards: Sequence[int],
        done: Set[Part],
        prepare: Prepare,
    ) -> None:
        self.source, self.plan, self.shards, self.prepare = source, plan, shards, prepare
        self.done = done

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        mine = self.shards if info is None else self.shards[info.id :: info.num_workers]
        for shard in mine:
            yield from self._batches(shard)

    def _batches(self, shard: int) -> Iterator[Batch]:
        items = to_its_end(self.source, shard)
        first, waiting = 0, list(islice(items, self.plan.batch))
        while True:
            following = list(islice(items, self.plan.batch))
            part, stop = Part(shard, first // self.plan.part), first + len(waiting)
            closes = not following or stop % self.plan.part == 0
            if part not in self.done:
                yield make_batch(waiting, first, self.prepare, Batch(part, closes, not following))
            if not following:
                return
            first, waiting = stop, following


def usable_cores() -> int:
    """Cores that this process may use: in a container, or pinned, fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usual_workers() -> int:
    """Processes that decode unless told otherwise: one less than there are cores, 1 to 8."""
    return min(8, max(1, usable_cores() - 1))


def loader(
    source: Source,
    plan: Plan,
    work: Sequence[Part] | Sequence[int],
    prepare: Prepare,
    *,
    done: Set[Part] = frozenset(),
    workers: int | None = None,
    pin: bool = False,
    patience: float = PATIENCE,
) -> Iterator[Batch]:
    """The batches of some of a source's work, in order within each shard.

    Loading processes hand pixels over in shared memory; where there is too little of it (a
    container has 64 MB), through a pipe, which is slower and is said in a `PaprWarning`.

    Args:
        source: what is read.
        plan: how it is cut.
        work: parts of a source without shards; numbers of shards of one with them.
        prepare: decodes a sample.
        done: parts that have their rows already and are left out of their shards.
        workers: processes that decode ahead; None for one less than there are cores, 8 at most
            and 1 at least; 0 for none.
        pin: put pixels where copies to a GPU need not wait.
        patience: seconds to wait for a batch of other processes.

    Raises:
        DataError: while it is read: a process ended, or none gave a batch for so long.
    """
    workers = usual_workers() if workers is None else workers
    data: Any
    if source.length is None:
        shards = [unit for unit in work if isinstance(unit, int)]
        data = _Streamed(source, plan, shards, done, prepare)
        workers = min(workers, max(1, len(shards)))
    else:
        data = _Indexed(source, plan, [unit for unit in work if isinstance(unit, Part)], prepare)

    def start(workers: int) -> Iterator[Batch]:
        timeout = patience if workers else 0
        if workers:  # what a forked process collects may wait for threads that it does not have
            gc.collect()
        found: DataLoader[Batch] = DataLoader(
            data, batch_size=None, num_workers=workers, pin_memory=pin, timeout=timeout
        )
        return iter(found)

    try:
        batches = start(workers)
    except OSError as error:  # of shared memory not even a few bytes to talk by, or no process
        _warn(f"no loading process could be started ({one_line(error)}): loading in this one")
        batches, workers = start(0), 0
    return _watched(batches, workers, patience)


def _watched(batches: Iterator[Batch], workers: int, patience: float) -> Iterator[Batch]:
    """The same batches; what can hinder loading processes is said in a line."""
    said = False
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            reason = _hindrance(str(error), workers, patience)
            if reason is None:
                raise
            raise DataError(reason) from None
        if batch is None:
            return
        if batch.copied and not said:
            _warn(
                f"too little shared memory for {workers} loading processes: their batches are "
                "copied through pipes, which is slower (docker run --shm-size=2g gives more)"
            )
            said = True
        yield batch


def _hindrance(message: str, workers: int, patience: float) -> str | None:
    """What stopped loading processes, by what the DataLoader says; None where nothing did."""
    if message.startswith("DataLoader timed out"):
        return (
            f"expected a batch within {patience:g} seconds, got none from {workers} loading "
            "processes: they are stuck; with --workers 0 this process loads itself"
        )
    if message.startswith("DataLoader worker"):
        why = " ".join(message.split())
        return f"a loading process ended: {why}; fewer --workers need less memory"
    return None


def _warn(text: str) -> None:
    warnings.warn(text, PaprWarning, stacklevel=3)
