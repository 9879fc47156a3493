"""Batch inference: every sample of a data set through one model, rows as Parquet."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from papr.environment import environment
from papr.errors import ConfigError
from papr.evaluate.answers import class_count
from papr.evaluate.loading import Batch, Plan, Skipped, make_plan, usual_batch
from papr.evaluate.predictor import Predictor
from papr.evaluate.preparing import open_for
from papr.evaluate.ranks import joined
from papr.evaluate.runs import (
    SUMMARY,
    Folder,
    Watch,
    claimed,
    default_folder,
    folder_of,
    identify,
    run,
)
from papr.evaluate.sources import Source
from papr.evaluate.summary import plain
from papr.files import write_json
from papr.graft import states
from papr.provenance import Provenance

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Prediction:
    """What a finished run of `predict` left behind.

    Attributes:
        out: its folder, or the address in object storage.
        samples: rows in all.
        skipped: samples that could not be read; they have a row with the reason.
        ignored: files among the samples that are none.
        note: of the source.
        seconds: of this session; rows of earlier ones were not made anew.
        done: samples of these that this session answered or named.
        configuration: what was run on what.
        environment: versions and device of the process that was called.
        provenance: where weights come from.
        nulls: why labels or answers are null, a sentence each.
        likeliest: how many samples each class is likeliest for, by the host's own name of it, the
            most frequent first; empty where it has no names.
    """

    out: str
    samples: int
    skipped: list[Skipped]
    ignored: Sequence[str]
    note: str
    seconds: float
    done: int
    configuration: dict[str, Any]
    environment: dict[str, Any]
    provenance: Provenance = field(default_factory=Provenance)
    nulls: Sequence[str] = ()
    likeliest: dict[str, int] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """That answers mean nothing, in a sentence; empty where they do."""
        whose = ", ".join(self.provenance.random)
        return f"Random weights ({whose}): the answers mean nothing." if whose else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return plain(self)


class Rows:
    """The `Answer` of a run that predicts: one row for each sample, readable or not."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.schema = predictor, predictor.schema

    def __call__(self, batch: Batch) -> pa.Table:
        """The rows of a batch."""
        found = self.predictor.columns(batch)
        positions = sorted([*batch.positions, *(sample.position for sample in batch.skipped)])
        labels = dict(zip(batch.positions, batch.labels, strict=True))
        found |= {"shard": [batch.part.shard] * len(positions), "position": positions}
        found["label"] = [labels.get(position) for position in positions]
        return pa.table(
            {
                name: pa.array(found[name], self.schema.field(name).type)
                for name in self.schema.names
            }
        )

    def times(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def predict(
    predictor: Predictor,
    data: Source | str | Path,
    out: str | Path | None = None,
    *,
    engine: str = "local",
    batch: int | None = None,
    part: int | None = None,
    workers: int | None = None,
    actors: int | None = None,
    watch: Watch | None = None,
) -> Prediction:
    """Answer every sample that has no row in `out` yet. A killed run is taken up by the same call.

    Rows are those of `Predictor`, with shard and position before them, which say which sample of
    the data it is. They lie in `out`/rows as Parquet, each file whole or not there. See
    docs/at_scale.md.

    Args:
        predictor: the model and what is wanted of it.
        data: a source, or what `open_source` takes.
        out: the run's folder; None for one below papr-predict named after the model and the
            configuration; with the engine "ray" also an address in object storage.
        engine: "local", in this process, or those that torchrun started; "ray", Ray Data on the
            cluster that Ray is connected to, RAY_ADDRESS names, or this machine. Both give the same
            rows, floats up to rounding, since batches are not the same; in another order.
        batch: samples a call; None for 64 on a GPU, 16 elsewhere.
        part: samples a file, about; see `make_plan`.
        workers: of "local", processes that decode ahead; see `loading.loader`.
        actors: of "ray", processes that hold the model; see `ray_engine.run_ray`.
        watch: of "local", called as `evaluate` does.

    Raises:
        ConfigError: an option is out of range, `out` has rows of another configuration, or Ray is
            not installed.
        DataError: nothing that can be read is in `data`.
        UnsupportedModelError: the host cannot be pruned.
    """
    if engine not in ENGINES:
        raise ConfigError(f'expected the engine "local" or "ray", got {engine!r}')
    if out is not None and engine == "local":
        folder_of(out)
    elif not str(out):
        raise ConfigError("expected the name of an output folder, got an empty one")
    loaded = predictor.load()
    if not isinstance(data, Source):
        data = open_for(loaded.host, data)
    cuda = loaded.device.type == "cuda"
    plan = make_plan(data, batch or usual_batch(cuda, loaded.prepare), part)
    configuration = predictor.facts() | {"engine": engine} | identify(data, plan)
    if out is None:
        out = default_folder("papr-predict", configuration)
    start = time.perf_counter()
    if engine == "ray":
        from papr.evaluate.ray_engine import run_ray
        from papr.evaluate.stores import Store

        found = run_ray(predictor, data, str(out), configuration, plan, actors)
    else:
        found = _run_local(predictor, data, Path(out), configuration, plan, workers, watch)
    samples, skipped, done, whole = found
    seconds = time.perf_counter() - start
    place = environment(loaded.device)
    prediction = Prediction(
        str(out),
        samples,
        skipped,
        data.ignored,
        data.note,
        seconds,
        done,
        whole,
        place,
        loaded.provenance,
        _nulls(predictor, data),
        _likeliest(predictor, str(out)),
    )
    if engine == "ray":
        Store(str(out)).note(SUMMARY, prediction.to_dict())
    elif os.environ.get("RANK", "0") == "0":
        write_json(Path(out) / SUMMARY, prediction.to_dict())
    return prediction


def _nulls(predictor: Predictor, data: Source) -> list[str]:
    """Why whole columns are null, as far as that is known before samples are read."""
    found = [data.note] if data.note else []
    loaded = predictor.load()
    if "labels" in predictor.outputs and not class_count(loaded.host):
        found.append("predicted, class_name, top5 and score are null: the host has no classifier")
    if "masks" in predictor.outputs and all(state.dense for state in states(loaded.host)):
        found.append("mask and grid are null: no patch is pruned")
    return found


def _likeliest(predictor: Predictor, out: str) -> dict[str, int]:
    """How many rows have each class."""
    if predictor.load().names is None or "labels" not in predictor.outputs:
        return {}
    from papr.evaluate.stores import Store

    store, found = Store(out), Counter[str]()
    for file in store.names():
        found.update(store.read(file, ["class_name"])["class_name"].drop_null().to_pylist())
    return dict(found.most_common())


def _run_local(
    predictor: Predictor,
    data: Source,
    out: Path,
    configuration: dict[str, Any],
    plan: Plan,
    workers: int | None,
    watch: Watch | None,
) -> tuple[int, list[Skipped], int, dict[str, Any]]:
    """Rows in all, those without an answer, those of this session, the whole configuration."""
    device = predictor.load().device.type
    folder, configuration = Folder(out), configuration | {"device": device}
    with joined() as ranks, claimed(folder, configuration, ranks):
        before = ranks.first_does(folder.count)
        run(
            folder,
            data,
            predictor.load().prepare,
            Rows(predictor),
            plan,
            workers=workers,
            ranks=ranks,
            pin=device == "cuda",
            watch=watch,
        )
    whole = folder.configuration()
    assert whole is not None
    count = folder.count()
    return count, folder.skipped(), count - before, whole
