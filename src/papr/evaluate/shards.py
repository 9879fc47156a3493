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

from papr.classes import NO_CLASSES, UNUSED, wordnet
from papr.errors import ConfigError
from papr.evaluate.sources import DataError, Item, Source, digest, readable
from papr.images import SUFFIXES

_ADDRESS = re.compile(r"pipe:|[a-z][a-z0-9+.-]*://")
_IMAGES = [kind.removeprefix(".") for kind in (".jpg", ".jpeg", ".png", ".webp", *sorted(SUFFIXES))]
_FIRST = 64  # samples whose labels say whether labels fit the host
_BLOCK = 512  # bytes, tar's
_ENDS = 4096  # bytes of either end of a shard that tell it from another
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


def is_shard(name: str) -> bool:
    """Whether a file is a shard by its name."""
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def names_shards(text: str) -> bool:
    """Whether a text is the name, a pattern or an address of shards."""
    return bool(_ADDRESS.match(text)) or ("{" in text and "}" in text) or is_shard(text)


def open_shards(text: str, classes: int | None) -> "Shards":
    """Shards by name, pattern (braces) or address; see `open_files`."""
    check_installed()
    from braceexpand import braceexpand  # of webdataset

    try:
        found = list(braceexpand(text)) if not Path(text).exists() else [text]
    except (ValueError, OSError) as error:
        raise DataError(f"cannot read the pattern {text}: {error}") from None
    return open_files(found, classes)


def open_files(names: Sequence[str], classes: int | None) -> "Shards":
    """Shards, in this order.

    Labels are numbers or WordNet ids in a sample's .cls, or "label" in its .json.

    Args:
        names: files or addresses.
        classes: how many the host has; where one of the first labels cannot be its, none is used.

    Raises:
        DataError: a file does not exist.
        ConfigError: webdataset is not installed.
    """
    check_installed()
    for name in names:
        if not _is_remote(name) and not Path(name).is_file():
            raise DataError(f"expected a shard, {name} does not exist or is no file")
    found = Shards(list(names), classes)
    if not classes:
        found.note = NO_CLASSES
        return found
    with contextlib.suppress(DataError):  # a broken shard is named when it is read
        samples = list(islice(found.samples(0), _FIRST))
        first = [found.read(sample) for sample in samples]
        wrong = [item.fault for item in first if item.fault.startswith(_NO_CLASS)]
        if wrong or all(item.label is None for item in first):
            found.classes = None
            found.note = f"{wrong[0] if wrong else 'no labels in the shards'}: {UNUSED}"
        elif any(
            item.label is not None and not names_word_net(_told(sample))
            for item, sample in zip(first, samples, strict=True)
        ):
            found.note = "labels: the shards' numbers as they stand"
    return found


def check_installed() -> None:
    """Raise ConfigError where the library is not there."""
    import importlib.util

    if importlib.util.find_spec("webdataset") is None:
        raise ConfigError('expected webdataset for shards: pip install "papr-torch[eval]"')


def _is_remote(name: str) -> bool:
    return bool(_ADDRESS.match(name))


@dataclass
class Shards(Source):
    """Samples in tar files, which have an order and no numbers.

    Attributes:
        shards: files or addresses.
        classes: how many the host has; None where labels are not used.
    """

    shards: Sequence[str]
    classes: int | None = None
    note: str = ""
    ignored: Sequence[str] = ()
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

    def samples(self, shard: int) -> Iterator[dict[str, Any]]:
        """The samples of one shard as webdataset has them: bytes by suffix.

        Raises:
            DataError: the shard breaks off, or cannot be opened.
        """
        name = self.shards[shard]
        try:
            stream = _open(name)
            try:
                yield from _samples(stream, name)
                stream.close()  # where a process behind a pipe says that it failed
            finally:
                with contextlib.suppress(Exception):
                    stream.close()
        except Exception as error:  # of tarfile, zlib, webdataset, a server
            raise DataError(f"cannot read {name} to its end: {_reason(error)}") from None

    def read(self, sample: dict[str, Any]) -> Item:
        """A sample of webdataset as one of ours."""
        key = readable(sample["__key__"])
        suffix = _image(sample)
        if suffix is None:
            return Item(key, None, b"", f"expected an image in the sample {key}, none")
        try:
            label = None if self.classes is None else _label(sample, self.classes)
        except DataError as error:
            return Item(key, None, b"", str(error))
        return Item(key, label, sample[suffix])

    def identity(self) -> dict[str, Any]:
        """Names and sizes of the shards, and their first and last bytes; of addresses, names."""
        return {
            "kind": self.kind,
            "shards": len(self.shards),
            "labels": self.classes is not None,
            "digest": digest_files(self.shards),
        }


def digest_files(names: Sequence[str]) -> str:
    """A fingerprint of files by name, size and ends, wherever their folder lies."""
    folders = [str(Path(name).absolute().parent) for name in names if not _is_remote(name)]
    root = os.path.commonpath(folders) if folders else ""
    return digest(name if _is_remote(name) else _describe(Path(name), root) for name in names)


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
    if not _is_remote(name):
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


def _samples(stream: IO[bytes], name: str) -> Iterator[dict[str, Any]]:
    """What webdataset makes of a tar file; where that breaks off, all before it comes first."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    blocks = _Blocks(stream)
    broken: list[Exception] = []

    def files() -> Iterator[dict[str, Any]]:
        try:
            for file in tar_file_iterator(blocks):
                yield {**file, "__url__": name}
            blocks.check_end()
        except Exception as error:
            broken.append(error)

    waiting: dict[str, Any] | None = None
    usual: Iterable[str] = ()
    for sample in group_by_keys(files()):
        if waiting is not None:
            yield waiting
            usual = waiting.keys()
        waiting = sample
    # The last sample before a break may lack files.
    if waiting is not None and (not broken or waiting.keys() == usual):
        yield waiting
    if broken:
        raise broken[0]


def _image(sample: dict[str, Any]) -> str | None:
    """The suffix of the sample's image: one by itself first, else such as "left.jpg"."""
    plain = next((suffix for suffix in _IMAGES if suffix in sample), None)
    return plain or next((s for s in sample if s.rpartition(".")[2] in _IMAGES), None)


def _label(sample: dict[str, Any], classes: int) -> int | None:
    told = _told(sample)
    return None if told is None else to_class(told, classes)


def _told(sample: dict[str, Any]) -> object:
    """The label as it stands in a sample; None where there is none."""
    if "cls" in sample:
        return sample["cls"].decode("utf-8", "replace")
    if "json" in sample:
        try:
            found = json.loads(sample["json"])
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
