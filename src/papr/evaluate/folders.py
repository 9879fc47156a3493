"""Samples that are files: folders of images or videos, lists of them, one by itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from papr.classes import NO_CLASSES, UNUSED, Classes, natural_key, number_labels
from papr.evaluate.sources import DataError, Folder
from papr.images import SUFFIXES
from papr.video import read_labels

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif"),
}


class Look(NamedTuple):
    """What lies in a folder, down to its bottom; paths inside it, in order.

    Attributes:
        files: all that are no folders.
        unread: folders that cannot be read, with the reason.
    """

    files: list[str]
    unread: list[str]

    def of(self, suffixes: set[str]) -> list[str]:
        """Files with one of these suffixes."""
        return [path for path in self.files if suffix(path) in suffixes]


def suffix(path: str) -> str:
    """The last suffix of a file's name, in small letters; "" where there is none."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path for each of 10^7 takes a minute


def look(root: Path) -> Look:
    """Walk through a folder, through links too.

    Raises:
        DataError: a link leads back to a folder above it.
    """
    files: list[str] = []
    unread: list[str] = []

    def note(error: OSError) -> None:
        where = os.path.relpath(error.filename, root)
        unread.append(f"{where}{os.sep} ({error.strerror})")

    top = str(root)
    above: dict[str, tuple[str, ...]] = {
        top: (str(root.resolve()),)
    }  # folder -> real folders on the way down to it
    for folder, inner, names in os.walk(top, onerror=note, followlinks=True):
        way = above.pop(folder)
        for name in inner:
            path = os.path.join(folder, name)  # noqa: PTH118 - as os.walk names it
            link = os.path.islink(path)  # noqa: PTH114 - Path's raises where it may not look
            real = str(Path(path).resolve()) if link else f"{way[-1]}{os.sep}{name}"
            if link and real in way:
                raise DataError(f"expected a folder without circles, {path} leads back to {real}")
            above[path] = (*way, real)
        inside = "" if folder == top else os.path.relpath(folder, top).replace(os.sep, "/") + "/"
        files += [inside + name for name in names]
    return Look(sorted(files), sorted(unread))


def open_folder(
    root: Path, classes: Classes, *, clips: bool = False, seen: Look | None = None
) -> Folder:
    """A folder of images, or of videos, in the order of timm's reader.

    Args:
        root: searched to the bottom. Samples are labelled by the folders that they lie in, see
            `papr.classes.number_labels`.
        classes: the host's; labels that cannot be theirs are not used, and said.
        clips: look for videos.
        seen: what `look` found there.

    Raises:
        DataError: no image, or video, is there.
    """
    what, suffixes = ("videos", VIDEO_SUFFIXES) if clips else ("images", SUFFIXES)
    if not root.is_dir():
        raise DataError(f"expected a folder of {what}, got {root}")
    seen = seen or look(root)
    paths = seen.of(suffixes)
    if not paths:
        why = f", {len(seen.unread)} folders cannot be read" if seen.unread else ""
        raise DataError(f"expected {what} ({', '.join(sorted(suffixes))}) in {root}, none{why}")
    paths.sort(key=lambda path: (natural_key(path), path))  # timm's order, without ties
    known = set(paths)
    ignored = [path for path in seen.files if path not in known] + seen.unread
    labels, note = number_labels(paths, classes)
    return Folder(root, paths, labels, ignored, note, "videos" if clips else "folder")


def open_file(path: Path, *, clips: bool = False) -> Folder:
    """One image or one video, without a label."""
    note = "a file by itself: no labels"
    return Folder(path.parent, [path.name], None, (), note, "videos" if clips else "folder")


def open_list(
    path: Path, classes: int | None, root: Path | None = None, *, clips: bool = False
) -> Folder:
    """The files that a list names with their labels, as `papr.video.read_labels` reads it.

    Files that are not there are named when they are asked for.

    Args:
        path: the list.
        classes: how many the host has; where a label is beyond, none is used, and said.
        root: the folder that relative paths start from; None for the list's own.
        clips: of videos.

    Raises:
        DataError: the root is no folder.
        LabelError: the list cannot be read.
    """
    root = path.parent if root is None else root
    if not root.is_dir():
        raise DataError(f"expected a folder that the paths in {path} start from, got {root}")
    pairs = read_labels(path)
    labels, note = check_labels([label for _, label in pairs], classes)
    kind = "videos" if clips else "folder"
    return Folder(root, [file.as_posix() for file, _ in pairs], labels, (), note, kind)


def check_labels(labels: Sequence[int], classes: int | None) -> tuple[list[int] | None, str]:
    """Labels that are numbers already, or None and why they are not used."""
    if not classes:
        return None, NO_CLASSES
    if max(labels) >= classes:
        why = f"labels up to {max(labels)} for the host's {classes} classes"
        return None, f"{why}: {UNUSED}"
    return list(labels), "labels: the list's numbers as they stand"
