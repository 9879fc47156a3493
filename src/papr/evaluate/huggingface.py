"""Data sets of the Hugging Face library `datasets`: of its hub, saved in a folder, or Parquet."""

import contextlib
import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from papr.classes import NO_CLASSES, UNUSED, Classes, count_of, match_names, wordnet
from papr.errors import ConfigError, one_line
from papr.evaluate.shards import digest_files, names_word_net, to_class
from papr.evaluate.sources import DataError, Item, Source, digest
from papr.splits import one_split
from papr.words import counted

_PREFIX = "hfds/"
_NAME = re.compile(
    r"(?P<name>[^:{}\s]+)(:(?P<split>\w[\w.+-]*(\[[^\]]*\])?)(:(?P<label>[\w. -]+))?)?"
)
#: Columns that are taken for the image and the label where no feature says so.
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABELS = ("label", "labels", "cls", "class", "target")


class Name(NamedTuple):
    """What a text says of a data set: "hfds/" is gone, the rest may be None."""

    name: str
    split: str | None = None
    label: str | None = None


def parse_name(text: str) -> Name | None:
    """NAME, NAME:SPLIT or NAME:SPLIT:LABEL; None where it is none of these."""
    found = _NAME.fullmatch(text.removeprefix(_PREFIX))
    return Name(found["name"], found["split"], found["label"]) if found else None


def parse_place(text: str) -> Name | None:
    """A path that is there, whatever its characters, and what follows it as in `parse_name`."""
    for count in range(3):
        path, *told = text.rsplit(":", count)
        if len(told) == count and path and os.path.lexists(path):
            return Name(path, *told)
    return None


def names_data_set(text: str) -> bool:
    """Whether a text names a data set of the hub."""
    found = parse_name(text)
    return found is not None and (text.startswith(_PREFIX) or found.split is not None)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of datasets wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


@dataclass(frozen=True)
class Table:
    """A data set that was loaded, before it is known who will be asked about it.

    Attributes:
        rows: of the library.
        column: of its images.
        label: of its labels, where it is said.
        facts: what tells the data set from another.
        about: what was taken of it.
    """

    rows: Any
    column: str
    label: str | None
    facts: dict[str, Any]
    about: dict[str, Any]

    def open(self, classes: Classes) -> "DataSet":
        """The data set for a host; labels that cannot be its classes are not used, and said."""
        numbers, note = _labels(self.rows, self.label, classes)
        column = self.rows.select_columns([self.column])
        if _kind(self.rows.features[self.column]) == "Image":
            import datasets

            column = column.cast_column(self.column, datasets.Image(decode=False))
        rows = column.with_format(None)
        return DataSet(rows, self.column, numbers, self.facts, note, about=self.about)


def find_saved(place: Name, column: str | None = None) -> Table:
    """A data set that `save_to_disk` wrote.

    Args:
        place: its folder, and the split and the column of labels where they are said.
        column: of images, where it is said.

    Raises:
        DataError: it cannot be had, has several splits and none is named, or has no column of
            images, or several.
        ConfigError: datasets is not installed.
    """
    datasets = _library()
    with _explained(place.name):
        found = datasets.load_from_disk(place.name)
    return _choose(found, place, column)


def find_on_hub(text: str, column: str | None = None) -> Table:
    """A data set of the hub; see `parse_name` and `find_saved`.

    The name may end in a slash and a configuration.
    """
    datasets = _library()
    asked = parse_name(text)
    assert asked is not None
    with _explained(text):
        found = _from_hub(datasets, asked)
    return _choose(found, asked, column)


def find_tables(names: Sequence[str], place: Name, column: str | None = None) -> Table:
    """Files of Parquet as one data set, read into the library's cache first.

    Args:
        names: the files.
        place: what they were found by; its split and its column of labels are said of them all.
        column: of images, where it is said.

    Raises:
        DataError: as of `find_saved`.
        ConfigError: datasets is not installed.
    """
    datasets = _library()
    with _explained(names[0]):
        files = [glob.escape(str(Path(name).absolute())) for name in names]
        found = datasets.load_dataset("parquet", data_files=files, split="train")
    return _make(found, place, column, {"files": digest_files(names)})


def _library() -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError('expected datasets for its data sets: pip install "papr-torch[eval]"')
    import datasets

    return datasets


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of the library and the hub as one line; without their progress bars."""
    from datasets import utils

    hidden = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"cannot load the data set {name}: {one_line(error)}") from None
    finally:
        if not hidden:
            utils.enable_progress_bars()


def _from_hub(datasets: Any, asked: Name) -> Any:
    """A data set of the hub, from the library's cache where the hub cannot be reached."""
    from papr.hub import reachable

    name, _, configuration = asked.name, "", None
    if name.count("/") == 2:
        name, _, configuration = name.rpartition("/")
    load = partial(datasets.load_dataset, name, configuration, split=asked.split)
    if reachable():
        return load()
    try:
        with _offline(datasets):
            return load()
    except Exception as error:
        raise DataError(
            f"cannot load the data set {name}: the hub cannot be reached, and it is not in the "
            f"cache ({one_line(error)})"
        ) from None


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """No minutes of retries."""
    client = importlib.import_module("huggingface_hub.constants")
    switches = [(datasets.config, "HF_HUB_OFFLINE"), (client, "HF_HUB_OFFLINE")]
    switches.append((datasets.config, "HF_DATASETS_OFFLINE"))  # its name in 2.20
    before = [
        (where, name, getattr(where, name)) for where, name in switches if hasattr(where, name)
    ]
    for where, name, _ in before:
        setattr(where, name, True)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def _choose(found: Any, asked: Name, column: str | None) -> Table:
    if isinstance(found, dict):
        split = one_split(found, asked.split, asked.name, whole=False)
        found, asked = found[split], asked._replace(split=split)
    return _make(found, asked, column, {"fingerprint": found._fingerprint})


