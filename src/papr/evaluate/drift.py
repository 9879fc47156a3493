"""Drift: may pruned queries meet an index of embeddings that the dense model made?"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.config import PruneConfig
from papr.environment import environment
from papr.errors import ConfigError
from papr.evaluate.answers import ask, classifier_path
from papr.evaluate.contenders import Contender, contenders, provenance_of
from papr.evaluate.estimates import Estimate, mean_of, percentile_of, share_of
from papr.evaluate.evaluation import describe, statistics_of
from papr.evaluate.loading import Batch, Prepare, Skipped, make_plan, usual_batch
from papr.evaluate.nearest import SLACK, found_again, search
from papr.evaluate.preparing import open_for, prepare_for
from papr.evaluate.ranks import joined
from papr.evaluate.runs import (
    PASSING,
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
from papr.measure import spread
from papr.provenance import GIVEN, Provenance, Weights
from papr.words import counted

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("id", pa.string()),
        ("configuration", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
_CHUNK = 1024  # queries that are searched together


@dataclass(frozen=True)
class Column:
    """What one configuration does to embeddings.

    Attributes:
        name: of the configuration.
        configuration: its fingerprint, as in the rows.
        cosine: mean over images of the cosine between the pruned and the dense embedding.
        fifth: the 5th percentile of it: one image in twenty is further off. Of fewer than 72
            images its interval has no lower end, and so begins at -1.
        least: the smallest.
        recall: k -> mean share of the dense query's k nearest in the dense index, itself left out,
            that the pruned query finds there.
        own: share of pruned queries whose nearest in the whole dense index is their own image.
        again: k -> the same share where the index is made of pruned embeddings too.
    """

    name: str
    configuration: str
    cosine: Estimate
    fifth: Estimate
    least: float
    recall: dict[int, Estimate]
    own: Estimate
    again: dict[int, Estimate]


@dataclass(frozen=True)
class Drift:
    """What a finished run of `drift` found.

    Attributes:
        folder: the run's.
        images: embeddings in the index.
        queries: of these, how many were asked with.
        width: of an embedding.
        target: recall that an index is kept for.
        columns: one a configuration; none where random weights make figures mean nothing.
        skipped: samples that could not be read.
        ignored: files among the samples that are none.
        note: of the source.
        configuration: what was run on what.
        environment: versions and device.
        provenance: where weights come from.
    """

    folder: str
    images: int
    queries: int
    width: int
    target: float
    columns: list[Column]
    skipped: list[Skipped]
    ignored: Sequence[str]
    note: str
    configuration: dict[str, Any]
    environment: dict[str, Any]
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def blank(self) -> str:
        """Why there is no figure and no verdict, in a sentence; empty where there is."""
        return self.provenance.blank("cosine and recall")

    def verdict(self, column: Column) -> str:
        """Whether to embed the index anew, in one word: "keep", "re-embed", "dense", "unclear".

        By recall at the largest k: "keep" where its interval lies above the target; where it lies
        below, "re-embed" if an index of pruned embeddings lies above the target, and else "dense",
        since neither index gives what dense queries find; "unclear" where an interval straddles.
        """
        k = max(column.recall)
        kept, again = column.recall[k], column.again[k]
        if kept.low >= self.target:
            return "keep"
        if kept.high >= self.target:
            return "unclear"
        if again.low >= self.target:
            return "re-embed"
        return "unclear" if again.high >= self.target else "dense"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        columns = [
            {**_plain(asdict(column)), "verdict": self.verdict(column)} for column in self.columns
        ]
        return plain(self) | {"columns": columns}


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value._asdict()
        if isinstance(value, Estimate)
        else {str(k): e._asdict() for k, e in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in data.items()
    }


class Embedder:
    """The `Answer` of a run that stores what each contender embeds a sample to."""

    schema = SCHEMA

    def __init__(
        self, found: Sequence[Contender], keys: Sequence[str], host: nn.Module, output: bool
    ) -> None:
        weight = next(host.parameters())
        self.contenders, self.keys = list(found), list(keys)
        self.device, self.dtype = weight.device, weight.dtype
        self._head = None if output else classifier_path(host)

    def __call__(self, batch: Batch) -> pa.Table:
        """The rows of a batch: contender by contender, each in the order of the samples."""
        if batch.pixels is None:
            return SCHEMA.empty_table()
        pixels = batch.pixels.to(device=self.device, dtype=self.dtype, non_blocking=True)
        count = len(batch.ids)
        tables = []
        for contender, key in zip(self.contenders, self.keys, strict=True):
            embeddings = ask(contender.model, pixels, batch.views, self._head).embeddings
            if embeddings.shape[1] == 1:
                raise ConfigError(
                    "expected embeddings of two numbers or more, whose directions can be compared, "
                    "got one number a sample"
                )
            rows = pa.array(list(embeddings.cpu().numpy()), SCHEMA.field("embedding").type)
            columns = [[batch.part.shard] * count, batch.positions, batch.ids, [key] * count, rows]
            tables.append(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA))
        return pa.concat_tables(tables)

    def times(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def drift(
    host: nn.Module,
    data: Source | str | Path,
    configs: Sequence[float | PruneConfig] = (0.7, 0.5),
    out: str | Path | None = None,
    *,
    name: str = "",
    weights: Weights = GIVEN,
    output: bool = False,
    ks: Sequence[int] = (1, 5, 10),
    queries: int = 10_000,
    target: float = 0.95,
    prepare: Prepare | None = None,
    batch: int | None = None,
    part: int | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Drift:
    """Embed every sample dense and pruned, and search the dense embeddings with the pruned ones.

    A killed run is taken up by the same call; under `torchrun` the processes share the embedding,
    the first searches. Embeddings lie in `out`/rows as Parquet; while it searches they lie in `out`
    once more, as one float32 array a configuration that is read piece by piece, so memory does not
    grow with them.

    Args:
        host: in eval mode, on its device, in its dtype; left as it is.
        data: a source, or what `open_source` takes.
        configs: keeps or whole configurations.
        out: the run's folder; None for one below papr-drift, as of `evaluate`.
        name: what the host was made by; see `evaluate`.
        weights: where the host's come from, which every file says; with random ones, or a random
            proposal, samples are embedded and nothing is searched.
        output: an embedding is what the host returns, such as CLIP's projection; else what goes
            into its classifier, where it has one.
        ks: of recall@k.
        queries: images to ask with at most, evenly spread; the index is always whole.
        target: recall that an index is worth keeping for, 0 to 1.
        prepare: decodes a sample, and says how in its `described` or its repr; None for what the
            host's own library does.
        batch: samples a call; None for 64 on a GPU, 16 elsewhere.
        part: samples a file; see `make_plan`.
        workers: processes that decode ahead; see `loading.loader`.
        watch: as of `evaluate`.

    Raises:
        ConfigError: an option is out of range, there are no more images than the largest k, or
            `out` has rows of another configuration.
        DataError: nothing that can be read is in `data`.
        UnsupportedModelError: the host cannot be pruned.
    """
    ks = check_search(ks, queries, target)
    folder = None if out is None else folder_of(out)
    if not isinstance(data, Source):
        data = open_for(host, data)
    prepare = prepare or prepare_for(host, name)
    found = contenders(host, configs, *statistics_of(prepare))
    if len(found) < 2:
        raise ConfigError("expected a configuration that prunes, got none: keep below 1")
    weight = next(host.parameters())
    provenance = provenance_of(weights, [contender.model for contender in found])
    if not provenance.random:
        check_count(data.length, ks)
    keys, configuration = describe(host, name, prepare, found, provenance)
    plan = make_plan(data, batch or usual_batch(weight.is_cuda, prepare), part)
    configuration |= {"embedding": "output" if output else "classifier input"}
    configuration |= identify(data, plan)
    folder = folder or Folder(default_folder("papr-drift", configuration))
    answer = Embedder(found, keys, host, output)
    with joined() as ranks, claimed(folder, configuration, ranks):
        run(
            folder,
            data,
            prepare,
            answer,
            plan,
            workers=workers,
            ranks=ranks,
            pin=weight.is_cuda,
            watch=watch,
        )

        def finish() -> Drift:
            names = {key: one.name for key, one in zip(keys, found, strict=True)}
            asked = 0 if provenance.random else queries
            figures = _figures(folder, names, ks, asked, weight.device)
            report = Drift(
                folder=str(folder.path),
                **figures,
                target=target,
                skipped=folder.skipped(),
                ignored=data.ignored,
                note=data.note,
                configuration=configuration,
                environment=environment(weight.device),
                provenance=provenance,
            )
            write_json(folder.path / SUMMARY, report.to_dict())
            return report

        return ranks.first_does(finish)


def check_search(ks: Sequence[int], queries: int, target: float) -> list[int]:
    """The k of recall@k in order; see `drift`.

    Raises:
        ConfigError: one of these is out of range.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"expected k >= 1, got {list(ks)}")
    if queries < 2:
        raise ConfigError(f"expected 2 queries or more, got {queries}")
    if not 0 < target < 1:
        raise ConfigError(f"expected 0 < target < 1, got {target:g}")
    return sorted(set(ks))


