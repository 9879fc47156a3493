"""Handwritten digits among clutter on photographs: pictures that a small host must search.

Each picture is 96 x 96 px: a darkened crop of one of scikit-image's photographs, on it in light
colours one whole digit of scikit-learn's, anywhere, a tenth to a fifth of the picture's area, and
around it scraps: fragments of other digits, strokes, blobs. The digit's class is the answer. A
picture depends on (split, seed, index, side) and on nothing else. The two splits share no digit and
no pixel of a photograph: every fifth digit, and the right half of every photograph, is held out.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 96  # pixels
CLASSES = 10
SPLITS = ("train", "held-out")
MEAN = STD = (0.5, 0.5, 0.5)  # what the networks' pixels are normalised with
DIGIT_SIDES = (32, 43)  # pixels, from and below: 11 to 19 per cent of the area
PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "camera"),
    *("brick", "grass", "gravel", "moon", "coins"),
)
_TRIES = 5  # to find a place beside the digit before a scrap is left out

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, the last two exclusive


@functools.cache
def digits(split: str) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """The digits of a split: (n, 8, 8) in [0, 1], their classes, their numbers in load_digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    numbers = np.arange(len(found.target))
    numbers = numbers[(numbers % 5 == 0) == (_number(split) == 1)]
    images = (found.images[numbers] / 16).astype(np.float32)
    return images, found.target[numbers].astype(np.int64), numbers


@functools.cache
def photographs(split: str) -> tuple[Array, ...]:
    """The photographs' halves of a split, each (height, width, 3) in [0, 1]."""
    from skimage import data

    halves = []
    for name in PHOTOGRAPHS:
        whole = getattr(data, name)().astype(np.float32) / 255
        whole = np.repeat(whole[..., None], 3, axis=2) if whole.ndim == 2 else whole[..., :3]
        middle = whole.shape[1] // 2
        halves.append(whole[:, :middle] if _number(split) == 0 else whole[:, middle:])
    return tuple(halves)


def picture(
    split: str, seed: int, index: int, side: int = SIDE
) -> tuple[NDArray[np.uint8], int, Box]:
    """One picture of an endless row.

    Args:
        split: "train" or "held-out".
        seed: which row.
        index: which picture of the row, from 0.
        side: of the picture in pixels; a smaller one holds as large a digit and less clutter.

    Returns:
        Pixels (side, side, 3), the class of the digit, and the box that the digit was drawn in.
    """
    random = np.random.default_rng([_number(split), seed, index])
    canvas = _ground(random, photographs(split), side)
    images, classes, _ = digits(split)
    chosen = random.integers(len(images))
    stencil = _enlarged(images[chosen], random.integers(*DIGIT_SIDES))
    box = _place(random, side, len(stencil))
    _paint(random, canvas, stencil, box)
    share = (side / SIDE) ** 2
    scraps = [_fragment(random, images) for _ in range(round(share * random.integers(4, 8)))]
    scraps += [_stroke(random) for _ in range(round(share * random.integers(3, 7)))]
    scraps += [_blob(random) for _ in range(round(share * random.integers(2, 5)))]
    for scrap in scraps:
        places = (_place(random, side, len(scrap)) for _ in range(_TRIES))
        free = next((place for place in places if _apart(place, box)), None)
        if free is not None:
            _paint(random, canvas, scrap, free)
    return (canvas * 255).round().astype(np.uint8), int(classes[chosen]), box


def batch(
    split: str, seed: int, indices: Sequence[int], side: int = SIDE
) -> tuple[Tensor, Tensor, Tensor]:
    """Some pictures of the row; see `picture`.

    Returns:
        Pixels (B, 3, side, side) normalised for the networks, classes (B,), boxes (B, 4).
    """
    made = [picture(split, seed, index, side) for index in indices]
    pixels = torch.from_numpy(np.stack([image for image, _, _ in made])).permute(0, 3, 1, 2)
    pixels = (pixels.float() / 255 - MEAN[0]) / STD[0]
    classes = torch.tensor([answer for _, answer, _ in made])
    return pixels.contiguous(), classes, torch.tensor([box for _, _, box in made])


def _number(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    return SPLITS.index(split)


def _ground(random: np.random.Generator, pictures: Sequence[Array], side: int) -> Array:
    """A crop of a photograph at full or half resolution, darkened, perhaps mirrored."""
    whole = pictures[random.integers(len(pictures))]
    step = int(random.integers(1, 3)) if min(whole.shape[:2]) >= 2 * side else 1
    top, left = (int(random.integers(n - step * side + 1)) for n in whole.shape[:2])
    crop = whole[top : top + step * side : step, left : left + step * side : step]
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    return crop * np.float32(random.uniform(0.3, 0.6))


@functools.cache
def _smoothing(before: int, after: int) -> Array:
    """The matrix (after, before) that enlarges one axis, each cell a bell of its own width."""
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    bells = np.exp(-0.5 * ((centres[:, None] - np.arange(before)) / 0.45) ** 2)
    return (bells / bells.sum(axis=1, keepdims=True)).astype(np.float32)


def _enlarged(strokes: Array, side: int) -> Array:
    """Strokes (n, n) as a stencil (side, side) with soft edges, in [0, 1]."""
    grow = _smoothing(len(strokes), int(side))
    return np.clip((grow @ strokes @ grow.T - 0.35) * 4, 0, 1)


def _fragment(random: np.random.Generator, images: Array) -> Array:
    """The stencil of a part of some digit, as thick in its strokes as a whole one."""
    top, left = random.integers(0, 5, 2)
    part = images[random.integers(len(images)), top : top + 4, left : left + 4]
    part = np.pad(part, 1)  # so that its ends are round, not cut
    return _enlarged(part, random.integers(*DIGIT_SIDES) * 6 // 8)


def _stroke(random: np.random.Generator) -> Array:
    """The stencil of a straight line, as thick as a digit's."""
    side = int(random.integers(10, 30))
    (x0, y0, x1, y1), width = random.uniform(3, side - 3, 4), random.uniform(1.5, 3)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2 + 1e-3
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
    away = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    return np.clip(width - away, 0, 1).astype(np.float32)


def _blob(random: np.random.Generator) -> Array:
    """The stencil of a filled ellipse."""
    side = int(random.integers(8, 20))
    y, x = np.linspace(-1, 1, side)[:, None], np.linspace(-1, 1, side)[None, :]
    inside = 1 - (x / random.uniform(0.5, 1)) ** 2 - (y / random.uniform(0.5, 1)) ** 2
    return np.clip(inside * 4, 0, 1).astype(np.float32)


def _place(random: np.random.Generator, canvas_side: int, side: int) -> Box:
    """A box of `side` pixels, anywhere on the canvas."""
    top, left = (int(n) for n in random.integers(0, canvas_side - side + 1, 2))
    return top, left, top + side, left + side


def _apart(one: Box, other: Box) -> bool:
    """Whether two boxes overlap by less than three pixels, where stencils are mostly empty."""
    return any(
        one[axis + 2] < other[axis] + 3 or other[axis + 2] < one[axis] + 3 for axis in (0, 1)
    )


def _paint(random: np.random.Generator, canvas: Array, stencil: Array, box: Box) -> None:
    """Paint a stencil into its box in a light colour."""
    top, left, bottom, right = box
    below = canvas[top:bottom, left:right]
    below += stencil[..., None] * (random.uniform(0.65, 1, 3).astype(np.float32) - below)
