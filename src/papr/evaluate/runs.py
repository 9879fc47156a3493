"""A run over a data set that can be killed at any moment and taken up again.

A run owns a folder:

    configuration.json       what is run on what; another configuration is refused
    rows/SHARD-PART.parquet  one row a sample (and contender), each file whole or not there
    times-RANK.jsonl         seconds of each finished part, one line each, appended
    summary.json             the figures, when all rows are there
    .papr                    says that nothing here is data
    .lock                    held while a run is going on

Work is divided into parts (see `loading`); a part's rows are written in one atomic step when its
last batch is answered. So a killed run loses the parts that were open, at most one for each process
that reads shards, and the finished rows are those of a run that was never interrupted.
"""

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from papr.errors import ConfigError, PaprWarning, one_line
from papr.evaluate.claims import check_claim, differences, identity
from papr.evaluate.loading import Batch, Part, Plan, Prepare, Skipped, loader
from papr.evaluate.locks import locked
from papr.evaluate.ranks import Ranks
from papr.evaluate.sources import Source, readable
from papr.files import atomic, check_folder, make_output, short, sync, write_json
from papr.provenance import KEY
from papr.walking import CONFIGURATION, ROWS

_META, _PROVENANCE = b"papr", KEY.encode()
_PART = re.compile(r"([0-9]+)-([0-9]+)")
#: Samples done since the last call, and how many there are to do, or None.
Watch = Callable[[int, int | None], object]
SUMMARY = "summary.json"
#: How the names of rows end that could not be read.
UNREADABLE = ".unreadable"
#: Folders inside a run's that nobody needs once it has ended.
PASSING = ".index-"


class Answer(Protocol):
    """What a run does with a batch."""

    schema: pa.Schema

    def __call__(self, batch: Batch) -> pa.Table:
        """The rows of a batch, in the order of its samples; `batch.pixels` may be None."""

    def times(self) -> dict[str, Any]:
        """What was timed since the last call, for the line of a part; may be empty."""


