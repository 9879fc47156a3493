"""The figures of an evaluation, from its rows: the same however often the run was interrupted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from papr.evaluate.loading import Skipped
from papr.evaluate.runs import Folder
from papr.measure import Difference, quartiles
from papr.provenance import KEY, Provenance


@dataclass(frozen=True)
class Result:
    """One contender's figures over all samples.

    Attributes:
        name: the contender's.
        configuration: its fingerprint, as in the rows.
        images: samples that have rows.
        labelled: those with a label.
        kept: mean share of patches kept, 0 to 1.
        top1: share of the labelled whose class is the likeliest; None without labels.
        top5: share of the labelled whose class is among the five likeliest; likewise, and None of a
            host of five classes or fewer.
        agreement: share of samples with the dense host's top-1; None where it does not classify.
        cosine: mean cosine between the embedding and the dense host's, -1 to 1; None where it is
            one number, and, as all these, where random weights make it mean nothing.
        difference: of a host of one output, the mean distance from the dense host's, in standard
            deviations of the latter over the samples; None of other hosts.
        gmacs_host: GMACs of one sample's view in the host.
        gmacs_proposal: likewise in whoever looks first.
        ms_per_image: of the forward pass by itself, (median, lower, upper quartile) over batches;
            None where nothing was timed.
        speedup: over the dense host, batch by batch, likewise.
        peak_mb: peak memory of a call's tensors in 10^6 bytes, weights not counted, of a batch; on
            a CPU of 8 samples at most. None where unknown.
    """

    name: str
    configuration: str
    images: int
    labelled: int
    kept: float
    top1: float | None
    top5: float | None
    agreement: float | None
    cosine: float | None
    difference: float | None
    gmacs_host: float
    gmacs_proposal: float
    ms_per_image: tuple[float, float, float] | None = None
    speedup: tuple[float, float, float] | None = None
    peak_mb: float | None = None

    @property
    def gmacs(self) -> float:
        """Host and whoever looks first together."""
        return self.gmacs_host + self.gmacs_proposal

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the forward pass at its median time."""
        return None if self.ms_per_image is None else 1000 / self.ms_per_image[0]


@dataclass
class _Sums:
    images: int = 0
    labelled: int = 0
    right1: int = 0
    right5: int = 0
    judged: int = 0
    agree: int = 0
    likened: int = 0
    kept: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    difference: Difference = field(default_factory=Difference)

    def add(self, rows: pa.Table, dense: pa.Table) -> None:
        """Count the rows of one part, and the dense host's of the same samples.

        Sums of floats stay exact until the end.
        """
        self.images += len(rows)
        self.kept.append(math.fsum(rows["kept"].to_pylist()))
        self.cosine.append(math.fsum(pc.drop_null(rows["cosine"]).to_pylist()))
        if rows["output"].null_count < len(rows):
            self.difference.add(rows["output"].to_pylist(), dense["output"].to_pylist())
        self.likened += len(rows) - rows["cosine"].null_count
        judged = rows.filter(pc.is_valid(rows["agrees"]))
        self.judged += len(judged)
        self.agree += pc.sum(judged["agrees"]).as_py() or 0
        labelled = judged.filter(pc.is_valid(judged["label"]))
        self.labelled += len(labelled)
        for label, best in zip(
            labelled["label"].to_pylist(), labelled["top5"].to_pylist(), strict=True
        ):
            self.right1 += label == best[0]
            self.right5 += label in best


Floats = np.ndarray[
    Any, np.dtype[np.float32]
]  # of a million batches: Python's take 8 times as much


@dataclass(frozen=True)
class Times:
    """What the lines of a run's clock add up to.

    Attributes:
        seconds: fingerprint -> seconds of each batch, float32.
        images: samples in each batch.
        peak: fingerprint -> bytes, the most that any process or session of the run needed.
        wall: seconds from the first batch asked for to the last written, over all processes.
        waited: of these, seconds spent waiting for the loader.
    """

    seconds: Mapping[str, Floats]
    images: Floats
    peak: Mapping[str, int]
    wall: float
    waited: float


