"""The folder of a run on any file system that pyarrow knows, for rows that many machines write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from papr.errors import ConfigError, one_line
from papr.evaluate.claims import check_claim
from papr.evaluate.loading import Skipped
from papr.evaluate.objects import filesystem
from papr.evaluate.runs import UNREADABLE, warn_unreadable
from papr.files import check_folder, make_output
from papr.walking import CONFIGURATION, ROWS

_NOTHING = np.empty(0, np.int64)


def writer(out: str) -> Callable[[str, Any], None]:
    """What writes bytes to a file below `out`, whole or not at all.

    It names nothing of papr, so that a process that unpickles it need not load papr: that takes
    longer than writing does.
    """

    def write(name: str, content: Any) -> None:
        import os
        import uuid
        from pathlib import Path

        from pyarrow import fs

        if "://" not in out:  # by Python: Arrow knows no names that are not Unicode
            path = Path(out).absolute() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
            with written.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
            handle = os.open(path.parent, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
            return
        files, root = fs.FileSystem.from_uri(out)
        folder, _, last = f"{root.rstrip('/')}/{name}".rpartition("/")
        files.create_dir(folder, recursive=True)
        # Object storage shows no file before it is closed.
        local = isinstance(files, fs.LocalFileSystem)
        place = f"{folder}/.{uuid.uuid4().hex}-{last}" if local else f"{folder}/{last}"
        with files.open_output_stream(place) as stream:
            stream.write(content)
        if local:
            files.move(place, f"{folder}/{last}")

    return write


class Store:
    """The folder of a run on any file system.

    Attributes:
        out: a path, or an address such as s3://bucket/prefix.
    """

    def __init__(self, out: str) -> None:
        self.out = out

    def _remote(self) -> tuple[fs.FileSystem, str] | None:
        return filesystem(self.out) if "://" in self.out else None

    def names(self) -> list[str]:
        """The files of rows, in order."""
        return [name for name in self._all() if not name.startswith(".")]

    def _all(self) -> list[str]:
        """These and those that are being written."""
        remote = self._remote()
        if remote is None:
            return sorted(path.name for path in (Path(self.out) / ROWS).glob("*.parquet"))
        files, root = remote
        found = files.get_file_info(fs.FileSelector(f"{root}/{ROWS}", allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.endswith(".parquet"))

    def _read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where it is not."""
        remote = self._remote()
        if remote is None:
            return (Path(self.out) / name).read_bytes()
        with remote[0].open_input_file(f"{remote[1]}/{name}") as file:
            content: bytes = file.read()
            return content

    def _move(self, name: str, new: str | None) -> None:
        """A file of rows by another name, or deleted."""
        remote = self._remote()
        if remote is None:
            path = Path(self.out) / ROWS / name
            path.unlink() if new is None else path.replace(path.with_name(new))
        elif new is None:
            remote[0].delete_file(f"{remote[1]}/{ROWS}/{name}")
        else:
            remote[0].move(f"{remote[1]}/{ROWS}/{name}", f"{remote[1]}/{ROWS}/{new}")

    def claim(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """As `runs.Folder.claim`; returns the configuration as it is stored."""
        if "://" not in self.out:
            check_folder(Path(self.out), "the output folder")
        found = None
        try:
            found = json.loads(self._read(CONFIGURATION))
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise ConfigError(
                f"cannot read {self.out}/{CONFIGURATION}: {one_line(error)}"
            ) from None
        if check_claim(found, configuration, bool(self.names()), self.out):
            if "://" not in self.out:
                make_output(Path(self.out))
            self.note(CONFIGURATION, configuration)
        whole: dict[str, Any] = json.loads(json.dumps(configuration))
        return whole

    def note(self, name: str, data: dict[str, Any]) -> None:
        """Plain data as a file of JSON, over one of that name."""
        writer(self.out)(name, (json.dumps(data, indent=1) + "\n").encode())

    def write(self, name: str, rows: pa.Table) -> None:
        """A file of rows, over one of that name."""
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer)
        writer(self.out)(f"{ROWS}/{name}", buffer.getvalue())

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of a file."""
        return pq.read_table(pa.BufferReader(self._read(f"{ROWS}/{name}")), columns=columns)

    def settle(self) -> dict[int, Any]:
        """See that no sample is there twice; where one is, the first file's row stands.

        To be called while nobody writes: what a killed process was writing is deleted.

        Returns:
            Shard -> the positions that have a row, ascending.
        """
        for name in set(self._all()) - set(self.names()):
            self._move(name, None)
        read = {name: self._keys(name) for name in self.names()}
        names = [name for name, found in read.items() if found is not None]
        keys = [found for found in read.values() if found is not None]
        sizes = [len(table) for table in keys]
        file = np.repeat(np.arange(len(names)), sizes)
        shard, position = (
            np.concatenate([_NOTHING, *(t[name].to_numpy().astype(np.int64) for t in keys)])
            for name in ("shard", "position")
        )
        order = np.lexsort((file, position, shard))
        twice = np.zeros(len(order), bool)
        same = np.diff(shard[order]) == 0
        twice[order[1:]] = same & (np.diff(position[order]) == 0)
        stands = np.split(~twice, np.cumsum(sizes)[:-1])  # file by file
        for number in np.unique(file[twice]):
            rows = self.read(names[number])
            self.write(names[number], rows.filter(pa.array(stands[number])))
        order = order[~twice[order]]
        shards, starts = np.unique(shard[order], return_index=True)
        each = np.split(position[order], starts[1:])  # one piece, of nothing, where no row is
        return {int(s): positions for s, positions in zip(shards, each, strict=False)}

    def _keys(self, name: str) -> pa.Table | None:
        """Which samples a file has; None where it cannot be read, and is set aside and named."""
        try:
            return self.read(name, ["shard", "position"]).select(["shard", "position"])
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            aside = name.removesuffix(".parquet") + UNREADABLE
            self._move(name, aside)
            warn_unreadable(f"{self.out}/{ROWS}/{name}", aside, error)
            return None

    def count(self) -> tuple[int, list[Skipped]]:
        """How many rows there are, and those without an answer, in order."""
        total, skipped = 0, []
        for name in self.names():
            rows = self.read(name, ["shard", "position", "id", "error"])
            total += len(rows)
            for row in rows.filter(pc.is_valid(rows["error"])).to_pylist():
                skipped.append((row["shard"], Skipped(row["position"], row["id"], row["error"])))
        return total, [sample for _, sample in sorted(skipped)]
