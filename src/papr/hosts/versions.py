"""The versions of host libraries that papr is tested with, and what to say about others.

They are the bounds that the tests install: `constraints/` of the repository, which lies in the
package where papr was installed from a wheel.
"""

import functools
import re
import sys
from pathlib import Path

from papr.errors import UnsupportedModelError

#: Older ones than these are refused at once: their models are built differently.
REQUIRED = {"transformers": "5.0"}

_PACKAGED = Path(__file__).parents[1] / "constraints"
_SOURCE = Path(__file__).parents[3] / "constraints"


def refuse_too_old(library: str, name: str) -> None:
    """Raise UnsupportedModelError where a host's library is one papr cannot prune."""
    required = REQUIRED.get(library)
    if required is not None and _parts(found_version(library)) < _parts(required):
        raise UnsupportedModelError(
            f"cannot prune {name}: expected {library} {required} or newer, {describe(library)}"
        )


@functools.cache
def versions_tested(library: str) -> tuple[str, str]:
    """The oldest and the newest version the tests run on."""
    return _bound("oldest.txt", library), _bound("tested.txt", library)


def is_tested(library: str) -> bool:
    """Whether the version found is within the tested range."""
    oldest, newest = (_parts(version) for version in versions_tested(library))
    return oldest <= _parts(found_version(library)) <= newest


def describe(library: str) -> str:
    """The version found and the range tested, for an error that the version may explain."""
    oldest, newest = versions_tested(library)
    return f"got {library} {found_version(library)}; papr is tested with {oldest} to {newest}"


def found_version(library: str) -> str:
    """The version of a library that is imported already; "unknown" where it says none."""
    return str(getattr(sys.modules.get(library), "__version__", "unknown"))


def _bound(file: str, library: str) -> str:
    folder = _PACKAGED if _PACKAGED.is_dir() else _SOURCE
    text = (folder / file).read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(library)}[=<]=(\S+)", text, re.MULTILINE)
    assert found, f"{folder / file} has no line for {library}"
    return found[1]


def _parts(version: str) -> tuple[int, ...]:
    """The leading numbers: "5.0.0.dev0" to (5, 0, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()
