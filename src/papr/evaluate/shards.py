"""WebDataset shards: tar files of samples, read from one end to the other by `webdataset`."""

import contextlib
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from papr.classes import NO_CLASSES, UNUSED, Classes, count_of, wordnet
from papr.errors import ConfigError
from papr.evaluate.members import Sample, image_of, samples
from papr.evaluate.sources import DataError, Item, Source, digest, readable

_ADDRESS = re.compile(r"pipe:|[a-z][a-z0-9+.-]*://")
_FIRST = 64  # samples whose labels say whether labels fit the host
_BLOCK = 512  # bytes, tar's
_ENDS = 4096  # bytes of either end of a shard that tell it from another
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


def is_shard(name: str) -> bool:
    """Whether a file is a shard by its name."""
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def names_shards(text: str) -> bool:
    """Whether a text is the name, a pattern or an address of shards."""
    return is_remote(text) or ("{" in text and "}" in text) or is_shard(text)


def names_of(text: str) -> list[str]:
    """The shards that a name, a pattern (braces) or an address stands for.

    Raises:
        DataError: the pattern cannot be read.
        ConfigError: webdataset is not installed.
    """
    check_installed()
    from braceexpand import braceexpand  # of webdataset

    try:
        return list(braceexpand(text)) if not Path(text).exists() else [text]
    except (ValueError, OSError) as error:
        raise DataError(f"cannot read the pattern {text}: {error}") from None


@dataclass(frozen=True)
class Files:
    """Shards that are there, before it is known who will be asked about them.

    Attributes:
        names: files or addresses.
        column: which of a sample's files is its image, where it is said.
        about: what else is known of them, such as their split.
        first: some of their samples.
    """

    names: Sequence[str]
    column: str | None
    about: dict[str, Any]
    first: list[Sample]

    def open(self, classes: Classes) -> "Shards":
        """The shards for a host.

        Labels are numbers or WordNet ids in a sample's .cls, or "label" in its .json.

        Args:
            classes: the host's; where one of the first labels cannot be its, none is used.
        """
        found = Shards(list(self.names), count_of(classes), about=self.about, column=self.column)
        if not classes:
            found.note = NO_CLASSES
            return found
        first = [found.read(sample) for sample in self.first]
        wrong = [item.fault for item in first if item.fault.startswith(_NO_CLASS)]
        if wrong or (first and all(item.label is None for item in first)):
            found.classes = None
            found.note = f"{wrong[0] if wrong else 'no labels in the shards'}: {UNUSED}"
        elif any(
            item.label is not None and not names_word_net(_told(sample.files))
            for item, sample in zip(first, self.first, strict=True)
        ):
            found.note = "labels: the shards' numbers as they stand"
        return found


def find_files(
    names: Sequence[str], column: str | None = None, about: dict[str, Any] | None = None
) -> Files:
    """Shards, in this order.

    Args:
        names: files or addresses.
        column: which of a sample's files is its image, such as "jpg" or "left.png"; None for the
            only one, or the one called "image" or "img".
        about: what else is known of them.

    Raises:
        DataError: a file does not exist, or the first samples have several images, or not the one
            that is asked for.
        ConfigError: webdataset is not installed.
    """
    check_installed()
    for name in names:
        if not is_remote(name) and not Path(name).is_file():
            raise DataError(f"expected a shard, {name} does not exist or is no file")
    first: list[Sample] = []
    with contextlib.suppress(DataError):  # a broken shard is named when it is read
        first.extend(islice(Shards(list(names), column=column).samples(0), _FIRST))
    taken = {image_of(sample.files, column) for sample in first}
    if column is not None and first and column not in taken:
        kinds = sorted({kind for sample in first for kind in sample.files})
        raise DataError(
            f"expected --image-column among the files of a sample, {', '.join(kinds)}, "
            f"got {column!r}"
        )
    about = dict(about or {})
    if taken - {None}:
        about["column"] = column or ", ".join(sorted(kind for kind in taken if kind))
    return Files(names, column, about, first)


def check_installed() -> None:
    """Raise ConfigError where the library is not there."""
    import importlib.util

    if importlib.util.find_spec("webdataset") is None:
        raise ConfigError('expected webdataset for shards: pip install "papr-torch[eval]"')


def is_remote(name: str) -> bool:
    """Whether a name is an address or a command (pipe:), not a file."""
    return bool(_ADDRESS.match(name))