def read_times(folder: Folder, keys: Sequence[str]) -> Times:
    """The clock of a run; batches that warmed a process up are left out where there are others."""
    lines: dict[str, _Line] = {}
    peak: dict[str, int] = {}
    for line in folder.times():
        if "seconds" not in line:
            continue
        table = np.array([line["images"], *(line["seconds"][key] for key in keys)], np.float32)
        lines[line["part"]] = _Line(table, line["cold"], line["wall"], line["waited"])
        for key, used in line.get("peak", {}).items():
            peak[key] = max(used, peak.get(key, 0))
    found = lines.values()
    warm = any(line.table.shape[1] > line.cold for line in found)
    used = [line.table[:, line.cold :] if warm else line.table for line in found]
    images, *seconds = np.concatenate([np.empty((1 + len(keys), 0), np.float32), *used], axis=1)
    wall, waited = (sum(getattr(line, name) for line in found) for name in ("wall", "waited"))
    return Times(dict(zip(keys, seconds, strict=True)), images, peak, wall, waited)


class _Line(NamedTuple):
    """What is kept of a line of the clock."""

    table: Floats  # (1 + contenders, batches): images in each, seconds of each contender
    cold: bool  # whether the first batch warmed the process up
    wall: float
    waited: float


def summarise(
    folder: Folder,
    named: Mapping[str, str],
    costs: Mapping[str, tuple[float, float]],
    times: Times,
    classes: int | None = None,
) -> list[Result]:
    """One result for each contender of a finished run.

    Args:
        folder: the run's.
        named: fingerprint -> name; the dense host first.
        costs: fingerprint -> GMACs of one sample's view, (host, proposal).
        times: what `read_times` made of the run's clock.
        classes: how many the host tells apart; None where nobody knows.
    """
    sums = {key: _Sums() for key in named}
    for rows in folder.tables():
        parts = {key: rows.filter(pc.equal(rows["configuration"], key)) for key in named}
        dense = next(iter(parts.values()))
        for key, part in parts.items():
            sums[key].add(part, dense)
    found = [_result(key, name, sums[key], costs[key], times) for key, name in named.items()]
    if classes is not None and classes <= 5:
        found = [replace(result, top5=None) for result in found]
    return found


def _result(key: str, name: str, found: _Sums, costs: tuple[float, float], times: Times) -> Result:
    dense = next(iter(times.seconds.values()))
    own = times.seconds[key]
    timed = len(own) > 0
    peak = times.peak.get(key)
    return Result(
        name=name,
        configuration=key,
        images=found.images,
        labelled=found.labelled,
        kept=math.fsum(found.kept) / max(1, found.images),
        top1=_share(found.right1, found.labelled),
        top5=_share(found.right5, found.labelled),
        agreement=_share(found.agree, found.judged),
        cosine=math.fsum(found.cosine) / found.likened if found.likened else None,
        difference=found.difference.value,
        gmacs_host=costs[0],
        gmacs_proposal=costs[1],
        ms_per_image=quartiles((1000 * own / times.images).tolist()) if timed else None,
        speedup=quartiles((dense / own).tolist()) if timed else None,
        peak_mb=None if peak is None else peak / 1e6,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        folder: the run's.
        results: one a contender, the dense host first.
        skipped: samples that could not be read, with their reasons.
        ignored: files among the samples that are none.
        note: of the source.
        wall: seconds from the first batch to the last row, over all sessions and processes, models'
            loading not counted.
        waited: of these, seconds that the host waited for the loader.
        configuration: what was run on what.
        environment: versions and device.
        unit: what a sample is, "image" or "video". Time is of a whole video, with all its views;
            GMACs are of one view.
        provenance: where weights come from.
    """

    folder: str
    results: list[Result]
    skipped: list[Skipped]
    ignored: Sequence[str]
    note: str
    wall: float
    waited: float
    configuration: dict[str, Any]
    environment: dict[str, Any]
    unit: str = "image"
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def blank(self) -> str:
        """Why agreement, cosine and accuracy are blank, in a sentence; empty where they are not."""
        return self.provenance.blank("agreement, cosine and accuracy")

    @property
    def gmacs_of(self) -> str:
        """What GMACs are counted of: "image" or "view"."""
        return "view" if self.unit == "video" else self.unit

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return plain(self)


def plain(found: Any) -> dict[str, Any]:
    """What a run found as plain data; samples left out by name, whatever sequence they came in.

    Args:
        found: a dataclass with `skipped`, `ignored` and `provenance`.
    """
    skipped = [sample._asdict() for sample in found.skipped]
    listed = {"skipped": skipped, "ignored": list(found.ignored)}
    return asdict(found) | listed | {KEY: found.provenance.to_dict()}
