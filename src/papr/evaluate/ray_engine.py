"""`predict` on Ray Data: reading in tasks, models in actors, rows written by tasks of their own.

Ray schedules, holds back what runs ahead, and does again what was lost with a worker. Ours is that
no row is there twice: a task writes one file, named by the session and the task's number, so a task
that is done again writes over what it wrote; a file appears whole or not at all; and before a
session starts and after it ends all files are read for samples that are there twice.
"""

import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from papr.errors import ConfigError, PaprError
from papr.evaluate.loading import Batch, Part, Plan, Prepare, Skipped, make_batch
from papr.evaluate.objects import Objects
from papr.evaluate.predictor import Predictor
from papr.evaluate.runs import provenance_metadata
from papr.evaluate.sources import (
    Chosen,
    DataError,
    Folder,
    Item,
    Source,
    item_or_fault,
    readable,
    to_its_end,
)
from papr.evaluate.stores import Store, writer
from papr.walking import ROWS
from papr.words import counted

if TYPE_CHECKING:
    from ray.data import Dataset

_NOTHING = np.empty(0, np.int64)


def run_ray(
    predictor: Predictor,
    source: Source,
    out: str,
    configuration: dict[str, Any],
    plan: Plan,
    actors: int | None = None,
) -> tuple[int, list[Skipped], int, dict[str, Any]]:
    """Answer every sample that has no row yet, on Ray.

    Args:
        predictor: loaded here already, so that what is wrong with it is said before Ray starts.
        source: what is read. Its files must be where every worker finds them.
        out: the run's folder, likewise, or an address in object storage.
        configuration: plain data that rows depend on.
        plan: samples a call and, about, a file.
        actors: processes that hold the model; None for one a GPU of the cluster or, where there is
            none, one less than it has CPUs.

    Returns:
        Rows in all, those without an answer, those of this session, the whole configuration.

    Raises:
        ConfigError: Ray is not installed, there are too many actors, or rows are of another
            configuration.
        PaprError: samples are missing at the end.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('expected Ray for the engine "ray": pip install "papr-torch[ray]"')
    store = Store(out)
    whole = store.claim(configuration | {"device": predictor.device})
    done = store.settle()
    before = sum(map(len, done.values()))
    if source.length is None or before < source.length:
        with _Connected():
            _predict(predictor, source, store, plan, actors, done)
        now = sum(map(len, store.settle().values()))
        if source.length is not None and now != source.length:
            raise PaprError(
                f"expected rows of {counted(source.length, 'sample')}, Ray left {now}: run again"
            )
    total, skipped = store.count()
    return total, skipped, total - before, whole


class _Connected:
    """Ray, started where it is not; then ended again."""

    def __enter__(self) -> None:
        import ray

        self.ours = not ray.is_initialized()
        if self.ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level=logging.WARNING)

    def __exit__(self, *_: object) -> None:
        import ray

        if self.ours:
            ray.shutdown()


def _predict(
    predictor: Predictor,
    source: Source,
    store: Store,
    plan: Plan,
    actors: int | None,
    done: dict[int, Any],
) -> None:
    import ray.data

    count, gpus = _actors(predictor, actors)
    prepare = predictor.load().prepare
    told = predictor.arguments | {"prepare": prepare, "table": True}
    data = _reading(source, plan, done, prepare)
    data = data.map_batches(
        Predictor,
        fn_constructor_kwargs=told,
        batch_size=plan.batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=1,
        num_gpus=gpus,
    )
    schema = predictor.schema.with_metadata(provenance_metadata(predictor.facts()))
    data.write_datasink(_sink(store, schema))


def _actors(predictor: Predictor, actors: int | None) -> tuple[int, int]:
    """How many actors, and how many GPUs each has."""
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if gpus and predictor.device not in ("cpu", "mps"):
        most, each = gpus, 1
    else:
        most, each = cpus - 1, 0  # one is left to read and to write with
    if most < 1 or (actors or 1) > most:
        raise ConfigError(
            f"expected at most {max(0, most)} actors on a cluster of {cpus} CPUs and {gpus} GPUs "
            f"(a CPU is left to read and write with), got {actors or 1}"
        )
    return actors or most, each


def _reading(source: Source, plan: Plan, done: dict[int, Any], prepare: Prepare) -> "Dataset":
    """Samples decoded in tasks: shard, position, id, pixels, error."""
    import ray.data

    if source.length is None:
        shards = [
            {"shard": n, "done": done.get(n, _NOTHING).tobytes()} for n in range(len(source.shards))
        ]
        data = ray.data.from_items(shards, override_num_blocks=len(shards))
        return data.map_batches(_ShardReader(source, plan.batch, prepare), batch_size=1)
    left = np.setdiff1d(np.arange(source.length), done.get(0, _NOTHING))
    names, reader = _names(source)
    tables = []
    for start in range(0, len(left), plan.part):
        numbers = left[start : start + plan.part]
        paths = [None if names is None else os.fsencode(names(int(n))) for n in numbers]
        labels = [_label(source, int(number)) for number in numbers]
        columns = {"position": numbers, "name": pa.array(paths, pa.binary())}
        tables.append(pa.table(columns | {"label": pa.array(labels, pa.int32())}))
    data = ray.data.from_arrow(tables)
    return data.map_batches(_Reader(reader, prepare), batch_size=plan.batch, batch_format="pyarrow")


def _names(source: Source) -> tuple[Callable[[int], str] | None, Source]:
    """What finds a sample's name, and the source without the list of them: that travels to tasks.

    None and the source as it is, where samples have no names.
    """
    if isinstance(source, Chosen):
        inner, reader = _names(source.source)
        if inner is not None:
            return lambda number: inner(source.numbers[number]), reader
    elif isinstance(source, Folder | Objects):
        paths = source.paths
        if isinstance(source, Folder):
            return paths.__getitem__, replace(source, paths=[], labels=None, ignored=())
        return paths.__getitem__, replace(source, paths=[], sizes=[], ignored=())
    return None, source


def _label(source: Source, number: int) -> int | None:
    """A sample's label where it is known before it is read."""
    if isinstance(source, Chosen):
        return _label(source.source, source.numbers[number])
    labels = source.labels if isinstance(source, Folder) else None
    return None if labels is None else labels[number]


