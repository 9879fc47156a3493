"""Which files lie in a folder: without what is hidden, and without what papr wrote itself."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from papr.errors import PaprError
from papr.files import DRAWN, MARKER

_PACKED = "__MACOSX"  # where macOS puts the hidden halves of what it packs
#: A run's own files, and a sweep's: what is drawn beside them is no photograph of the user's.
CONFIGURATION, ROWS, TABLE, PLOT = "configuration.json", "rows", "sweep.json", "sweep.png"


class WalkError(PaprError, ValueError):
    """A folder cannot be walked through."""


class Look(NamedTuple):
    """What lies in a folder, down to its bottom; paths inside it, in order.

    Attributes:
        files: all that are no folders.
        left_out: hidden files; folders that are hidden, that papr wrote or that cannot be read,
            with the reason.
    """

    files: list[str]
    left_out: list[str]

    def of(self, suffixes: Collection[str]) -> list[str]:
        """Files with one of these suffixes."""
        return [path for path in self.files if suffix(path) in suffixes]

    def why_none(self) -> str:
        """The end of a message that says that nothing was found; may be empty."""
        if not self.left_out:
            return ""
        return f"; left out: {', '.join(self.left_out[:3])}{' ...' if self.left_out[3:] else ''}"


def suffix(path: str) -> str:
    """The last suffix of a file's name, in small letters; "" where there is none."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path for each of 10^7 takes a minute


def is_hidden(path: str) -> bool:
    """Whether a path inside a folder, with slashes, is hidden or lies in what is."""
    return path.startswith((".", _PACKED)) or "/." in path or f"/{_PACKED}/" in path


def look(root: Path) -> Look:
    """Walk through a folder, through links too.

    Names with a leading dot are left out, and folders that papr wrote. The folder itself may be
    either.

    Raises:
        WalkError: a link leads back to a folder above it.
    """
    files: list[str] = []
    left_out: list[str] = []

    def note(error: OSError) -> None:
        where = os.path.relpath(error.filename, root)
        left_out.append(f"{where}{os.sep} ({error.strerror})")

    top = str(root)
    above: dict[str, tuple[str, ...]] = {
        top: (str(root.resolve()),)
    }  # folder -> real folders on the way down to it
    for folder, inner, names in os.walk(top, onerror=note, followlinks=True):
        way = above.pop(folder)
        inside = "" if folder == top else os.path.relpath(folder, top).replace(os.sep, "/") + "/"
        if inside and MARKER in names:
            left_out.append(f"{inside} (papr wrote it)")
            inner.clear()
            continue
        run = CONFIGURATION in names and ROWS in inner
        unseen = {name for name in inner if name[0] == "." or name == _PACKED}
        unseen |= {ROWS} if run else set()
        left_out += [f"{inside}{name}/" for name in unseen]
        inner[:] = [name for name in inner if name not in unseen]
        for name in inner:
            path = os.path.join(folder, name)  # noqa: PTH118 - as os.walk names it
            link = os.path.islink(path)  # noqa: PTH114 - Path's raises where it may not look
            real = str(Path(path).resolve()) if link else f"{way[-1]}{os.sep}{name}"
            if link and real in way:
                raise WalkError(f"expected a folder without circles, {path} leads back to {real}")
            above[path] = (*way, real)
        for name in names:
            if name[0] == ".":
                left_out += [] if name == MARKER else [inside + name]
            elif name.endswith(DRAWN) or (name == PLOT and (run or TABLE in names)):
                left_out.append(f"{inside}{name} (papr drew it)")
            else:
                files.append(inside + name)
    return Look(sorted(files), sorted(left_out))
