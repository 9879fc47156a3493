"""The versions that the tests are known to pass on: constraints/tested.txt.

`make demo`, `make test` and `make check` install nothing newer. `make raise-bounds` runs this file
as a script where the newest releases passed: it then writes what is installed as the new bounds.
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FILE = Path(__file__).parents[1] / "constraints" / "tested.txt"

HEAD = """\
# The newest versions that the tests are known to pass on, of all that papr-torch[dev] brings.
# `make demo`, `make test` and `make check` install nothing newer; errors name these ranges.
# Written by `make raise-bounds`, not by hand: `make test-latest` tries what is newer.
"""

#: Pinned by torch itself, and others in each of its builds.
_OF_TORCH = re.compile(r"nvidia-|cuda-|triton")


def read(path: Path = FILE) -> dict[str, Version]:
    """The bounds: library -> newest version tested."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("<=") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def newer(bounds: dict[str, Version]) -> list[str]:
    """What is installed in a version past its bound, in words."""
    found = []
    for name, bound in bounds.items():
        try:
            version = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
        if Version(version.public) > bound:
            found.append(f"{name} {version} (tested up to {bound})")
    return found


def installed(requirement: str) -> dict[str, str]:
    """What a requirement brings, itself left out: library -> version, as far as it is there."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    ahead = [Requirement(requirement)]
    own = canonicalize_name(ahead[0].name)
    while ahead:
        wanted = ahead.pop()
        name = canonicalize_name(wanted.name)
        if str(wanted) in seen or _OF_TORCH.match(name):
            continue
        seen.add(str(wanted))
        try:
            of = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # another platform's
            continue
        found[name] = Version(of.version).public
        for line in of.requires or ():
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                ahead.append(needed)
    found.pop(own)
    return dict(sorted(found.items()))


def render(versions: dict[str, str]) -> str:
    """The file's text."""
    return HEAD + "".join(f"{name}<={version}\n" for name, version in versions.items())


def raised(bounds: dict[str, Version], versions: dict[str, str]) -> dict[str, str]:
    """New bounds from what is installed; an older Python's older releases lower none."""
    return {
        name: str(max(Version(version), bounds.get(name, Version(version))))
        for name, version in versions.items()
    }


if __name__ == "__main__":
    FILE.write_text(render(raised(read(), installed("papr-torch[dev]"))), encoding="utf-8")
    print(f"{FILE} written")
