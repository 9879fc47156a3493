"""Photographs in one folder per class: which are trained on, which are tested on, as batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, random_split

from papr.classes import Names
from papr.errors import DataError
from papr.images import ImageError, find_images, load_image
from papr.preprocessing import apply
from papr.words import counted

if TYPE_CHECKING:
    from papr.preprocessing import Transform

Batch = tuple[Tensor, Tensor]  # pixels (B, 3, H, W) normalised for the host, classes (B,)
_TOLD = 5  # folders that a message names


class Photograph(NamedTuple):
    """A file and the number of its class."""

    path: Path
    label: int


class Split(NamedTuple):
    """The photographs of a folder.

    Attributes:
        train: those to train on.
        test: those to test on, none of them trained on.
        classes: how many the labels tell apart.
        left_out: folders that are no class of the host, and how many images lie in each.
    """

    train: list[Photograph]
    test: list[Photograph]
    classes: int
    left_out: dict[str, int]

    def note(self) -> str:
        """What was left out, in one line; empty where nothing was."""
        if not self.left_out:
            return ""
        told = ", ".join(list(self.left_out)[:_TOLD])
        more = len(self.left_out) - _TOLD
        told += f" and {counted(more, 'more folder')}" if more > 0 else ""
        images = counted(sum(self.left_out.values()), "image")
        return f"left out, no class of the host: {told} ({images})"


def read(root: Path, names: list[str] | None, test_every: int | None, seed: int) -> Split:
    """Find the photographs and set some apart for the test.

    Args:
        root: holds one folder per class.
        names: the host's own of its classes, in order; where it has none, the folders in sorted
            order are the classes.
        test_every: test on every so manyth image of each class in sorted order; None for a random
            fifth of all images.
        seed: of the random fifth.

    Raises:
        DataError: no folder is a class, or too few images lie there.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    labels = _labels(root, [folder.name for folder in folders], names)
    train: list[Photograph] = []
    test: list[Photograph] = []
    left_out = {}
    for folder in folders:
        images = _images(folder)
        if folder.name not in labels:
            left_out[folder.name] = len(images)
            continue
        for place, path in enumerate(images):
            apart = test_every is not None and place % test_every == test_every - 1
            (test if apart else train).append(Photograph(path, labels[folder.name]))
    if test_every is None:
        generator = torch.Generator().manual_seed(seed)
        train, test = (list(part) for part in random_split(train, [0.8, 0.2], generator))
    if not train or len(test) < 2:  # of one image there is no standard error
        raise DataError(
            f"expected images in {root} to train on and at least 2 to test on, got "
            f"{len(train)} and {len(test)}"
        )
    return Split(train, test, len(names or folders), left_out)


def _labels(root: Path, folders: list[str], names: list[str] | None) -> dict[str, int]:
    """The class of each folder that is one."""
    if names is None:
        return {folder: number for number, folder in enumerate(folders)}
    known = Names(names)  # as `papr eval` finds them
    meant = {folder: known.find(folder) for folder in folders}
    found = {folder: numbers.pop() for folder, numbers in meant.items() if len(numbers) == 1}
    if not found:
        raise DataError(
            f"expected folders in {root} that are named like classes of the host, such as "
            f"{', '.join(names[:3])}, got {', '.join(folders[:3]) or 'none'}"
        )
    return found


def _images(folder: Path) -> list[Path]:
    try:
        return find_images([folder]).images
    except ImageError:  # none in it
        return []


def training_transform(host: nn.Module, size: int) -> "Transform":
    """A random part of at least half the photograph, mirrored every other time: timm's own.

    Weights that were trained well have little to learn from the very pictures they know by heart.
    """
    config = resolve_model_data_config(host) | {"input_size": (3, size, size)}
    mild = {"scale": (0.5, 1.0), "color_jitter": None}
    transform: Transform = create_transform(**config, is_training=True, **mild)
    return transform


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Photographs as a host takes them, read from their files each time.

    Decoding takes a small part of the time of a training step, so that nothing need be held.
    """

    def __init__(self, photographs: list[Photograph], transform: "Transform") -> None:
        self.photographs, self.transform = photographs, transform

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path, label = self.photographs[number]
        return apply(self.transform, load_image(path), str(path)), label


def in_order(photographs: list[Photograph], transform: "Transform") -> DataLoader:
    """Batches to test on, as often as one likes."""
    return DataLoader(_Decoded(photographs, transform), 32)


def endless(
    photographs: list[Photograph], transform: "Transform", batch: int, seed: int
) -> Iterator[Batch]:
    """Batches to train on: pass after pass, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(_Decoded(photographs, transform), batch, True, generator=generator)
    while True:
        yield from loader
