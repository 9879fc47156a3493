"""Whether a folder may take the rows of a run: what is run there already, and what differs."""

import json
from typing import Any

from papr.errors import ConfigError
from papr.provenance import KEY
from papr.walking import CONFIGURATION


def identity(configuration: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others: where a file of weights lies is said, and changes no answer."""
    return {name: value for name, value in configuration.items() if name != KEY}


def differences(old: Any, new: Any, name: str = "", now: str = "now") -> list[str]:
    """What differs between two configurations, one line each: "name: old, now new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        inner = [(f"{name}.{key}" if name else key, old.get(key), new.get(key)) for key in keys]
        return [line for path, a, b in inner if a != b for line in differences(a, b, path, now)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
        return [line for path, a, b in inner if a != b for line in differences(a, b, path, now)]
    return [f"{name}: {json.dumps(old)[:120]}, {now} {json.dumps(new)[:120]}"]


def check_claim(
    found: dict[str, Any] | None, configuration: dict[str, Any], rows: bool, out: str
) -> bool:
    """Whether a folder is free; False where it is this run's already.

    Args:
        found: what is run there; None where nothing is.
        configuration: what shall be.
        rows: whether rows are there.
        out: the folder, for messages.

    Raises:
        ConfigError: there are rows of another configuration, or of nobody knows what.
    """
    if found is None:
        if rows:
            raise ConfigError(
                f"expected an empty folder or one of a run, {out} has rows and no {CONFIGURATION}"
            )
        return True
    found, configuration = identity(found), identity(json.loads(json.dumps(configuration)))
    if found != configuration:
        raise ConfigError(
            f"expected an output folder without rows of another configuration, {out} has some: "
            f"{'; '.join(_telling(differences(found, configuration)))}"
        )
    return False


def _telling(lines: list[str]) -> list[str]:
    """The differences that mean something to people, where there are such."""
    marks = (".configuration", ".name", ".digest", ".chosen")
    telling = [line for line in lines if not line.partition(":")[0].endswith(marks)]
    return telling or lines
