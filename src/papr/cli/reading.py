"""Reading the user's images: what cannot be read is remembered, named at the end, and skipped."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import typer
from PIL import Image

from papr.cli.common import errors, name_ignored, settle
from papr.cli.console import shown
from papr.errors import WriteError
from papr.files import short, write_image
from papr.images import SUFFIXES, ImageError, find_images, load_image
from papr.provenance import NOBODY, Provenance
from papr.splits import WHOLE, one_split, split_folders
from papr.walking import look

_T = TypeVar("_T")
SUFFIX = "-papr.png"  # of pictures that commands draw: no photograph of the user's is overwritten


def images_of(paths: Sequence[Path], drawn: str = SUFFIX, apart: bool = False) -> list[Path]:
    """The images among files and folders; what else the folders hold is counted and named.

    Args:
        paths: of the user.
        drawn: how the names of pictures end that the command itself drew.
        apart: refuse folders of several splits, unless one is named: DIR:val, or DIR:all.
    """
    found = find_images([_of_split(path) for path in paths] if apart else paths)
    own = [path for path in found.images if path.name.endswith(drawn)]
    images = [path for path in found.images if not path.name.endswith(drawn)]
    if not images:
        raise ImageError(f"expected images, got {own[0]}, which papr drew")
    left_out = [*found.left_out, *(f"{path} (papr drew it)" for path in own)]
    name_ignored(left_out, "images")
    return images


def _of_split(path: Path) -> Path:
    """The folder of the split that is named behind a folder; the path itself where it has none."""
    name, _, wanted = str(path).rpartition(":")
    told = bool(name) and not path.exists() and Path(name).is_dir()
    folder, split = (Path(name), wanted) if told else (path, None)
    if split == WHOLE or not folder.is_dir():
        return folder
    splits = split_folders(look(folder).of(SUFFIXES))
    if not splits and not told:
        return folder
    return folder / splits[one_split(splits, split, folder, whole=bool(splits))]


class Reader(Generic[_T]):
    """Reads images and prepares them.

    Attributes:
        prepare: photograph to what the command works on, such as its square middle, or the host's
            pixels.
        broken: images that could not be read, and why.
        unwritten: why pictures that were drawn could not be written.
    """

    def __init__(self, prepare: Callable[[Image.Image], _T]) -> None:
        self.prepare = prepare
        self.broken: dict[Path, str] = {}
        self.unwritten: list[str] = []

    def read(self, path: Path) -> _T | None:
        """The prepared image; None, and remembered, where it cannot be read."""
        try:
            return self.prepare(load_image(path))
        except (ImageError, MemoryError) as error:
            reason = str(error) or "out of memory"
            named = reason if str(path) in reason else f"cannot read the image {path}: {reason}"
            self.broken[path] = named
            return None

    def readable(self, paths: Sequence[Path]) -> Iterator[tuple[Path, _T]]:
        """Every image that can be read."""
        for path in paths:
            photograph = None if path in self.broken else self.read(path)
            if photograph is not None:
                yield path, photograph

    def draw(self, file: Path, picture: Image.Image, provenance: Provenance = NOBODY) -> bool:
        """Write what was drawn of an image; False, and remembered, where it cannot be written."""
        try:
            write_image(file, picture, provenance)
        except OSError as error:
            self.unwritten.append(str(error))
            return False
        return True

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Name what was remembered where the block cannot write its results and so ends."""
        try:
            yield
        except WriteError:
            self._name()
            raise

    def report(self, images: int, strict: bool) -> None:
        """Name what could not be read or written, and end by `settle`; a lost picture is an error.

        Args:
            images: all of them.
            strict: of --strict.
        """
        self._name()
        if self.unwritten:
            raise typer.Exit(1)
        settle(images - len(self.broken), len(self.broken), strict)

    def _name(self) -> None:
        for message in [*self.broken.values(), *self.unwritten]:
            errors.print(shown(message), style="red", highlight=False, soft_wrap=True, markup=False)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for the picture of each image: the image's own, numbered where two are alike."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        names.append(short(path.stem, taken))
        taken.add(names[-1])
    return names
