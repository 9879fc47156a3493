"""Samples that are files: folders of images or videos, lists of them, one by itself."""

from collections.abc import Sequence
from pathlib import Path

from papr.classes import NO_CLASSES, UNUSED, Classes, natural_key, number_labels
from papr.evaluate.sources import DataError, Folder
from papr.images import SUFFIXES
from papr.video import read_labels
from papr.walking import Look, WalkError, look

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".gif"),
}


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
    seen = seen or walk(root)
    paths = seen.of(suffixes)
    if not paths:
        kinds = ", ".join(sorted(suffixes)) if clips else "of a kind that Pillow reads"
        raise DataError(f"expected {what} ({kinds}) in {root}, none{seen.why_none()}")
    paths.sort(key=lambda path: (natural_key(path), path))  # timm's order, without ties
    known = set(paths)
    ignored = sorted([path for path in seen.files if path not in known] + seen.left_out)
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
