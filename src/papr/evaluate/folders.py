"""Samples that are files: folders of images or videos, lists of them, one by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from papr.classes import Classes, natural_key, number_labels
from papr.evaluate.lists import VIDEO_SUFFIXES, Row, classes_of
from papr.evaluate.sources import DataError, Folder, readable
from papr.images import SUFFIXES
from papr.walking import Look, WalkError, look


def walk(root: Path) -> Look:
    """What lies in a folder; see `papr.walking.look`.

    Raises:
        DataError: a link leads back to a folder above it.
    """
    try:
        return look(root)
    except WalkError as error:
        raise DataError(str(error)) from None


def open_folder(
    root: Path,
    classes: Classes,
    *,
    clips: bool = False,
    seen: Look | None = None,
    unordered: str = "",
) -> Folder:
    """A folder of images, or of videos, in the order of timm's reader.

    Args:
        root: searched to the bottom. Samples are labelled by the folders that they lie in, see
            `papr.classes.number_labels`.
        classes: the host's; labels that cannot be theirs are not used, and said.
        clips: look for videos.
        seen: what `look` found there.
        unordered: why the order of folders says no class; empty where it may.

    Raises:
        DataError: no image, or video, is there.
    """
    seen = seen or walk(root)
    paths = seen.of(VIDEO_SUFFIXES if clips else SUFFIXES)
    if not paths:
        refuse_empty(root, seen, clips)
    paths.sort(key=lambda path: (natural_key(path), path))  # timm's order, without ties
    known = set(paths)
    ignored = sorted([path for path in seen.files if path not in known] + seen.left_out)
    labels, note = number_labels(paths, classes, unordered)
    about = {} if labels is None else {"classes": class_folders(paths, labels)}
    return Folder(root, paths, labels, ignored, note, "videos" if clips else "folder", about)


def class_folders(paths: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    """The class of each folder: of those at the top where they tell, else of the lowest."""
    tops: dict[str, int] = {}
    folders: dict[str, int] = {}
    told = True
    for path, label in zip(paths, labels, strict=True):
        told = tops.setdefault(path.partition("/")[0], label) == label and told
        folders.setdefault(path.rpartition("/")[0], label)
    found = tops if told else folders
    return {readable(name): label for name, label in found.items()}


def open_file(path: Path, classes: Classes = None, *, clips: bool = False) -> Folder:
    """One image or one video, without a label, whatever the host's classes."""
    note = "a file by itself: no labels"
    return Folder(path.parent, [path.name], None, (), note, "videos" if clips else "folder")


def open_list(
    path: Path,
    rows: Sequence[Row],
    classes: Classes,
    *,
    root: Path,
    clips: bool = False,
) -> Folder:
    """The files that a list names, with their labels.

    Files that are not there are named when they are asked for.

    Args:
        path: the list.
        rows: of it; see `papr.evaluate.lists.read_list`.
        classes: the host's; labels that cannot be theirs are not used, and said.
        root: the folder that relative paths start from.
        clips: of videos.

    Raises:
        DataError: the root is no folder.
    """
    if not root.is_dir():
        raise DataError(f"expected a folder that the paths in {path} start from, got {root}")
    labels, note = classes_of(rows, classes)
    kind = "videos" if clips else "folder"
    return Folder(root, [row.path for row in rows], labels, (), note, kind)


def refuse_empty(root: Path, seen: Look, clips: bool | None) -> NoReturn:
    """Raise DataError: nothing of what is looked for is there."""
    what = {None: "images or videos", False: "images", True: "videos"}[clips]
    kinds = ", ".join(sorted(VIDEO_SUFFIXES)) if clips else "of a kind that Pillow reads"
    raise DataError(f"expected {what} ({kinds}) in {root}, none{seen.why_none()}")
