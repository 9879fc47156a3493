"""Class indices of a host by the names that a data set gives its classes."""

from collections.abc import Sequence
from functools import cache


def number_labels(names: Sequence[str], classes: int | None) -> tuple[list[int] | None, str]:
    """Class indices of a host for the names of folders, or None and why not.

    WordNet ids are ImageNet's, however few of its classes are there. Other names count in sorted
    order, if there are as many as the host has classes; then they are what it was trained on.

    Args:
        names: one a sample.
        classes: how many the host has; None where it does not classify.
    """
    from timm.utils.misc import natural_key

    distinct = sorted(set(names), key=natural_key)
    if not classes:
        return None, "the host does not classify: labels are not used"
    index = wordnet() if classes == 1000 else {}
    if all(name in index for name in distinct):
        return [index[name] for name in names], ""
    if len(distinct) == classes:
        index = {name: i for i, name in enumerate(distinct)}
        return [index[name] for name in names], ""
    what = "no folders of classes" if len(distinct) < 2 else f"{len(distinct)} folders"
    return None, f"{what} for the host's {classes} classes: labels are not used"


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