def _figures(
    folder: Folder, names: dict[str, str], ks: Sequence[int], queries: int, device: torch.device
) -> dict[str, Any]:
    """The figures of a finished run: fingerprint -> name in, the dense host first.

    Without queries only how much there is.
    """
    with tempfile.TemporaryDirectory(prefix=PASSING, dir=folder.path) as place:
        dense, *others = _arrays(folder, list(names), Path(place))
        if not queries:
            return {"images": len(dense), "queries": 0, "width": dense.shape[1], "columns": []}
        skipped = folder.skipped()
        check_count(len(dense), ks, f": {skipped[0].reason}" if skipped else "")
        asked = torch.tensor(spread(queries, len(dense)))
        truth = [_search(dense, dense, rows, max(ks), device) for rows in asked.split(_CHUNK)]
        columns = [
            _column(name, key, dense, pruned, asked, truth, ks, device)
            for (key, name), pruned in zip(list(names.items())[1:], others, strict=True)
        ]
        return {
            "images": len(dense),
            "queries": len(asked),
            "width": dense.shape[1],
            "columns": columns,
        }


def _search(
    index: Any, queries: Any, rows: Tensor, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The nearest in an index to some rows of another array, each row's own image left out."""
    asked = torch.from_numpy(np.array(queries[rows.numpy()])).to(device)
    return search(index, asked, rows.to(device), count)


def check_count(count: int | None, ks: Sequence[int], why: str = "") -> None:
    """Refuse fewer images than an index needs that is searched for so many.

    Args:
        count: of images; None where it is not known yet.
        ks: of recall@k.
        why: no more could be read, for the message.

    Raises:
        ConfigError: there are no more than the largest k.
    """
    if count is not None and count <= max(ks):
        raise ConfigError(
            f"expected more than {counted(max(ks), 'image')} for recall@{max(ks)}, got {count}{why}"
        )


def _arrays(folder: Folder, keys: Sequence[str], place: Path) -> list[Any]:
    """The embeddings of each contender at length 1, (N, D) float32 on disk, in one order."""
    total = folder.count() // len(keys)
    arrays: dict[str, Any] = {}
    start = 0
    for table in folder.tables():
        size = len(table) // len(keys)
        for key in keys:
            rows = table.filter(pc.equal(table["configuration"], key))["embedding"]
            if not size:
                continue
            values = rows.combine_chunks().flatten().to_numpy().reshape(size, -1)
            if key not in arrays:
                path, shape = place / f"{key}.npy", (total, values.shape[1])
                arrays[key] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            unit = F.normalize(torch.from_numpy(values.copy()).double(), dim=1).float()
            arrays[key][start : start + size] = unit.numpy()
        start += size
    return [arrays.get(key, np.empty((0, 1), np.float32)) for key in keys]


def _column(
    name: str,
    key: str,
    dense: Any,
    pruned: Any,
    asked: Tensor,
    truth: Sequence[tuple[Tensor, Tensor]],
    ks: Sequence[int],
    device: torch.device,
) -> Column:
    """The figures of one configuration, over all images and over the queries."""
    cosines = _cosines(dense, pruned)
    recall: dict[int, list[Tensor]] = {k: [] for k in ks}
    again: dict[int, list[Tensor]] = {k: [] for k in ks}
    own = []
    for rows, (near, _) in zip(asked.split(_CHUNK), truth, strict=True):
        reached, found = _search(dense, pruned, rows, max(ks), device)
        _, other = _search(pruned, pruned, rows, max(ks), device)
        true = torch.from_numpy(np.array(dense[rows.numpy()])).to(device)
        for k in ks:
            recall[k].append(found_again(dense, true, near, found, k).cpu())
            again[k].append(found_again(dense, true, near, other, k).cpu())
        own.append((cosines[rows] >= reached[:, 0].cpu() - SLACK).float())
    return Column(
        name=name,
        configuration=key,
        cosine=mean_of(cosines),
        fifth=percentile_of(cosines, 0.05),
        least=float(cosines.min()),
        recall={k: share_of(torch.cat(parts)) for k, parts in recall.items()},
        own=share_of(torch.cat(own)),
        again={k: share_of(torch.cat(parts)) for k, parts in again.items()},
    )


def _cosines(dense: Any, pruned: Any) -> Tensor:
    """(N,) float64."""
    found = []
    for start in range(0, len(dense), 1 << 14):
        rows = slice(start, start + (1 << 14))
        one, other = (torch.from_numpy(np.array(array[rows])).double() for array in (dense, pruned))
        found.append((one * other).sum(1))
    return torch.cat(found).clamp(-1, 1)
