"""Files appear whole or not at all."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from papr.errors import ConfigError, WriteError
from papr.provenance import KEY, NOBODY, Provenance, digest

if TYPE_CHECKING:
    from PIL import Image

#: The file in a folder of results: nothing below is ever taken for data.
MARKER = ".papr"
#: How the names of pictures end that commands draw beside the user's own.
DRAWN = ("-papr.png", "-papr.gif", "-papr.mp4", "-cams.png")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # a Path makes one slash of two

_LONG = 16  # bytes of a suffix
_NAME = 255  # bytes that file systems take of a name
_LONGEST = 200  # bytes of a user's name, to which endings come


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it when the block ends without an error.

    Its name does not grow with that of `path`; its suffix is the same.

    Raises:
        WriteError: the file cannot be written.
    """
    temporary: Path | None = None
    with _named(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = path.suffix if len(path.suffix) < _LONG else ""
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".papr-", suffix=suffix)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's refusals in one line with the file that was to be written."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        failed = WriteError(f"cannot write {path}: {reason}")
        failed.errno = error.errno
        raise failed from error


class Lines:
    """A file of JSON lines that is valid after every line, whatever happens next."""

    def __init__(self, path: Path) -> None:
        """Begin the file anew, its folder made if needed. Raises WriteError where it cannot be."""
        self.path = path
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)

    def add(self, data: object) -> None:
        """Write one line at once; WriteError where it cannot be, and then no part of it stays."""
        line = (json.dumps(data) + "\n").encode()
        start = self._file.tell()
        with _named(self.path):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(start)
                    self._file.seek(start)
                raise

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


def short(name: str, taken: Collection[str] = ()) -> str:
    """A file's name without its suffix, cut where it would be too long, and numbered where taken.

    What is cut off stays in it as a digest: other names stay others.

    Args:
        name: of the user.
        taken: names that it must not be.
    """
    if len(os.fsencode(name)) > _LONGEST:
        told = digest(os.fsencode(name))[:8]
        while len(os.fsencode(name)) > _LONGEST - len(told) - 1:
            name = name[:-1]
        name = f"{name}-{told}"
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def check_folder(folder: Path, option: str) -> None:
    """See that a folder can be written to, or made; ConfigError where not. Makes nothing.

    Args:
        folder: the folder.
        option: what asked for it, for the message.
    """
    if _ADDRESS.match(str(folder)):
        raise ConfigError(
            f"expected {option} to be a folder, got the address "
            f"{str(folder).replace(':/', '://', 1)}: only papr predict "
            "--engine ray writes to object storage"
        )
    _check_names(folder, option)
    found = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not found.is_dir() or not os.access(found, os.W_OK):
        what = "may not be written to" if found.is_dir() else "is a file"
        raise ConfigError(
            f"expected {option} to be a folder that can be written to, got {folder}: {found} {what}"
        )


def _check_names(path: Path, option: str) -> None:
    """Refuse names that no file system takes, before it does."""
    for part in path.parts:
        if (size := len(os.fsencode(part))) > _NAME:
            raise ConfigError(
                f"expected {option} with names of at most {_NAME} bytes, got {part[:20]}..., "
                f"which has {size}"
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
    _check_names(path, option)
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


def write_image(path: Path, image: "Image.Image", provenance: Provenance = NOBODY) -> None:
    """Write a picture atomically in the format its suffix names, its folder made if needed.

    Args:
        path: where to.
        image: the picture.
        provenance: where weights come from, which a PNG carries as text.
    """
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text(KEY, json.dumps(provenance.to_dict()))
    with atomic(path) as temporary:
        image.save(temporary, quality=90, pnginfo=said)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    with contextlib.suppress(OSError):  # nor synced
        os.fsync(handle)
    os.close(handle)