@dataclass(frozen=True)
class Folder:
    """The folder of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def rows(self) -> Path:
        """The folder of the Parquet files."""
        return self.path / ROWS

    def check(self, configuration: dict[str, Any]) -> bool:
        """Whether nothing is run here yet; False where it is this configuration.

        Raises:
            ConfigError: there are rows of another configuration, or of nobody knows what; the
                message says what differs.
        """
        check_folder(self.path, "the output folder")
        found = self.configuration()
        rows = self.rows.is_dir() and any(self.rows.iterdir())
        return check_claim(found, configuration, rows, str(self.path))

    def claim(self, configuration: dict[str, Any]) -> None:
        """Say what is run here, or see that it is what was run before; sweep what a kill left.

        To be called while the folder is `locked`.

        Raises:
            ConfigError: as of `check` and `sweep_parts`.
        """
        if self.check(configuration):
            write_json(self.path / CONFIGURATION, configuration)
        self.sweep_parts()
        for left in self.path.glob(f"{PASSING}*"):
            shutil.rmtree(left, ignore_errors=True)

    def configuration(self) -> dict[str, Any] | None:
        """What is run here; None where nothing is.

        Raises:
            ConfigError: the file cannot be read.
        """
        path = self.path / CONFIGURATION
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {one_line(error)}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"expected the configuration of a run in {path}, got something else")
        return found

    def parts(self) -> list[tuple[Part, Path]]:
        """The finished parts, in the order of their samples."""
        return sorted((_part(path), path) for path in self.rows.glob("[0-9]*.parquet"))

    def sweep_parts(self) -> None:
        """Set parts aside that cannot be read, so that they are done again, and name them.

        Raises:
            ConfigError: a file lies among the parts that is none.
        """
        for path in sorted(self.rows.glob("*.parquet")):
            if path.name.startswith("."):  # of a part that was being written
                path.unlink(missing_ok=True)
                continue
            _part(path)
            try:
                _meta(path)
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
                aside = path.with_suffix(UNREADABLE)
                path.replace(aside)
                warn_unreadable(readable(str(path)), aside.name, error)

    def finished_shards(self) -> set[int]:
        """Shards all of whose parts are there."""
        counts: dict[int, int] = {}
        ends: dict[int, int] = {}
        for part, path in self.parts():
            counts[part.shard] = counts.get(part.shard, 0) + 1
            if _meta(path)["ends"]:
                ends[part.shard] = part.number + 1
        return {shard for shard, count in ends.items() if counts[shard] == count}

    def skipped(self) -> list[Skipped]:
        """Samples that could not be read, in order."""
        found = [_meta(path)["skipped"] for _, path in self.parts()]
        return [Skipped(*sample) for part in found for sample in part]

    def count(self) -> int:
        """How many rows there are."""
        total = 0
        for _, path in self.parts():
            with path.open("rb") as file:
                total += pq.read_metadata(file).num_rows
        return total

    def tables(self) -> Iterator[pa.Table]:
        """The rows, part by part, in the order of the samples."""
        for _, path in self.parts():
            with path.open("rb") as file:  # a name that is no Unicode is none for Arrow
                yield pq.read_table(file)

    def write(self, part: Part, rows: pa.Table, skipped: list[Skipped], ends: bool) -> None:
        """A part's rows, whole or not at all, and on the disk when this returns.

        With them stands what weights they are of.
        """
        meta = {_META: json.dumps({"skipped": skipped, "ends": ends}).encode()}
        meta |= provenance_metadata(self.configuration() or {})
        with atomic(self.rows / f"{part.name}.parquet") as temporary:
            with temporary.open("wb") as file:
                pq.write_table(rows.replace_schema_metadata(meta), file)
            sync(temporary)
        sync(self.rows)

    def note_times(self, rank: int, line: dict[str, Any]) -> None:
        """Append one line of what was timed."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f"times-{rank}.jsonl").open("ab") as file:
            torn = file.tell() and not _ends_a_line(Path(file.name))
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")

    def times(self) -> Iterator[dict[str, Any]]:
        """What was timed, one line a part; a line that a killed run left unfinished is left out."""
        for path in sorted(self.path.glob("times-*.jsonl")):
            with path.open("rb") as file:  # line by line: it may have hundreds of megabytes
                for line in file:
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _part(path: Path) -> Part:
    """The part that a file of rows is named by. Raises ConfigError."""
    found = _PART.fullmatch(path.stem)
    if found is None:
        raise ConfigError(
            f"expected only parts of the run in {path.parent}, got {readable(path.name)}: move it "
            "away"
        )
    return Part(int(found[1]), int(found[2]))


def warn_unreadable(name: str, aside: str, error: Exception) -> None:
    """Say that a file of rows cannot be read."""
    warnings.warn(
        f"{name} cannot be read, so its samples are done again ({one_line(error)}); what was there "
        f"is now {aside}",
        PaprWarning,
        stacklevel=3,
    )


def _meta(path: Path) -> dict[str, Any]:
    """What a part says of itself."""
    with path.open("rb") as file:
        found: dict[str, Any] = json.loads(pq.read_schema(file).metadata[_META])
    return {"skipped": found["skipped"], "ends": found["ends"]}


def provenance_metadata(configuration: dict[str, Any]) -> dict[bytes, bytes]:
    """What a run's configuration says of weights, as metadata of Parquet."""
    said = configuration.get(KEY)
    return {} if said is None else {_PROVENANCE: json.dumps(said).encode()}


def identify(source: Source, plan: Plan) -> dict[str, Any]:
    """What rows depend on beside the model: the samples, and which are answered together."""
    return {"data": source.identity(), "batch": plan.batch, "part": plan.part}


def folder_of(out: str | Path) -> Folder:
    """The folder of a run that writes on this machine.

    Raises:
        ConfigError: it is an address, or an empty name.
    """
    if not str(out):
        raise ConfigError("expected the name of an output folder, got an empty one")
    check_folder(Path(out), "the output folder")
    return Folder(Path(out))


def default_folder(root: str, configuration: dict[str, Any]) -> Path:
    """A folder below `root` that only runs of this configuration have."""
    text = json.dumps(identity(configuration), sort_keys=True).encode()
    name = re.sub(r"[^\w.-]+", "_", Path(str(configuration["model"])).name)
    return Path(root) / f"{short(name)}-{hashlib.sha256(text).hexdigest()[:8]}"


