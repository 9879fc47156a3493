"""Output that never ends a command: what cannot be shown is replaced or dropped."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console


class Voice(Console):
    """A console that raises nothing: work that took an hour is not lost to a letter or a pipe.

    Characters that the stream's encoding lacks become question marks; a stream that takes no more
    (a closed pipe, a full disk) gets nothing more.
    """

    @property
    def file(self) -> IO[str]:
        """The stream, made forgiving."""
        return _Forgiving(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


class _Forgiving:
    """A text stream whose `write` and `flush` do what they can."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _given_up(self._stream):
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                return self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with _given_up(self._stream):
            self._stream.flush()


@contextlib.contextmanager
def _given_up(stream: IO[str]) -> Iterator[None]:
    """Drop what a stream does not take, and all that comes after it."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: it is closed
        with contextlib.suppress(OSError, ValueError):  # what is left in it goes nowhere at exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def forgive_streams() -> None:
    """Let this process's own standard streams replace what they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
