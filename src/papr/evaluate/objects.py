"""Images in object storage: anything that pyarrow has a file system for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pyarrow import fs

from papr.classes import Classes
from papr.errors import one_line
from papr.evaluate.folders import walk
from papr.evaluate.sources import DataError, Item, Source, digest, file_size, readable
from papr.images import SUFFIXES
from papr.splits import WHOLE, one_split, split_folders
from papr.walking import is_hidden

_LOCAL = "file://"
_SPLIT = re.compile(r"(.+://.+):([a-zA-Z][\w.-]*)")  # behind an address
_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")


@dataclass
class Objects(Source):
    """Images below an address such as s3://bucket/prefix, without labels.

    Attributes:
        address: as `pyarrow.fs.FileSystem.from_uri` takes it: s3://, gs://, hdfs://, file:// ...
        paths: below it, in order.
        sizes: of each, bytes.
    """

    address: str
    paths: list[str]
    sizes: list[int]
    ignored: Sequence[str] = ()
    note: str = "labels are not read from object storage"
    kind: str = "objects"
    shards: Sequence[str] = field(init=False)
    length: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.shards, self.length = (self.address,), len(self.paths)

    def item(self, number: int) -> Item:
        """The image with that number, fetched."""
        return self.named(self.paths[number])

    def name(self, number: int) -> str:
        """The path of the image with that number."""
        return readable(self.paths[number])

    def named(self, path: str) -> Item:
        """The image at `path` below the address.

        Raises:
            DataError: it cannot be fetched.
        """
        name, folder = readable(path), local_folder(self.address)
        try:
            if folder is not None:
                return Item(name, None, (folder / path).read_bytes())
            files, root = filesystem(self.address)
            with files.open_input_file(f"{root}/{path}") as file:
                return Item(name, None, file.read())
        except OSError as error:
            raise DataError(f"cannot fetch {name}: {one_line(error)}") from None

    def identity(self) -> dict[str, Any]:
        """Names and sizes, not where they lie."""
        lines = (f"{path} {size}" for path, size in zip(self.paths, self.sizes, strict=True))
        return {"kind": self.kind, "samples": self.length, "digest": digest(lines)}


def is_address(text: str) -> bool:
    """Whether a text is an address of a kind that pyarrow has a file system for."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


@lru_cache(maxsize=8)
def filesystem(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
        DataError: there is none.
    """
    try:
        try:
            files, path = fs.FileSystem.from_uri(address)
        except ValueError:  # spaces and brackets as they are, not as an address spells them
            files, path = fs.FileSystem.from_uri(quote(address, safe="/:?&=@%+,;!$'()*~"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open {readable(address)}: {one_line(error)}") from None
    return files, path.rstrip("/")


def local_folder(address: str) -> Path | None:
    """The folder of this machine that a file:// address names; None for another address.

    It is read by Python: Arrow knows no names that are not Unicode.
    """
    if not address.startswith(_LOCAL):
        return None
    plain = Path(address.removeprefix(_LOCAL))
    return plain if plain.exists() else Path(unquote(str(plain)))


@dataclass(frozen=True)
class Listed:
    """Images below an address, before it is known who will be asked about them."""

    address: str
    sizes: dict[str, int]
    ignored: list[str]

    def open(self, classes: Classes) -> Objects:
        """The images, whose labels are not known, whatever the host's classes."""
        return Objects(self.address, list(self.sizes), list(self.sizes.values()), self.ignored)


def find_objects(address: str) -> Listed:
    """The images below an address, in the order of their names.

    Args:
        address: may end in `:SPLIT`, as a folder's name may.

    Raises:
        DataError: it cannot be listed, no image is there, or several splits are and none is named.
    """
    folder, split = local_folder(address), None
    told = _SPLIT.fullmatch(address)
    if told and not (folder and folder.exists()):
        address, split = told[1], told[2]
        folder = local_folder(address)
    sizes, ignored = _remote(address) if folder is None else _local(address, folder)
    names = sorted(sizes)
    paths = [n for n in names if n.lower().endswith(tuple(SUFFIXES)) and not is_hidden(n)]
    if not paths:
        raise DataError(f"expected images (of a kind that Pillow reads) in {address}, none")
    splits = {} if split == WHOLE else split_folders(paths)
    if splits or split not in (None, WHOLE):
        inside = splits[one_split(splits, split, address, whole=bool(splits))]
        return find_objects(f"{address.rstrip('/')}/{inside}:{WHOLE}")
    known = set(paths)
    ignored += [name for name in names if name not in known]
    return Listed(address, {path: sizes[path] for path in paths}, sorted(ignored))


def _remote(address: str) -> tuple[dict[str, int], list[str]]:
    """Names and sizes below an address, and what was left out."""
    files, root = filesystem(address)
    try:
        found = files.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise DataError(f"cannot list {address}: {one_line(error)}") from None
    listed = [info for info in found if info.type == fs.FileType.File]
    return {info.path[len(root) + 1 :]: info.size for info in listed}, []


def _local(address: str, folder: Path) -> tuple[dict[str, int], list[str]]:
    if not folder.is_dir():
        raise DataError(f"cannot list {readable(address)}: there is no such folder")
    seen = walk(folder)
    return {name: file_size(folder / name) for name in seen.files}, seen.left_out
