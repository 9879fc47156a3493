"""Lists of files: a path on each line, and perhaps its class, as people and programs write them."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from papr.classes import NO_CLASSES, UNUSED, Classes, count_of, match_names, wordnet
from papr.errors import one_line
from papr.images import SUFFIXES
from papr.video import LabelError
from papr.video.labels import bare
from papr.walking import suffix
from papr.words import counted

LISTS = (".txt", ".csv", ".tsv")
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif"),
}
_SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", " ": "a space"}
_FILES = SUFFIXES | VIDEO_SUFFIXES
_NUMBER = re.compile(r"(-?[0-9]{1,9})(\.0*)?")
_LABEL = re.compile(r"-?[0-9]+(\.0*)?|n[0-9]{8}")
#: What columns are called where a list has a header.
_PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    *("video", "video_path", "clip", "name", "image_name", "image_file"),
    *("image_id", "img_id", "video_id", "id"),  # the last: often a number beside a path
)
_LABELS = (
    *("label", "labels", "class", "class_id", "class_index", "target", "cls", "y"),
    *("label_id", "label_index", "category", "category_id", "wnid", "synset", "class_name"),
    *("label_name", "category_name", "breed", "species"),
)


class Row(NamedTuple):
    """A line: its number in the file, the path, and the label as it stands; None where none is."""

    line: int
    path: str
    label: str | None


def read_list(path: Path) -> list[Row]:
    """The rows of a list.

    Each line has a path, or a path and a label with one separator throughout: a tab, a comma, a
    semicolon or a space. The label is the last field, so paths may have the separator in them;
    either may stand in double quotes. A first line that names columns says which of them count.

    Raises:
        LabelError: the file cannot be read or has no line, a line is not as the first, or its
            fields may be read in several ways; the message has its number and the separator.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise LabelError(f"cannot read the list {path}: {one_line(error)}") from None
    if "\0" in text:
        raise LabelError(f"expected lines of text in the list {path}, got bytes of something else")
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise LabelError(f"expected lines of a path, or a path and a label, in {path}, none")
    header = _header(lines[0][1])
    if header is not None:
        return _by_columns(path, lines, *header)
    separator = next((s for s in _SEPARATORS if _labelled(lines[0][1], s)), None)
    if separator is None:
        _check_order(path, *lines[0])
    rows = [_row(path, number, line, separator) for number, line in lines]
    if suffix(rows[0].path) not in _FILES and any(suffix(r.path) in _FILES for r in rows[1:2]):
        raise LabelError(
            f"expected a path in {path}, line {rows[0].line}, or names of columns, one of them "
            f"among {', '.join(_PATHS[:6])} ... and, for labels, {', '.join(_LABELS[:3])} ..., "
            f"got {lines[0][1][:80]!r}"
        )
    return rows


def check_there(path: Path, rows: Sequence[Row], root: Path) -> None:
    """Raise LabelError where no path of a list is there: it is read wrongly, or starts elsewhere.

    Args:
        path: the list.
        rows: of it.
        root: the folder that relative paths start from; one that is none is left to others.
    """
    if root.is_dir() and not any((root / row.path).exists() for row in rows):
        raise LabelError(
            f"expected paths of files in {path}, got none that is there: {rows[0].path[:80]!r} is "
            f"not in {root}. --root says where paths start; a separator (a tab, comma, semicolon "
            f"or space) parts each from its class"
        )


def _check_order(path: Path, number: int, line: str) -> None:
    """Refuse a list of classes and paths, in this order, which would be paths that are nowhere."""
    for separator, name in _SEPARATORS.items():
        first, _, rest = line.partition(separator)
        if separator == " ":  # many names begin with a number and a space
            return
        if _LABEL.fullmatch(bare(first)) and rest and not (path.parent / line).exists():
            raise LabelError(
                f"expected a path and then, behind {name}, its class in {path}, line {number}, "
                f"got {line[:80]!r}: turn them round, or name the columns in a first line"
            )


def _row(path: Path, number: int, line: str, separator: str | None) -> Row:
    if separator is None:
        if any(_labelled(line, s) for s in _SEPARATORS):
            raise LabelError(
                f"expected a path alone in {path}, line {number}, as in its first line, "
                f"got {line[:80]!r}"
            )
        return Row(number, _whole(path, number, line, bare(line)), None)
    fields = _split(line, separator)
    if fields is None or not fields[0] or not _is_label(fields[1], separator):
        raise LabelError(
            f"expected a path, {_SEPARATORS[separator]} and a class in {path}, line {number}, as "
            f"in its first line, got {line[:80]!r}"
        )
    return Row(number, _whole(path, number, line, fields[0]), fields[1])