def _make(found: Any, asked: Name, column: str | None, facts: dict[str, Any]) -> Table:
    image = _image_column(found.features, column)
    label = asked.label
    if label is not None and label not in found.features:
        raise DataError(f"expected a label column among {', '.join(found.features)}, got {label!r}")
    about = {"column": image} | ({"split": asked.split} if asked.split else {})
    return Table(found, image, label, facts, about)


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _image_column(features: Any, column: str | None) -> str:
    """The column of images: the one asked for, the only one, or the one of the usual name."""
    named = [name for name, feature in features.items() if _kind(feature) == "Image"]
    named = named or [name for name in _IMAGES if _holds_files(features.get(name))]
    if column is not None:
        if column not in named and not _holds_files(features.get(column)):
            raise DataError(
                f"expected --image-column among the columns of images, "
                f"{', '.join(named) or 'none'}, got {column!r}"
            )
        return column
    if not named:
        raise DataError(
            f"expected a column of images, or one of files that --image-column names, got columns "
            f"{', '.join(features)}"
        )
    usual = [name for name in _IMAGES[:2] if name in named]
    if len(named) > 1 and not usual:
        raise DataError(
            f"expected one column of images, or one called image, found {', '.join(named)}: choose "
            f"one, as in --image-column {named[0]}"
        )
    return usual[0] if usual else named[0]


def _holds_files(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _labels(found: Any, label: str | None, classes: Classes) -> tuple[list[int | None] | None, str]:
    """Class indices of the host, or None; and what to say of it."""
    if not classes:
        return None, NO_CLASSES
    candidates = [label] if label else _label_columns(found.features)
    why = "no column of labels"
    for column in candidates:
        numbers, why = _class_numbers(found, column, classes)
        if numbers is not None:
            return numbers, why
    return None, f"{why}: {UNUSED}"


def _label_columns(features: Any) -> list[str]:
    told = [name for name, feature in features.items() if _kind(feature) == "ClassLabel"]
    return told + [name for name in _LABELS if name in features and name not in told]


def _class_numbers(
    found: Any, column: str, classes: int | Sequence[str]
) -> tuple[list[int | None] | None, str]:
    """What stands in a column as classes of the host, or None; and what to say of it."""
    feature = found.features[column]
    values = found.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if _kind(feature) == "ClassLabel":
        index, note = _class_index(feature.names, classes)
        if index is None:
            return None, f"{column}: {note}"
        numbers = [None if v is None or v < 0 else index[v] for v in values]
        return numbers, f"labels: {column}'s {note}" if note else ""
    count = count_of(classes) or 0
    try:
        numbers = [None if v is None else to_class(v, count) for v in values]
    except DataError as error:
        return None, f"{column}: {error}"
    plain = any(v is not None and not names_word_net(v) for v in values)
    return numbers, f"labels: {column}'s numbers as they stand" if plain else ""


def _class_index(
    names: Sequence[str], classes: int | Sequence[str]
) -> tuple[Sequence[int] | None, str]:
    """The host's class for each of a data set's names."""
    known, count = wordnet(), count_of(classes)
    if count == 1000 and all(name in known for name in names):
        return [known[name] for name in names], ""
    if not isinstance(classes, int):
        return match_names(names, classes)
    if len(names) != count:
        return None, f"{counted(len(names), 'class')} for the host's {count}"
    return range(count), "classes in their own order"


@dataclass
class DataSet(Source):
    """Rows of a data set, images not decoded.

    Attributes:
        rows: of the library, memory-mapped, with one column.
        column: its name.
        labels: one a row; or None.
        facts: what tells the data set from another.
        about: see `Source`.
    """

    rows: Any
    column: str
    labels: list[int | None] | None
    facts: dict[str, Any]
    note: str = ""
    ignored: Sequence[str] = ()
    about: dict[str, Any] = field(default_factory=dict)
    kind: str = "huggingface"
    shards: Sequence[str] = field(init=False, default=("rows",))
    length: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.rows)

    def item(self, number: int) -> Item:
        """The row with that number, which is its name.

        Raises:
            DataError: the row cannot be read.
        """
        label = None if self.labels is None else self.labels[number]
        try:
            found = self.rows[number][self.column]
        except Exception as error:  # whatever Arrow says of a damaged file
            raise DataError(f"cannot read row {number}: {one_line(error)}") from None
        content = found
        if isinstance(found, dict):
            content = found["bytes"]
            if content is None and found.get("path"):
                content = Path(found["path"])
        if content is None:
            return Item(str(number), label, b"", f"expected an image in row {number}, none")
        return Item(str(number), label, content)

    def name(self, number: int) -> str:
        """The row's number."""
        return str(number)

    def identity(self) -> dict[str, Any]:
        """The library's fingerprint, or the files' names, sizes and ends; and the labels."""
        labels = None if self.labels is None else digest(map(str, self.labels))
        own = {"kind": self.kind, "samples": self.length, "labels": labels}
        return own | self.facts | self.about