@dataclass
class Shards(Source):
    """Samples in tar files, which have an order and no numbers.

    Attributes:
        shards: files or addresses.
        classes: how many the host has; None where labels are not used.
        about: see `Source`.
        column: which of a sample's files is its image, where it is said.
    """

    shards: Sequence[str]
    classes: int | None = None
    note: str = ""
    ignored: Sequence[str] = ()
    about: dict[str, Any] = field(default_factory=dict)
    column: str | None = None
    kind: str = "webdataset"
    length: int | None = field(default=None, init=False)

    def item(self, number: int) -> Item:
        """Not to be had."""
        raise DataError("expected to read shards one after the other, got a sample's number")

    def items(self, shard: int) -> Iterator[Item]:
        """The samples of one shard. One without an image, or with no class as a label, is faulty.

        Raises:
            DataError: the shard breaks off, or cannot be opened.
        """
        return map(self.read, self.samples(shard))

    def samples(self, shard: int) -> Iterator[Sample]:
        """The samples of one shard, not read as images yet.

        Raises:
            DataError: the shard breaks off, or cannot be opened.
        """
        name = self.shards[shard]
        try:
            stream = _open(name)
            try:
                yield from _samples(stream, self.column)
                stream.close()  # where a process behind a pipe says that it failed
            finally:
                with contextlib.suppress(Exception):
                    stream.close()
        except Exception as error:  # of tarfile, zlib, webdataset, a server
            raise DataError(f"cannot read {name} to its end: {_reason(error)}") from None

    def read(self, sample: Sample) -> Item:
        """A sample as a run takes it."""
        key = readable(sample.key)
        if sample.fault:
            return Item(key, None, b"", sample.fault)
        try:
            kind = image_of(sample.files, self.column)
            if kind is None:
                wanted = "an image" if self.column is None else f"the image {self.column}"
                raise DataError(f"expected {wanted} in the sample {key}, none")
            label = None if self.classes is None else _label(sample.files, self.classes)
        except DataError as error:
            return Item(key, None, b"", str(error))
        return Item(key, label, sample.files[kind])

    def identity(self) -> dict[str, Any]:
        """Names and sizes of the shards, and their first and last bytes; of addresses, names."""
        return {
            "kind": self.kind,
            "shards": len(self.shards),
            "labels": self.classes is not None,
            "digest": digest_files(self.shards),
            **self.about,
        }


def digest_files(names: Sequence[str]) -> str:
    """A fingerprint of files by name, size and ends, wherever their folder lies."""
    folders = [str(Path(name).absolute().parent) for name in names if not is_remote(name)]
    root = os.path.commonpath(folders) if folders else ""
    return digest(name if is_remote(name) else _describe(Path(name), root) for name in names)


def _describe(path: Path, root: str) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        ends += file.read(_ENDS)
    inside = path.absolute().relative_to(root).as_posix()
    return f"{inside} {size} {hashlib.sha256(ends).hexdigest()}"


def _open(name: str) -> IO[bytes]:
    from webdataset.gopen import gopen

    packed = name.lower().endswith((".gz", ".tgz"))
    if not is_remote(name):
        return gzip.open(name) if packed else Path(name).open("rb")  # type: ignore[return-value]
    stream: Any = gopen(name)
    return gzip.GzipFile(fileobj=stream) if packed else stream  # type: ignore[return-value]


class _Blocks:
    """A stream in tar's blocks, so that its reader never has more of it than it looked at.

    Python's tarfile takes a damaged header, and a file that was cut off at one, for the end.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._last, self._first = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        """At most one block."""
        found = self._stream.read(min(size, _BLOCK) if size >= 0 else _BLOCK)
        self._last = found or self._last
        self._first = self._first or found
        return found

    def check_end(self) -> None:
        """See that the reader stopped at tar's own end."""
        if self._first.startswith(_COMPRESSED):
            return
        if len(self._last) < _BLOCK or any(self._last):
            raise DataError("it is cut off, or damaged where a file's header should be")
        while rest := self._stream.read(1 << 20):
            if any(rest):
                raise DataError("there is more behind its end")


def _samples(stream: IO[bytes], column: str | None) -> Iterator[Sample]:
    """The samples of a tar file; where that breaks off, all before it comes first."""
    from webdataset.tariterators import tar_file_iterator

    blocks = _Blocks(stream)
    broken: list[Exception] = []

    def files() -> Iterator[tuple[str, bytes]]:
        try:
            for file in tar_file_iterator(blocks):
                yield file["fname"], file["data"]
            blocks.check_end()
        except Exception as error:
            broken.append(error)

    waiting: Sample | None = None
    usual: Iterable[str] = ()
    for sample in samples(files(), column):
        if waiting is not None:
            yield waiting
            usual = waiting.files.keys()
        waiting = sample
    # The last sample before a break may lack files.
    if waiting is not None and (not broken or waiting.files.keys() == usual):
        yield waiting
    if broken:
        raise broken[0]


def _label(files: dict[str, bytes], classes: int) -> int | None:
    told = _told(files)
    return None if told is None else to_class(told, classes)


def _told(files: dict[str, bytes]) -> object:
    """The label as it stands in a sample; None where there is none."""
    if "cls" in files:
        return files["cls"].decode("utf-8", "replace")
    if "json" in files:
        try:
            found = json.loads(files["json"])
        except ValueError as error:
            raise DataError(f"cannot read the sample's json: {error}") from None
        return found.get("label") if isinstance(found, dict) else None
    return None


_NO_CLASS = "expected a class"


def names_word_net(value: object) -> bool:
    """Whether a label as it stands in a file is a WordNet id."""
    return isinstance(value, str) and value.strip() in wordnet()


def to_class(value: object, classes: int) -> int | None:
    """A label as it stands in a file as a class of the host; None for a negative, a withheld one.

    Raises:
        DataError: it cannot be one.
    """
    number: object = value
    if isinstance(value, str):
        text = value.strip()
        number = wordnet().get(text) if classes == 1000 else None
        if number is None and re.fullmatch(r"-?[0-9]{1,9}", text):
            number = int(text)
    if isinstance(number, bool) or not isinstance(number, int) or number >= classes:
        shown = repr(value)[:60]
        raise DataError(f"{_NO_CLASS} 0 to {classes - 1}, got the label {shown}")
    return None if number < 0 else number


def _reason(error: Exception) -> str:
    text = str(error.args[0]) if error.args else ""
    text = text.partition(" @ <")[0]  # webdataset adds where in memory the file was
    return " ".join(text.split()) or type(error).__name__
