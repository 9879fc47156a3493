"""How the files of a shard make samples: WebDataset's convention, and names that break it.

A file's name is cut at its first dot: what stands before is the sample's key, what stands behind
says which of its files this is ("jpg", "cls", "seg.png"). Names with dots of their own, such as
IMG.2023.00.jpg, would all be files of one sample then. So an image is cut at the last dot, with a
key of its own, where another file of its own stands beside it (1.jpg, 1.cls), or where it is
numbered and no file (cls) is shared. Other images of one key are views of one sample.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from papr.evaluate.sources import DataError, readable
from papr.images import SUFFIXES
from papr.walking import is_hidden

IMAGES = frozenset(kind.removeprefix(".") for kind in SUFFIXES)
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]+)")
_USUAL = ("image", "img")  # what the picture itself is called beside masks and the like
_HELD = 256  # files of one key that are waited for: more are names with dots


class Sample(NamedTuple):
    """Files that belong together.

    Attributes:
        key: their name in the shard.
        files: their content, by what follows the key's dot.
        fault: why it is none; else empty.
    """

    key: str
    files: dict[str, bytes]
    fault: str = ""


def samples(files: Iterable[tuple[str, bytes]], column: str | None = None) -> Iterator[Sample]:
    """The samples that files make, in order. A key that was there before is faulty.

    Args:
        files: names and contents; hidden ones are left out.
        column: which file is the image, where it is said.
    """
    seen: set[str] = set()
    for key, members in _runs(files):
        for name, own in _apart(key, members, column):
            fault = f"expected each key once in a shard, {readable(name)} is there again"
            yield Sample(name, own, fault if name in seen else "")
            seen.add(name)


def _runs(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files one after the other with one key; those of a file that is there again are another."""
    key, held = "", dict[str, bytes]()
    for name, content in files:
        found = _NAME.fullmatch(name)
        if found is None or is_hidden(name.removeprefix("./")):
            continue
        kind = found[2].lower()
        if found[1] != key or kind in held:
            if held:
                yield key, held
            key, held = found[1], {}
        elif len(held) >= _HELD and _inner(kind) != _inner(next(reversed(held))):
            yield key, held
            held = {shared: data for shared, data in held.items() if _is_shared(shared)}
        held[kind] = content
    if held:
        yield key, held


def _inner(kind: str) -> str:
    return kind.rpartition(".")[0]


def _is_image(kind: str) -> bool:
    return kind.rpartition(".")[2] in IMAGES


def _is_shared(kind: str) -> bool:
    return "." not in kind and not _is_image(kind)


def _apart(
    key: str, files: dict[str, bytes], column: str | None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples that one key stands for: one, or each image that has a name of its own."""
    inners = [] if column in files else _names_apart(files)
    rest = {kind: data for kind, data in files.items() if _inner(kind) not in inners}
    if not inners or any(map(_is_image, rest)):
        yield key, rest
    for inner in inners:
        own = {k[len(inner) + 1 :]: d for k, d in files.items() if _inner(k) == inner}
        yield f"{key}.{inner}", {k: d for k, d in rest.items() if _is_shared(k)} | own


def _names_apart(files: Iterable[str]) -> list[str]:
    """What stands before the last dot of images that are samples by themselves."""
    files = list(files)
    images = [kind for kind in files if _is_image(kind)]
    plain = _plain(images)
    told = {_inner(kind) for kind in files if not _is_image(kind)} - {""}
    shared = any(map(_is_shared, files))
    # Beside a plain image "mask0.png" is another view of it, "2023.00.jpg" is another picture.
    numbered = re.compile(r"[\d._-]+" if plain else r".*\d.*")
    inners = dict.fromkeys(_inner(kind) for kind in images if kind not in plain)
    return [n for n in inners if n in told or (not shared and numbered.fullmatch(n))]


def _plain(images: Sequence[str]) -> list[str]:
    usual = [kind for kind in images if _inner(kind) in _USUAL]
    return usual or [kind for kind in images if "." not in kind]


def image_of(files: Iterable[str], column: str | None = None) -> str | None:
    """Which of a sample's files is its image; None where there is none.

    Args:
        files: as in `Sample`.
        column: the one that it shall be.

    Raises:
        DataError: several may be meant.
    """
    files = list(files)
    if column is not None:
        return column if column in files else None
    images = [kind for kind in files if _is_image(kind)]
    found = _plain(images) or images
    if len(found) > 1:
        raise DataError(
            f"expected one image in a sample, found {', '.join(found)}: choose one, as in "
            f"--image-column {found[0]}"
        )
    return found[0] if found else None
