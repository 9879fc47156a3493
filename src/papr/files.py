"""Files appear whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from papr.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

#: The file in a folder of results: nothing below is ever taken for data.
MARKER = ".papr"
#: How the names of pictures end that commands draw beside the user's own.
DRAWN = ("-papr.png", "-papr.gif", "-papr.mp4", "-cams.png")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: Path, option: str) -> None:
    """See that a folder can be written to, or made; ConfigError where not. Makes nothing.

    Args:
        folder: the folder.
        option: what asked for it, for the message.
    """
    found = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not found.is_dir() or not os.access(found, os.W_OK):
        what = "may not be written to" if found.is_dir() else "is a file"
        raise ConfigError(
            f"expected {option} to be a folder that can be written to, got {folder}: {found} {what}"
        )


def make_output(folder: Path) -> None:
    """Make a folder for results, and mark it as one, so that no later run takes them for data.

    A folder that holds something already is not marked: it may be where the user's pictures are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if all(path.name.startswith(".") for path in folder.iterdir()):
        with contextlib.suppress(OSError):  # another user's
            (folder / MARKER).write_text("papr wrote this folder: nothing in it is data\n")


def check_file(path: Path | None, option: str) -> None:
    """See that a file can be written there; ConfigError where not. Makes nothing.

    Args:
        path: the file; None for none.
        option: what asked for it, for the message.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"expected {option} to be a file, got the folder {path}")
    check_folder(path.parent, f"the folder of {option}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, its folder made if needed."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: object) -> None:
    """Write plain data as JSON atomically, its folder made if needed."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_image(path: Path, image: "Image.Image") -> None:
    """Write a picture atomically in the format its suffix names, its folder made if needed."""
    with atomic(path) as temporary:
        image.save(temporary, quality=90)
