"""The pictures that glance learns from: crops of photographs, alone, side by side and off centre.

Each is drawn by its own number, so that any part can be made again alone.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageFilter

from recipes import cropped, decoded

SIDE = 224
#: How often a crop comes from the ImageNet sample, which is small, rather than from Caltech-101.
IMAGENET_SHARE = 0.45
#: How often: one crop, a mosaic of several, one on another's blurred texture, one on another.
KINDS = (0.5, 0.2, 0.15, 0.15)

Pictures = list[Image.Image]


def photographs(data: Path) -> tuple[Pictures, Pictures]:
    """(ImageNet's with an even index in sorted order, Caltech's); the odd ones are for testing."""
    imagenet = sorted((data / "imagenet-sample").glob("*/*.jpg"))[::2]
    caltech = sorted((data / "caltech-101").glob("*/*.jpg"))
    if not imagenet or not caltech:
        raise SystemExit(f"expected photographs in {data}/imagenet-sample and /caltech-101")
    return [decoded(path) for path in imagenet], [decoded(path) for path in caltech]


def picture(number: int, seed: int, imagenet: Pictures, caltech: Pictures) -> np.ndarray:
    """Picture `number` of the set, (224, 224, 3) bytes."""
    rng = default_rng([seed, number])

    def crop(width: int, height: int, least: float = 0.2) -> Image.Image:
        few = rng.random() < IMAGENET_SHARE
        photos = imagenet if few else caltech
        return cropped(photos[rng.integers(len(photos))], width, height, least, rng)

    kind = rng.choice(len(KINDS), p=KINDS)
    if kind == 0:
        whole = rng.random() < 0.3  # as photographs are shown to hosts
        return np.asarray(crop(SIDE, SIDE, 0.9 if whole else 0.2))
    if kind == 1:
        return np.asarray(mosaic(crop, rng))
    ground = crop(SIDE, SIDE)
    if kind == 2:
        ground = ground.filter(ImageFilter.GaussianBlur(float(rng.uniform(4, 16))))
    side = int(SIDE * rng.uniform(0.4, 0.75))
    left, top = (int(place) for place in rng.integers(0, SIDE - side + 1, 2))
    ground.paste(crop(side, side, 0.6), (left, top))
    return np.asarray(ground)


def mosaic(crop: Callable[..., Image.Image], rng: Generator) -> Image.Image:
    """Two to four crops that share a picture, split at random places."""
    whole = Image.new("RGB", (SIDE, SIDE))
    split = int(SIDE * rng.uniform(0.35, 0.65))
    for start, end in ((0, split), (split, SIDE)):
        halves = [0, SIDE]
        if rng.random() < 0.5:
            halves.insert(1, int(SIDE * rng.uniform(0.35, 0.65)))
        for low, high in itertools.pairwise(halves):
            whole.paste(crop(high - low, end - start), (low, start))
    return whole.transpose(Image.Transpose.TRANSPOSE) if rng.random() < 0.5 else whole
