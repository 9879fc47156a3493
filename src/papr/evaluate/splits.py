"""Which split a file of a data set belongs to, by its name: two of them are never joined."""

import re
from collections.abc import Iterable, Sequence

from papr.evaluate.sources import DataError

WORDS = {
    *("train", "training", "val", "valid", "validation", "dev"),
    *("test", "testing", "eval", "evaluation"),
}
_NUMBERED = re.compile(r"(.+?)[-_.]\d{5}-of-\d{5}")  # as `datasets` names what it writes


def split_of(path: str) -> str:
    """The split that a file inside a folder is of: train-00.tar, val/3.parquet; else empty."""
    *folders, name = path.split("/")
    for part in (name, *reversed(folders)):
        word = next((w for w in re.split(r"[^a-z]+", part.lower()) if w in WORDS), None)
        if word is not None:
            return word
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else ""


def of_split(
    names: Sequence[str], wanted: str | None, place: object
) -> tuple[list[str], str | None]:
    """The files of one split, and its name; all where their names tell of none.

    Args:
        names: paths inside the folder.
        wanted: the split asked for.
        place: the folder, for messages.

    Raises:
        DataError: there are several, and none of them is asked for.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split_of(name), []).append(name)
    if list(groups) == [""] and wanted in (None, "train"):  # what `datasets` calls the only one
        return list(names), wanted
    split = one_split(groups, wanted, place)
    return groups[split], split


def one_split(splits: Iterable[str], wanted: str | None, place: object) -> str:
    """The split that is asked for, or the only one.

    Raises:
        DataError: there are several and none is asked for, or it is not there.
    """
    names = sorted(splits, key=lambda name: not name) if "" in splits else list(splits)
    chosen = wanted if wanted is not None or len(names) > 1 else names[0]
    if chosen is None or chosen not in names:
        told = [name for name in names if name]
        rest = " and files of none" if "" in names else ""
        as_in = f", as in {place}:{told[-1]}" if told else ""
        raise DataError(
            f"expected a split of {place} among {', '.join(told) or 'none'}{rest}{as_in}, "
            f"got {wanted or 'none'}"
        )
    return chosen


def split_folders(names: Iterable[str]) -> list[str]:
    """Splits among the folders at the top: two or more, or none."""
    tops = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    found = [top for top in tops if top.lower() in WORDS]
    return found if len(found) > 1 else []
