"""Class indices of a host by the names that a data set gives its classes.

A wrong index is worse than none: where the names do not say which class is meant, none is used.
What is left to an assumption is said in a note.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

from papr.words import counted

#: What a host says of its classes: their names in order, or how many where it has no names of its
#: own; None where it does not classify.
Classes: TypeAlias = int | Sequence[str] | None

UNUSED = "labels are not used"
NO_CLASSES = f"the host does not classify: {UNUSED}"


def count_of(classes: Classes) -> int | None:
    """How many classes a host has."""
    return classes if classes is None or isinstance(classes, int) else len(classes)


def own_names(host: object, count: int | None) -> list[str] | None:
    """A host's own names of its classes, in order, from the configuration beside its weights.

    None where there are none, or where the names are not of so many classes: "LABEL_0" and so on
    stand in transformers' configuration for names that nobody gave.

    Args:
        host: of transformers (`config.id2label`) or timm (`pretrained_cfg["label_names"]`).
        count: of its classes.
    """
    told: Any = getattr(getattr(host, "config", None), "id2label", None)
    if not told:
        listed = (getattr(host, "pretrained_cfg", None) or {}).get("label_names")
        told = dict(enumerate(listed)) if isinstance(listed, list | tuple) else {}
    names = [str(told.get(number, "LABEL_")) for number in range(count or 0)]
    given = len(names) == len(told) and not all(re.fullmatch(r"LABEL_\d*", n) for n in names)
    return names if given else None


def number_labels(
    paths: Sequence[str], classes: Classes, unordered: str = ""
) -> tuple[list[int] | None, str]:
    """Class indices of a host by the folders that files lie in, or None; and what to say of it.

    WordNet ids are ImageNet's, at any level and however few of its classes are there. Other folders
    are found among the host's own names. Where it has none, the top-level folders count in sorted
    order, as torchvision's `ImageFolder` takes them, if there are as many as the host has classes.

    Args:
        paths: of the files, below the folder that holds them all, with slashes.
        classes: the host's.
        unordered: why their order says nothing; empty where it may.
    """
    if not classes:
        return None, NO_CLASSES
    if count_of(classes) == 1000 and (above := wordnet_above(paths)):
        return above, ""
    folders = [path.rpartition("/")[0] for path in paths]
    distinct = sorted(set(folders))
    if distinct == [""]:
        index, note = (
            None,
            f"no folders of classes for the host's {counted(count_of(classes) or 0, 'class')}",
        )
    elif "" in distinct:
        stray = next(path for path in paths if "/" not in path)
        index, note = None, f"{stray} lies beside the folders, in none of a class"
    elif isinstance(classes, int):
        index, note = (None, unordered) if unordered else _by_order(distinct, classes)
    else:
        index, note = _by_name(distinct, classes)
    if index is None:
        return None, f"{note}: {UNUSED}"
    return [index[folder] for folder in folders], note


def _by_order(folders: Sequence[str], classes: int) -> tuple[dict[str, int] | None, str]:
    """Top-level folders in sorted order, where no other reading would do as well."""
    top, last = ([path.split("/")[end] for path in folders] for end in (0, -1))
    names = sorted(set(top))
    kind = "folder" if top == last else "top-level folder"
    if len(names) != classes:
        return None, f"{counted(len(names), kind)} for the host's {counted(classes, 'class')}"
    for plain, natural in zip(names, sorted(names, key=natural_key), strict=True):
        if plain != natural:
            return None, f"the folders sort in two ways, {plain!r} or {natural!r} first"
    found, other = _ranks(top), _ranks(last)
    if len(other) == classes and any(found[a] != other[b] for a, b in zip(top, last, strict=True)):
        return None, f"{top[0]!r} or {last[0]!r} may be the class in {folders[0]}"
    index = {folder: found[name] for folder, name in zip(folders, top, strict=True)}
    return index, f"labels: {kind}s in sorted order"


def _ranks(names: Iterable[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(sorted(set(names)))}


def _by_name(folders: Sequence[str], names: Sequence[str]) -> tuple[dict[str, int] | None, str]:
    """Folders on whose way down exactly one of the host's classes is named."""
    known, index = Names(names), {}
    for folder in folders:
        meant = set().union(*(known.find(part) for part in folder.split("/")))
        if len(meant) != 1:
            return None, f"the folder {folder} {_which(meant)} of the host's classes"
        index[folder] = meant.pop()
    return index, ""


def _which(meant: set[int]) -> str:
    return "may be several" if meant else "is named like none"


def match_names(names: Sequence[str], classes: Sequence[str]) -> tuple[list[int] | None, str]:
    """Class indices of a host for a data set's list of class names, or None and why not.

    Lists that name the same in the same place, but for one of a hundred that is found nowhere,
    are the same list: copies of ImageNet's 1000 names spell its second "crane" in several ways.

    Args:
        names: the data set's.
        classes: the host's own.
    """
    known = Names(classes)
    found = [known.find(name) for name in names]
    missed = sum(not meant for meant in found)
    in_place = all(number in meant for number, meant in enumerate(found) if meant)
    if len(names) == len(classes) and missed * 100 <= len(names) and in_place:
        return list(range(len(names))), ""
    for name, meant in zip(names, found, strict=True):
        if len(meant) != 1:
            return None, f"the class {name!r} {_which(meant)} of the host's"
    return [meant.pop() for meant in found], ""


class Names:
    """Finds a host's classes by what others call them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact: dict[str, set[int]] = {}
        self._folded: dict[str, set[int]] = {}
        self._parts: dict[str, set[int]] = {}
        for number, name in enumerate(names):
            self._exact.setdefault(name, set()).add(number)
            self._folded.setdefault(_fold(name), set()).add(number)
            for part in _parts(name):
                self._parts.setdefault(part, set()).add(number)

    def find(self, name: str) -> set[int]:
        """Classes of this name; several where nothing tells them apart.

        Spelt so; else whatever the case and with _ for a space; else by any part of a list such as
        "tench, Tinca tinca".
        """
        found = self._exact.get(name) or self._folded.get(_fold(name))
        if found:
            return set(found)
        return set().union(*(self._parts.get(part, set()) for part in _parts(name)))


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _parts(name: str) -> list[str]:
    return [part for part in map(_fold, name.split(",")) if part]


def natural_key(name: str) -> list[str | int]:
    """Sorts 9 before 10 and small letters as capital ones, as timm's readers do."""
    pieces = re.split(r"(\d+)", name.lower())
    return [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)]


@cache
def wordnet() -> dict[str, int]:
    """ImageNet's class indices by WordNet id."""
    from timm.data import ImageNetInfo

    return {name: i for i, name in enumerate(ImageNetInfo().label_names())}


def wordnet_above(paths: Sequence[str]) -> list[int] | None:
    """ImageNet's classes by the nearest folder named by a WordNet id, at any level above."""
    known, found = wordnet(), []
    for path in paths:
        label = next((known[part] for part in path.split("/")[-2::-1] if part in known), None)
        if label is None:
            return None
        found.append(label)
    return found
