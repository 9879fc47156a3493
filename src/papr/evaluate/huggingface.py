"""Data sets of the Hugging Face library `datasets`: of its hub, saved in a folder, or Parquet."""

import contextlib
import importlib.util
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
    split: str | None
    label: str | None


def parse_name(text: str) -> Name | None:
    """NAME, NAME:SPLIT or NAME:SPLIT:LABEL; None where it is none of these."""
    found = _NAME.fullmatch(text.removeprefix(_PREFIX))
    return Name(found["name"], found["split"], found["label"]) if found else None


def names_data_set(text: str) -> bool:
    """Whether a text names a data set of the hub, a saved folder's split, or a Parquet file."""
    found = parse_name(text)
    if found is None:
        return False
    marked = text.startswith(_PREFIX) or found.split is not None
    return marked or (text.endswith(".parquet") and Path(text).is_file())


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of datasets wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_data_set(text: str, classes: Classes) -> "DataSet":
    """A data set of the hub, one that `save_to_disk` wrote, or a file of Parquet.

    Args:
        text: see `parse_name`. On the hub the name may end in a slash and a configuration.
        classes: the host's; labels that cannot be theirs are not used, and said.

    Raises:
        DataError: it cannot be had, has several splits and none is named, or has no images.
        ConfigError: datasets is not installed.
    """
    datasets = _library()
    if text.endswith(".parquet") and Path(text).is_file():
        return open_tables([text], classes)
    asked = parse_name(text)
    assert asked is not None
    with _explained(text):
        if not text.startswith(_PREFIX) and Path(asked.name).is_dir():
            if not is_saved(Path(asked.name)):
                raise DataError(f"expected a data set of save_to_disk, {asked.name} is none")
            found = datasets.load_from_disk(asked.name)
        else:
            found = _from_hub(datasets, asked)
    if isinstance(found, dict):
        found = _choose(found, asked)
    return _make(found, asked.label, classes, {"fingerprint": found._fingerprint})


def open_tables(names: Sequence[str], classes: Classes) -> "DataSet":
    """Files of Parquet as one data set, read into the library's cache first."""
    datasets = _library()
    with _explained(names[0]):
        files = [str(Path(name).absolute()) for name in names]
        found = datasets.load_dataset("parquet", data_files=files, split="train")
    return _make(found, None, classes, {"files": digest_files(names)})


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


def _choose(splits: dict[str, Any], asked: Name) -> Any:
    names = list(splits)
    wanted = asked.split or (names[0] if len(names) == 1 else None)
    if wanted not in splits:
        raise DataError(
            f"expected a split of {asked.name} among {', '.join(names)}, as in "
            f"{asked.name}:{names[-1]}, got {asked.split or 'none'}"
        )
    return splits[wanted]


def _make(found: Any, label: str | None, classes: Classes, facts: dict[str, Any]) -> "DataSet":
    image = _image_column(found.features)
    if label is not None and label not in found.features:
        raise DataError(f"expected a label column among {', '.join(found.features)}, got {label!r}")
    numbers, note = _labels(found, label, classes)
    column = found.select_columns([image])
    if _kind(found.features[image]) == "Image":
        import datasets

        column = column.cast_column(image, datasets.Image(decode=False))
    return DataSet(column.with_format(None), image, numbers, facts, note)


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _image_column(features: Any) -> str:
    """The first column of images, or one of files by a usual name."""
    named = [name for name, feature in features.items() if _kind(feature) == "Image"]
    named += [name for name in _IMAGES if _holds_files(features.get(name))]
    if not named:
        raise DataError(f"expected a column of images, got columns {', '.join(features)}")
    return str(named[0])


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
        return None, f"{len(names)} classes for the host's {count}"
    return range(count), "classes in their own order"


@dataclass
class DataSet(Source):
    """Rows of a data set, images not decoded.

    Attributes:
        rows: of the library, memory-mapped, with one column.
        column: its name.
        labels: one a row; or None.
        facts: what tells the data set from another.
    """

    rows: Any
    column: str
    labels: list[int | None] | None
    facts: dict[str, Any]
    note: str = ""
    ignored: Sequence[str] = ()
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
        return {"kind": self.kind, "samples": self.length, "labels": labels, **self.facts}
