"""Reading the user's images: what cannot be read is remembered, named at the end, and skipped."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer
from PIL import Image

from papr.cli.common import errors
from papr.images import ImageError, find_images, load_image

SUFFIX = "-papr.png"  # of pictures that commands draw: no photograph of the user's is overwritten


_SHOWN = 10  # of what was left out


def images_of(paths: Sequence[Path], drawn: str = SUFFIX) -> list[Path]:
    """The images among files and folders; what else the folders hold is counted and named.

    Args:
        paths: of the user.
        drawn: how the names of pictures end that the command itself drew.
    """
    found = find_images(paths)
    own = [path for path in found.images if path.name.endswith(drawn)]
    images = [path for path in found.images if not path.name.endswith(drawn)]
    if not images:
        raise ImageError(f"expected images, got {own[0]}, which papr drew")
    left_out = [*found.left_out, *(f"{path} (papr drew it)" for path in own)]
    if left_out:
        more = ", ..." if left_out[_SHOWN:] else ""
        text = f"{len(left_out)} left out, no images by their names, hidden, or papr's own: "
        errors.print(
            text + ", ".join(left_out[:_SHOWN]) + more,
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return images


class Reader:
    """Reads images and prepares them.

    Attributes:
        prepare: photograph to what the command works on, such as its square middle.
        broken: what could not be read, and why.
    """

    def __init__(self, prepare: Callable[[Image.Image], Image.Image]) -> None:
        self.prepare = prepare
        self.broken: dict[Path, str] = {}

    def read(self, path: Path) -> Image.Image | None:
        """The prepared image; None, and remembered, where it cannot be read."""
        try:
            return self.prepare(load_image(path))
        except (ImageError, MemoryError) as error:
            self.broken[path] = str(error) or f"cannot read the image {path}: out of memory"
            return None

    def readable(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Image.Image]]:
        """Every image that can be read."""
        for path in paths:
            photograph = None if path in self.broken else self.read(path)
            if photograph is not None:
                yield path, photograph

    def report(self) -> None:
        """Name what could not be read; the exit status is then 1."""
        for message in self.broken.values():
            errors.print(message, style="red", highlight=False, soft_wrap=True, markup=False)
        if self.broken:
            raise typer.Exit(1)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for the picture of each image: the image's own, numbered where two are alike."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        names.append(name)
    return names
