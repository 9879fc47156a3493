"""One run at a time in a folder, on machines whose file systems know locks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from papr.errors import ConfigError

LOCK = ".lock"
_held: set[IO[bytes]] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs; the system lets go of it when this process dies.

    Where the system or the file system knows no such lock (`flock`), nothing is held.

    Raises:
        ConfigError: another run holds it.
    """
    file = _lock(folder)
    if file is None:
        yield
        return
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        file.close()


def _lock(folder: Path) -> IO[bytes] | None:
    if sys.platform == "win32":
        return None
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = (folder / LOCK).open("ab")
    except OSError:  # another user's
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"expected a folder that no run is writing to, got {folder}: another process is "
            "running here"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file


def _let_go() -> None:
    """A lock belongs to all processes that have the open file: loaders outlive a killed run."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
