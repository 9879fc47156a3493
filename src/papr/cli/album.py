"""The images of `papr compare` as the host takes them, and their classes as it counts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from papr.classes import number_labels, own_names, wordnet_above

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from papr.cli.oracle import Oracle
    from papr.cli.reading import Reader
    from papr.preprocessing import Preprocessing


@dataclass
class Album:
    """The user's images as the host takes them, read as they are needed.

    Attributes:
        paths: all files.
        prepare: what the host's own library does with a picture.
        labels: class indices by path; None where they are unknown.
        device: the host's.
        dtype: the host's.
        oracle: what is told which images come.
        reader: knows what could not be read, and why.
        seen: images in the batches so far.
    """

    paths: Sequence[Path]
    prepare: Preprocessing
    labels: dict[Path, int] | None
    device: torch.device
    dtype: torch.dtype
    oracle: Oracle | None = None
    reader: Reader[Tensor] = field(init=False)
    seen: int = 0

    def __post_init__(self) -> None:
        from papr.cli.reading import Reader
        from papr.preprocessing import apply

        self.reader = Reader(lambda image: apply(self.prepare.transform, image))

    def readable(self) -> Iterator[tuple[Path, Tensor]]:
        """Every image that can be read, as pixels (3, H, W)."""
        return self.reader.readable(self.paths)

    def pixels(self, seen: Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W), as the host takes them."""
        import torch

        return torch.stack(list(seen)).to(device=self.device, dtype=self.dtype)

    def show(self, paths: Sequence[Path]) -> None:
        """Tell the oracle, where there is one, which images the rivals get now."""
        if self.oracle is not None:
            self.oracle.show(paths, self.device)

    def example(self) -> Tensor:
        """The first image, (1, 3, H, W). Raises ImageError where none can be read."""
        for _, seen in self.readable():
            return self.pixels([seen])
        from papr.images import ImageError

        raise ImageError(
            f"expected an image that can be read among {len(self.paths)}, got none: "
            f"{next(iter(self.reader.broken.values()), 'no path was given')}"
        )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(pixels, labels) of `size` images at a time, the last perhaps fewer."""
        waiting: list[tuple[Path, Tensor]] = []
        for item in self.readable():
            waiting.append(item)
            if len(waiting) == size:
                yield self._batch(waiting)
                waiting = []
        if waiting:
            yield self._batch(waiting)

    def _batch(self, items: list[tuple[Path, Tensor]]) -> tuple[Tensor, Tensor | None]:
        import torch

        self.seen += len(items)
        self.show([path for path, _ in items])
        known = None if self.labels is None else [self.labels[path] for path, _ in items]
        labels = None if known is None else torch.tensor(known, device=self.device)
        return self.pixels([seen for _, seen in items]), labels


def class_count(host: nn.Module) -> int:
    """How many classes a host tells apart; 1 where it answers one number."""
    from torch import nn

    from papr.compare.rivals import answers_yes_or_no

    if answers_yes_or_no(host):
        return 2
    for told in (host, getattr(host, "config", None)):
        for name in ("num_classes", "num_labels"):
            if isinstance(count := getattr(told, name, None), int):
                return count
    linear = [module for module in host.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else 0  # torchvision's classifiers end with it


def labels_of(
    arguments: Sequence[Path], paths: Sequence[Path], host: nn.Module
) -> dict[Path, int] | None:
    """Class indices of images, where all have one by the folders that they lie in.

    By WordNet ids at any level above, if the host is ImageNet's; else by the host's own names.

    Args:
        arguments: images and folders that the user named.
        paths: the images there.
        host: the one to be asked.
    """
    count, found = class_count(host), None
    if count == 1000:
        found = wordnet_above([path.as_posix() for path in paths])
    if found is None and (names := own_names(host, count)):
        found, _ = number_labels([_from(arguments, path) for path in paths], names)
    return None if found is None else dict(zip(paths, found, strict=True))


def _from(arguments: Sequence[Path], path: Path) -> str:
    """An image's path from the folder on that the user named, or that it lies in.

    What stands above is no class: photographs in /home/crab/ants are not of a crab.
    """
    whole = path.absolute()
    above = [folder.absolute() for folder in arguments]
    top = next((folder for folder in above if folder in whole.parents), whole.parent)
    return whole.relative_to(top.parent).as_posix()