def _whole(path: Path, number: int, line: str, found: str) -> str:
    """A path, if it does not end where only its beginning does as the name of a file."""
    if suffix(found) not in _FILES:
        for separator in _SEPARATORS:
            first, between, _ = found.partition(separator)
            if between and suffix(first) in _FILES:
                raise LabelError(
                    f"expected a path alone, or a path, a separator (a tab, comma, semicolon or "
                    f"space) and one class in {path}, line {number}, got {line[:80]!r}: names of "
                    f"classes stand behind a tab, comma or semicolon; more columns need a first "
                    f"line that names them"
                )
    return found


def _split(line: str, separator: str) -> tuple[str, str] | None:
    if '"' in line:
        *parts, last = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        return (separator.join(parts).strip(), last.strip()) if parts else None
    fields = line.rsplit(None if separator == " " else separator, 1)
    return (bare(fields[0]), bare(fields[1])) if len(fields) == 2 else None


def _labelled(line: str, separator: str) -> bool:
    """Whether a line is a path and a label with this between them."""
    fields = _split(line, separator)
    return fields is not None and bool(fields[0]) and _is_label(fields[1], separator)


def _is_label(text: str, separator: str) -> bool:
    """A number or a WordNet id; behind a comma and the like also a name, which no path is."""
    if _LABEL.fullmatch(text):
        return True
    return separator != " " and bool(text) and suffix(text) not in _FILES and "/" not in text


def _header(line: str) -> tuple[str, int, int | None] | None:
    """The separator and the columns of the path and the label, where the first line names them."""
    paths, labels = ([_plain(name) for name in known] for known in (_PATHS, _LABELS))
    if _plain(line) in paths:
        return "\t", 0, None
    for separator in _SEPARATORS:
        names = [_plain(field) for field in line.split(separator)]
        place = next((names.index(name) for name in paths if name in names), None)
        label = next((names.index(name) for name in labels if name in names), None)
        if place is not None and (label is not None or (len(names) > 1 and separator != " ")):
            return separator, place, label
    return None


def _plain(name: str) -> str:
    """A column's name whatever its case, and however its words are parted: Class ID, class_id."""
    return re.sub(r"[ _-]", "", bare(name).lower())


def _by_columns(
    path: Path, lines: Sequence[tuple[int, str]], separator: str, place: int, label: int | None
) -> list[Row]:
    if len(lines) < 2:
        raise LabelError(f"expected lines below the header in {path}, none")
    (_, header), *rows = lines
    count = len(next(csv.reader([header], delimiter=separator)))
    found = []
    for number, line in rows:
        fields = next(csv.reader([line], delimiter=separator))
        if not max(place, label or 0) < len(fields) <= count or not fields[place].strip():
            raise LabelError(
                f"expected fields with {_SEPARATORS[separator]} between them in {path}, line "
                f"{number}, as in its header of {count}, got {line[:80]!r}; a path with one in "
                f"it stands in double quotes"
            )
        told = None if label is None else bare(fields[label]) or None
        found.append(Row(number, bare(fields[place]), told))
    return found


def classes_of(rows: Sequence[Row], classes: Classes) -> tuple[list[int | None] | None, str]:
    """The labels of a list as classes of the host, or None; and what to say of it."""
    if not classes:
        return None, NO_CLASSES
    count = count_of(classes) or 0
    told = dict.fromkeys(row.label for row in rows if row.label is not None)
    if not told:
        return None, f"no labels in the list: {UNUSED}"
    numbers = {text: int(found[1]) for text in told if (found := _NUMBER.fullmatch(text))}
    if len(numbers) == len(told):
        if max(numbers.values()) >= count:
            why = f"labels up to {max(numbers.values())} for the host's {counted(count, 'class')}"
            return None, f"{why}: {UNUSED}"
        known = {text: n if n >= 0 else None for text, n in numbers.items()}  # below 0: withheld
        note = "labels: the list's numbers as they stand"
    else:
        named, note = _by_name(list(told), classes)
        if named is None:
            return None, f"{note}: {UNUSED}"
        known = named
    return [None if row.label is None else known[row.label] for row in rows], note


def _by_name(
    names: list[str], classes: int | Sequence[str]
) -> tuple[dict[str, int | None] | None, str]:
    ids = wordnet()
    if count_of(classes) == 1000 and all(name in ids for name in names):
        return {name: ids[name] for name in names}, ""
    if isinstance(classes, int):
        return None, f"the list's labels are names such as {names[0]!r}, and the host has none"
    found, note = match_names(names, classes)
    return (None, note) if found is None else (dict(zip(names, found, strict=True)), note)
