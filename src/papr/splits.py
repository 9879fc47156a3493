"""Which split a file of a data set belongs to, by its name: two of them are never joined."""

import re
from collections.abc import Iterable, Sequence

from papr.errors import DataError

WORDS = {
    *("train", "training", "val", "valid", "validation", "dev"),
    *("test", "testing", "eval", "evaluation"),
}
WHOLE = "all"  # what is asked for where the splits shall be joined, or are none
_NUMBERED = re.compile(r"(.+?)[-_.]\d{5}-of-\d{5}")  # as `datasets` names what it writes
_PLAIN = re.compile(rf"({'|'.join(sorted(WORDS))})[-_. ]?\d*")  # nothing but a split's name
_FEW = 5  # folders: of more, a single one called train is a class, a vehicle
_TOLD = 10  # names in a message


def word_of(name: str) -> str:
    """The first word of a name that a split is called by: val of val2017; else empty."""
    return next((w for w in re.split(r"[^a-z]+", name.lower()) if w in WORDS), "")


def split_of(path: str) -> str:
    """The split that a file inside a folder is of: train-00.tar, val/3.parquet; else empty."""
    *folders, name = path.split("/")
    for part in (name, *reversed(folders)):
        if word := word_of(part):
            return word
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else ""


def of_split(
    names: Sequence[str], wanted: str | None, place: object
) -> tuple[list[str], str | None]:
    """The files of one split, and its name; all where their names tell of none.

    Files of one split in several folders are several: configurations of a data set.

    Args:
        names: paths inside the folder.
        wanted: the split asked for, or `WHOLE`.
        place: the folder, for messages.

    Raises:
        DataError: there are several, and none of them is asked for.
    """
    groups: dict[str, list[str]] = {}
    for name, key in zip(names, _keys(names), strict=True):
        groups.setdefault(key, []).append(name)
    alone = len(groups) == 1 and not word_of(next(iter(groups)))
    if alone and wanted in (None, "train"):  # what `datasets` calls the only one
        return list(names), wanted
    split = one_split(groups, wanted, place)
    return groups.get(split, list(names)), split


def _keys(names: Sequence[str]) -> list[str]:
    """The split of each file, behind its folder where one split is in several."""
    found = [(_above(name), split_of(name)) for name in names]
    places: dict[str, set[str]] = {}
    for folder, split in found:
        places.setdefault(split, set()).add(folder)
    return [f"{f}/{s}".strip("/") if s and len(places[s]) > 1 else s for f, s in found]


def _above(name: str) -> str:
    """The folders of a file that say no split; numbered ones are parts of one."""
    parts = name.split("/")[:-1]
    return "/".join(part for part in parts if not word_of(part) and not part.isdigit())


def one_split(splits: Iterable[str], wanted: str | None, place: object, whole: bool = True) -> str:
    """The split that is asked for, by its name or the word in it; or the only one.

    Args:
        splits: their names; an empty one stands for files of none.
        wanted: the one asked for.
        place: where they are, for messages.
        whole: whether `WHOLE` may be asked for.

    Raises:
        DataError: there are several and none is asked for, or it is not there.
    """
    names = sorted(splits, key=lambda name: not name) if "" in splits else list(splits)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names or (whole and wanted == WHOLE):
        return str(wanted)
    called = [name for name in names if wanted and word_of(name) == wanted]
    if len(called) == 1:
        return called[0]
    told = sorted(filter(None, names), key=lambda name: not word_of(name))
    listed = ", ".join(told[:_TOLD]) + (", ..." if told[_TOLD:] else "")
    rest = " and files of none" if "" in names else ""
    such = [name for name in told if word_of(name)] or told
    as_in = f", as in {place}:{such[-1]}" if such else ""
    joined = f" or {WHOLE} of them" if whole else ""
    raise DataError(
        f"expected a split of {place} among {listed or 'none'}{rest}{joined}{as_in}, "
        f"got {wanted or 'none'}"
    )


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Splits among the folders where paths first part, and the path of each; or none.

    They are splits where their names have several words such as train and val in them
    (train2017, val_images), or where of few one is called by such a word alone.
    """
    inside, below = "", list(names)
    while True:
        tops = dict.fromkeys(name.partition("/")[0] for name in below if "/" in name)
        if len(tops) != 1:
            break
        only = f"{next(iter(tops))}/"
        inside += only
        below = [name.removeprefix(only) for name in below if name.startswith(only)]
    words = {word_of(top) for top in tops} - {""}
    plain = sum(_PLAIN.fullmatch(top.lower()) is not None for top in tops)
    if len(words) > 1 or plain > 1 or (plain and len(tops) <= _FEW):
        return {top: inside + top for top in tops}
    return {}


def not_by_order(paths: Iterable[str], root: object) -> str:
    """Why folders are not taken for classes by their order: one may be a split; else empty."""
    parts = dict.fromkeys(part for path in paths for part in path.split("/")[:-1])
    found = next(filter(word_of, parts), None)
    if found is None:
        return ""
    return f"the folder {found} may be a split, no class ({root}:{WHOLE} says that it is one)"
