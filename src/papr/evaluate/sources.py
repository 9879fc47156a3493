"""What a run reads: samples in a fixed order, in one shard or many, not decoded yet."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from papr.errors import DataError as DataError
from papr.measure import spread


@dataclass(frozen=True)
class Item:
    """One sample as it lies in its source.

    Attributes:
        id: its name there: a path inside the folder, a key, a row's number.
        label: class index of the host, or None where it is unknown.
        content: what `prepare` decodes: a path, or the bytes of a file.
        fault: why it cannot be used, where that is known before it is decoded; else empty.
    """

    id: str
    label: int | None
    content: Path | bytes
    fault: str = ""


class Source(ABC):
    """Samples in an order that never changes, so that a run can be taken up where it stopped.

    It travels to loader processes, so it is plain data: nothing is open in it.

    Attributes:
        kind: "folder", "webdataset", "huggingface" or "videos".
        shards: names of what is read one after the other; a single one where every sample can be
            had by its number.
        length: samples in all; None where only reading tells, which is where there are shards.
        ignored: files that lie among the samples and are none.
        note: what else must be said of it, such as why labels are not used; may be empty.
        about: what was taken for the images and their labels: "column", "split", "classes" (class
            index by folder). It belongs to the identity.
    """

    kind: str
    shards: Sequence[str]
    length: int | None
    ignored: Sequence[str] = ()
    note: str = ""
    about: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def item(self, number: int) -> Item:
        """The sample with that number, where there are no shards.

        Raises:
            DataError: it cannot be had; the run names and skips it.
        """

    def name(self, number: int) -> str:
        """The id of the sample with that number; nothing is read for it where there is a list.

        Where reading alone tells and fails, it is "sample" and the number.
        """
        try:
            return self.item(number).id
        except DataError:
            return f"sample {number}"

    def items(self, shard: int) -> Iterator[Item]:
        """The samples of one shard, in order, where there are shards.

        Raises:
            DataError: the shard ends before its end; what came before it stands.
        """
        raise NotImplementedError

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain data that differs where the samples, their order or their labels differ."""


@dataclass
class Folder(Source):
    """A folder of images: labelled by the folders they lie in, or not.

    Attributes:
        root: the folder.
        paths: inside it, in order.
        labels: as many; or None.
        about: see `Source`.
    """

    root: Path
    paths: list[str]
    labels: Sequence[int | None] | None = None
    ignored: Sequence[str] = ()
    note: str = ""
    kind: str = "folder"
    about: dict[str, Any] = field(default_factory=dict)
    shards: Sequence[str] = field(init=False)
    length: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.shards, self.length = (str(self.root),), len(self.paths)

    def item(self, number: int) -> Item:
        """The image with that number."""
        label = None if self.labels is None else self.labels[number]
        return replace(self.named(self.paths[number]), label=label)

    def name(self, number: int) -> str:
        """The path of the image with that number."""
        return readable(self.paths[number])

    def named(self, path: str) -> Item:
        """The image at `path` in the folder, without its label."""
        return Item(readable(path), None, self.root / path)

    def identity(self) -> dict[str, Any]:
        """Names, sizes and labels, not where the folder lies; what is not there has size -1."""
        labels: Sequence[int | None] = self.labels or [None] * len(self.paths)
        root = str(self.root)
        lines = (
            f"{path} {file_size(os.path.join(root, path))} {label}"  # noqa: PTH118 - likewise
            for path, label in zip(self.paths, labels, strict=True)
        )
        own = {"kind": self.kind, "samples": self.length, "digest": digest(lines)}
        return own | self.about


@dataclass
class Chosen(Source):
    """Some samples of a source that has them by number.

    Attributes:
        source: where they are.
        numbers: which, in their new order.
    """

    source: Source
    numbers: list[int]

    def __post_init__(self) -> None:
        self.kind, self.shards, self.length = (
            self.source.kind,
            self.source.shards,
            len(self.numbers),
        )
        self.ignored, self.note = self.source.ignored, self.source.note
        self.about = self.source.about

    def item(self, number: int) -> Item:
        """The sample with that number among the chosen."""
        return self.source.item(self.numbers[number])

    def name(self, number: int) -> str:
        """The id of the sample with that number among the chosen."""
        return self.source.name(self.numbers[number])

    def identity(self) -> dict[str, Any]:
        """The source's, and which samples."""
        return {**self.source.identity(), "chosen": digest(map(str, self.numbers))}


@dataclass
class Held(Source):
    """Samples in memory: the first ones of shards, whose samples cannot be had by number."""

    source: Source
    held: list[Item]

    def __post_init__(self) -> None:
        self.kind, self.shards, self.length = self.source.kind, self.source.shards, len(self.held)
        self.note, self.about = self.source.note, self.source.about

    def item(self, number: int) -> Item:
        """The sample with that number."""
        return self.held[number]

    def identity(self) -> dict[str, Any]:
        """The source's, and how many samples."""
        return {**self.source.identity(), "first": self.length}


def take(source: Source, count: int) -> Source:
    """`count` samples, evenly spread over a source, of shards the first; all if it has no more."""
    if source.length is not None:
        if source.length <= count:
            return source
        return Chosen(source, spread(count, source.length))
    items = (item for shard in range(len(source.shards)) for item in to_its_end(source, shard))
    return Held(source, list(islice(items, count)))


def item_or_fault(source: Source, number: int) -> Item:
    """The sample with that number; a faulty one where it cannot be had."""
    try:
        return source.item(number)
    except DataError as error:
        return Item(source.name(number), None, b"", str(error))


def to_its_end(source: Source, shard: int) -> Iterator[Item]:
    """The samples of a shard; where it breaks off, a faulty one is the last of them."""
    try:
        yield from source.items(shard)
    except DataError as error:
        yield Item(source.shards[shard], None, b"", str(error))


def file_size(path: str | Path) -> int:
    """In bytes; -1 where the file is not there."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path for each costs more than the call
    except (OSError, ValueError):  # no name of a file
        return -1


def readable(name: str) -> str:
    r"""A file's name as Unicode; bytes of it that are none as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def digest(lines: Iterable[str]) -> str:
    """A short fingerprint of lines of text."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()[:16]
