"""What a run reads: samples in a fixed order, in one shard or many, not decoded yet."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from papr.errors import PaprError
from papr.images import SUFFIXES


class DataError(PaprError, ValueError):
    """Data that a run was pointed at cannot be read as what it was taken for."""


@dataclass(frozen=True)
class Item:
    """One sample as it lies in its source.

    Attributes:
        id: its name there: a path inside the folder, a key, a row's number.
        label: class index of the host, or None where it is unknown.
        content: what `prepare` decodes: a path, or the bytes of a file.
    """

    id: str
    label: int | None
    content: Path | bytes


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
    """

    kind: str
    shards: Sequence[str]
    length: int | None
    ignored: Sequence[str] = ()
    note: str = ""

    @abstractmethod
    def item(self, number: int) -> Item:
        """The sample with that number, where there are no shards.

        Raises:
            DataError: it cannot be had; the run names and skips it.
        """

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
    """

    root: Path
    paths: list[str]
    labels: list[int] | None = None
    ignored: Sequence[str] = ()
    note: str = ""
    kind: str = "folder"
    shards: Sequence[str] = field(init=False)
    length: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.shards, self.length = (str(self.root),), len(self.paths)

    def item(self, number: int) -> Item:
        """The image with that number."""
        label = None if self.labels is None else self.labels[number]
        return replace(self.named(self.paths[number]), label=label)

    def named(self, path: str) -> Item:
        """The image at `path` in the folder, without its label."""
        return Item(path, None, self.root / path)

    def identity(self) -> dict[str, Any]:
        """Names and labels, not where the folder lies."""
        labels: Sequence[int | None] = self.labels or [None] * len(self.paths)
        pairs = (f"{path} {label}" for path, label in zip(self.paths, labels, strict=True))
        return {"kind": self.kind, "samples": self.length, "digest": digest(pairs)}


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

    def item(self, number: int) -> Item:
        """The sample with that number among the chosen."""
        return self.source.item(self.numbers[number])

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
        self.note = self.source.note

    def item(self, number: int) -> Item:
        """The sample with that number."""
        return self.held[number]

    def identity(self) -> dict[str, Any]:
        """The source's, and how many samples."""
        return {**self.source.identity(), "first": self.length}


def take(source: Source, count: int) -> Source:
    """The first `count` samples of a source, or all where it has no more."""
    if source.length is not None:
        return source if source.length <= count else Chosen(source, list(range(count)))
    items = (item for shard in range(len(source.shards)) for item in source.items(shard))
    return Held(source, list(islice(items, count)))


def digest(lines: Iterable[str]) -> str:
    """A short fingerprint of lines of text."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()[:16]


def open_folder(root: Path, classes: int | None) -> Folder:
    """A folder of images through timm's reader.

    Args:
        root: searched to the bottom.
        classes: how many the host has; labels that cannot be theirs are not used, and said.

    Raises:
        DataError: no image is there.
    """
    from timm.data.readers.reader_image_folder import find_images_and_targets

    if not root.is_dir():
        raise DataError(f"expected a folder of images, got {root}")
    found, numbers = find_images_and_targets(str(root), types=SUFFIXES)
    if not found:
        raise DataError(f"expected images ({', '.join(sorted(SUFFIXES))}) in {root}, none")
    paths = [Path(path).relative_to(root).as_posix() for path, _ in found]
    known = set(paths)
    files = (p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file())
    names = sorted(numbers, key=numbers.__getitem__)
    labels, note = number_labels([names[target] for _, target in found], classes)
    return Folder(root, paths, labels, [path for path in files if path not in known], note)


def number_labels(names: Sequence[str], classes: int | None) -> tuple[list[int] | None, str]:
    """Class indices of a host for the names of folders, or None and why not.

    WordNet ids are ImageNet's, however few of its classes are there. Other names count in sorted
    order, if there are as many as the host has classes; then they are what it was trained on.

    Args:
        names: one a sample.
        classes: how many the host has; None where it does not classify.
    """
    from timm.data import ImageNetInfo
    from timm.utils.misc import natural_key

    distinct = sorted(set(names), key=natural_key)
    if not classes:
        return None, "the host does not classify: labels are not used"
    if classes == 1000:
        index = {name: i for i, name in enumerate(ImageNetInfo().label_names())}
        if all(name in index for name in distinct):
            return [index[name] for name in names], ""
    if len(distinct) == classes:
        index = {name: i for i, name in enumerate(distinct)}
        return [index[name] for name in names], ""
    what = "no folders of classes" if len(distinct) < 2 else f"{len(distinct)} folders"
    return None, f"{what} for the host's {classes} classes: labels are not used"


#: What tells the kinds of data apart, in the order in which they are asked; each returns None
#: where the data is not of its kind. A new kind is one opener here.
Opener = Callable[[str, int | None], Source | None]


def open_source(data: str | Path, classes: int | None = None) -> Source:
    """The samples that `data` names.

    Args:
        data: a folder of images; or the address of images in object storage, see `Objects`.
        classes: how many classes the host has, for labels; None where it does not classify.

    Raises:
        DataError: nothing that can be read is there.
    """
    if "://" in str(data):
        from papr.evaluate.objects import open_objects

        return open_objects(str(data))
    path = Path(data)
    if not path.exists():
        raise DataError(f"expected a folder of images, {path} does not exist")
    return open_folder(path, classes)