class _Reader:
    """Decodes samples that have numbers."""

    def __init__(self, source: Source, prepare: Prepare) -> None:
        self.source, self.prepare = source, prepare

    def __call__(self, rows: pa.Table) -> dict[str, Any]:
        positions = rows["position"].to_pylist()
        names, labels = rows["name"].to_pylist(), rows["label"].to_pylist()
        items = [
            item_or_fault(self.source, position)
            if name is None
            else self._named(os.fsdecode(name), label)
            for position, name, label in zip(positions, names, labels, strict=True)
        ]
        return _columns(0, positions, items, self.prepare)

    def _named(self, name: str, label: int | None) -> Item:
        assert isinstance(self.source, Folder | Objects)
        try:
            return replace(self.source.named(name), label=label)
        except DataError as error:
            return Item(readable(name), None, b"", str(error))


class _ShardReader:
    """Decodes the samples of a shard that have no row yet."""

    def __init__(self, source: Source, batch: int, prepare: Prepare) -> None:
        self.source, self.batch, self.prepare = source, batch, prepare

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        shard = int(rows["shard"][0])
        done = set(np.frombuffer(rows["done"][0], np.int64).tolist())
        positions: list[int] = []
        items: list[Item] = []
        for position, item in enumerate(to_its_end(self.source, shard)):
            if position in done:
                continue
            items.append(item)
            positions.append(position)
            if len(items) == self.batch:
                yield _columns(shard, positions, items, self.prepare)
                positions, items = [], []
        if items:
            yield _columns(shard, positions, items, self.prepare)


def _columns(
    shard: int, positions: list[int], items: list[Item], prepare: Prepare
) -> dict[str, Any]:
    """Decoded samples as columns; pixels of those that could not be are zero."""
    batch = make_batch(items, 0, prepare, Batch(Part(shard, 0), closes=True, ends=True))
    each = [] if batch.pixels is None else batch.pixels.split(batch.views)
    rows = {row: tensor.numpy() for row, tensor in zip(batch.positions, each, strict=True)}
    blank = np.zeros_like(next(iter(rows.values()), np.zeros(1, np.float32)))
    errors = {sample.position: sample.reason for sample in batch.skipped}
    pixels = [rows.get(row, blank) for row in range(len(items))]
    known = dict(zip(batch.positions, batch.labels, strict=True))
    labels = [known.get(row) for row in range(len(items))]
    return {
        "shard": np.full(len(items), shard, np.int32),
        "position": np.array(positions, np.int64),
        "id": np.array([item.id for item in items], dtype=object),
        # Ray has no nulls in arrays; no class is below 0
        "label": np.array([-1 if label is None else label for label in labels], np.int32),
        "pixels": _column(pixels),
        "error": np.array([errors.get(row, "") for row in range(len(items))], dtype=object),
    }


def _column(arrays: list[Any]) -> Any:
    """One array where all have a shape; else an array of arrays."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


def _sink(store: Store, schema: pa.Schema) -> Any:
    """What writes a task's rows as one file, whole, named by the task: done again, written over."""
    from ray.data import Datasink

    session, write_file, folder = uuid.uuid4().hex[:12], writer(store.out), ROWS

    class Sink(Datasink):  # type: ignore[misc]
        """Rows of a task to a file. Like `writer` it names nothing of papr."""

        def write(self, blocks: Iterable[Any], ctx: Any) -> int:
            import pyarrow as pa
            import pyarrow.compute as pc
            import pyarrow.parquet as pq
            from ray.data.block import BlockAccessor

            tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
            tables = [table.select(schema.names).cast(schema) for table in tables if len(table)]
            place = schema.names.index("label")
            for number, table in enumerate(tables):
                label = table["label"]
                known = pc.if_else(pc.less(label, 0), pa.scalar(None, label.type), label)
                tables[number] = table.set_column(place, schema.field(place), known)
            if not tables:
                return 0
            rows = pa.concat_tables(tables)
            buffer = pa.BufferOutputStream()
            pq.write_table(rows, buffer)
            write_file(f"{folder}/{session}-{ctx.task_idx:06d}.parquet", buffer.getvalue())
            return len(rows)

        def on_write_complete(self, *_: object) -> None:
            """Nothing."""

    return Sink()
