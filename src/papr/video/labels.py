"""Label files of Kinetics and its kin: which class a video shows."""

import re
from pathlib import Path

from papr.errors import PaprError, one_line

#: What stands between the path and the label.
_NUMBER = re.compile(r"([0-9]+)(\.0*)?")
_SEPARATORS = {"mmaction2": (" ",), "videomae": (",", " ")}


class LabelError(PaprError, ValueError):
    """A label file cannot be read; the message names the line."""


def read_labels(
    path: str | Path, *, root: str | Path | None = None, layout: str = "auto"
) -> list[tuple[Path, int]]:
    """Paths and class numbers, in the order of the file.

    Two layouts, neither with a header: mmaction2's list ("some/clip.mp4 12" per line) and
    VideoMAE's CSV ("some/clip.mp4,12", or a space). The label is the last field of its line, so a
    path may contain spaces and commas; either may stand in double quotes, and 3.0 is 3. Empty lines
    are skipped. `papr.evaluate` reads more kinds of lists: see `papr.evaluate.lists`.

    Args:
        path: the label file, UTF-8.
        root: the folder that relative paths start from; None leaves them as they stand.
        layout: "mmaction2" (a space), "videomae" (one separator throughout, a comma or a space),
            or "auto", which reads both.

    Raises:
        LabelError: the file cannot be read, has no label in it, or a line does not fit.
    """
    path = Path(path)
    if layout not in ("auto", *_SEPARATORS):
        raise LabelError(f"expected a layout among auto, mmaction2, videomae, got {layout!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise LabelError(f"cannot read the labels {path}: {one_line(error)}") from None
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise LabelError(f"expected lines of a path and a label in {path}, none")
    separators = _SEPARATORS["videomae" if layout == "auto" else layout]
    # The separator of the whole file is the one that its first line fits.
    separator = next((s for s in separators if _split(lines[0][1], s)), separators[-1])
    found = []
    for number, line in lines:
        fields = _split(line, separator)
        if fields is None:
            between = "a comma" if separator == "," else "a space"
            raise LabelError(
                f"expected a path, {between} and a class number in {path}, line {number}, "
                f"got {line[:80]!r}"
            )
        clip, label = fields
        found.append((Path(root) / clip if root is not None else Path(clip), label))
    return found


def _split(line: str, separator: str) -> tuple[str, int] | None:
    """Path and label, or None where the line is not of this kind."""
    fields = line.rsplit(None if separator == " " else separator, 1)
    if len(fields) != 2:
        return None
    clip, label = (bare(field) for field in fields)
    number = _NUMBER.fullmatch(label)
    return (clip, int(number[1])) if clip and number else None


def bare(field: str) -> str:
    """A field without the double quotes that it may stand in."""
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"':
        field = field[1:-1].replace('""', '"')
    return field
