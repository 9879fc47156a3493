"""The versions of host libraries that papr is tested with, and what to say about others."""

import re
import sys

from papr.errors import UnsupportedModelError

#: Library -> oldest and newest version the tests run on.
TESTED = {
    "timm": ("1.0.20", "1.0.31"),
    "transformers": ("5.0", "5.23"),
    "torchvision": ("0.21", "0.29"),
}

#: Older ones than these are refused at once: their models are built differently.
REQUIRED = {"transformers": "5.0"}


def refuse_too_old(library: str, name: str) -> None:
    """Raise UnsupportedModelError where a host's library is one papr cannot prune."""
    required = REQUIRED.get(library)
    if required is not None and _parts(found_version(library)) < _parts(required):
        raise UnsupportedModelError(
            f"cannot prune {name}: expected {library} {required} or newer, {describe(library)}"
        )


def is_tested(library: str) -> bool:
    """Whether the version found is within the tested range; a newer patch release counts as in."""
    found = _parts(found_version(library))
    oldest, newest = (_parts(version) for version in TESTED[library])
    return oldest <= found and found[: len(newest)] <= newest


def describe(library: str) -> str:
    """The version found and the range tested, for an error."""
    oldest, newest = TESTED[library]
    return f"got {library} {found_version(library)}; papr is tested with {oldest} to {newest}"


def found_version(library: str) -> str:
    """The version of a library that is imported already; "unknown" where it says none."""
    return str(getattr(sys.modules.get(library), "__version__", "unknown"))


def _parts(version: str) -> tuple[int, ...]:
    """The leading numbers: "5.0.0.dev0" to (5, 0, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