@contextmanager
def claimed(folder: Folder, configuration: dict[str, Any], ranks: Ranks) -> Iterator[None]:
    """A folder as this run's and nobody else's, for as long as the block lasts.

    Args:
        folder: the run's.
        configuration: plain data, everything that rows depend on; `identify` gives the part of
            the source and the plan.
        ranks: this process among those of the run; every one of them raises what one does.

    Raises:
        ConfigError: the processes do not have one configuration (a download failed in one of them,
            or they see other files), the folder has rows of another, or another run holds it.
    """
    first, *others = ranks.gather(json.loads(json.dumps(identity(configuration))))
    for rank, other in enumerate(others, 1):
        if other != first:
            unlike = "; ".join(differences(first, other, now=f"in process {rank}"))
            raise ConfigError(f"expected one configuration in all processes, got {unlike}")
    with ExitStack() as stack:

        def claim() -> None:
            folder.check(configuration)  # before anything is made in it
            make_output(folder.path)
            stack.enter_context(locked(folder.path))
            folder.claim(configuration)

        ranks.first_does(claim)
        yield


@dataclass
class _Open:
    """A part whose rows are coming in."""

    tables: list[pa.Table] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def run(
    folder: Folder,
    source: Source,
    prepare: Prepare,
    answer: Answer,
    plan: Plan,
    *,
    workers: int | None = None,
    ranks: Ranks | None = None,
    pin: bool = False,
    watch: Watch | None = None,
) -> None:
    """Answer every sample that has no row yet. All rows are there when this returns.

    Args:
        folder: the run's, `claimed`.
        source: what is read.
        prepare: decodes a sample.
        answer: makes rows of a batch.
        plan: how the source is cut.
        workers: processes that decode ahead; see `loading.loader`.
        ranks: this process among those of the run; None where it is alone.
        pin: see `loading.loader`.
        watch: called with samples done since the last call and how many this process has to do in
            all, or None where only reading tells; first with those found done.
    """
    ranks = ranks or Ranks()
    done = ranks.first_does(lambda: {part for part, _ in folder.parts()})
    work: list[Any]
    if source.length is None:
        finished = ranks.first_does(folder.finished_shards)
        work = [shard for shard in range(len(source.shards)) if shard not in finished]
    else:
        work = [part for part in plan.parts(source) if part not in done]
    mine = ranks.share(work)
    count = _counter(source, plan, done, mine, watch)
    batches = loader(source, plan, mine, prepare, done=done, workers=workers, pin=pin)
    _answer_all(folder, iter(batches), answer, ranks.rank, count)
    ranks.wait()


def _counter(
    source: Source, plan: Plan, done: set[Part], mine: list[Any], watch: Watch | None
) -> Callable[[int], object]:
    """Tells `watch` of samples; it has been told of those found done."""
    if watch is None:
        return lambda samples: None
    if source.length is None:
        watch(0, None)
        return lambda samples: watch(samples, None)
    length = source.length
    before, left = (
        sum(min(plan.part, length - part.number * plan.part) for part in parts)
        for parts in (done, mine)
    )
    watch(before, before + left)
    return lambda samples: watch(samples, before + left)


def _answer_all(
    folder: Folder,
    batches: Iterator[Batch],
    answer: Answer,
    rank: int,
    count: Callable[[int], object],
) -> None:
    waiting: dict[Part, _Open] = {}
    waited, since = 0.0, time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return
        open_part = waiting.setdefault(batch.part, _Open())
        open_part.skipped += batch.skipped
        open_part.tables.append(answer(batch))
        if batch.closes:
            del waiting[batch.part]
            now = time.perf_counter()
            seconds = {"part": batch.part.name, "waited": waited, "wall": now - since}
            folder.note_times(rank, seconds | answer.times())
            waited, since = 0.0, now
            rows = pa.concat_tables([answer.schema.empty_table(), *open_part.tables])
            folder.write(batch.part, rows, open_part.skipped, batch.ends)
        count(len(batch.ids) + len(batch.skipped))
