"""Output that never ends a command: what cannot be shown is replaced or dropped."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console
from rich.errors import MarkupError
from rich.markup import escape
from rich.status import Status
from rich.text import Text

#: The markup that commands use. Whatever else stands in brackets is part of a name.
_TAGS = re.compile(r"(\[/?(?:(?:bold|dim)(?: (?:red|green|yellow))?|red|green|yellow)\])")
#: What moves the cursor, turns the direction of writing or is no letter at all.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    r"""A text with its control characters as \x1b, and bytes that are no Unicode as \xff."""
    return _CONTROLS.sub(_spelt, text)


def shown(name: object) -> str:
    r"""What the user named as it is printed: in one line, with its line breaks as \n."""
    return clean(str(name)).replace("\n", "\\n").replace("\t", "\\t")


def _spelt(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps bytes that it cannot decode
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class Voice(Console):
    """A console that raises nothing: work that took an hour is not lost to a letter or a pipe.

    Characters that the stream's encoding lacks become question marks; a stream that takes no more
    (a closed pipe, a full disk) gets nothing more. Names are shown as they are: brackets and colons
    in them are no markup, and control characters are spelt out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text with papr's own markup, in tables too; all other brackets are as they stand."""
        text = clean(text)
        if options.get("markup") is False:
            return super().render_str(text, **options)
        pieces = _TAGS.split(text)
        marked = "".join(p if n % 2 else escape(p) for n, p in enumerate(pieces))
        try:
            return super().render_str(marked, **options)
        except MarkupError:  # a name with "[/red]" in it
            return super().render_str(text, **options | {"markup": False})

    def status(self, status: Any, **options: Any) -> Status:
        """A line that moves, which is no markup."""
        return super().status(Text(shown(status)), **options)

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
