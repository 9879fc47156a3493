"""Pictures: significance maps, kept patches, panels and contact sheets. PIL images in and out."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from papr.errors import SelectionError
from papr.images import load_image
from papr.significance import describe

#: Colours of the heat map, from the least significant to the most; of the page and its text.
LOW, MIDDLE, HIGH = (30, 12, 84), (216, 70, 96), (253, 244, 134)
PAPER, INK = (255, 255, 255), (40, 40, 40)
_CAPTION = 22  # pixels
_GAP = 6


def heat_map(
    image: Image.Image,
    scores: Tensor,
    opacity: float = 0.6,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """A significance map over its photograph, from dark violet (low) to yellow (high).

    Args:
        image: RGB.
        scores: (H, W), any scale.
        opacity: of the map, 0 to 1.
        limits: the scores drawn darkest and brightest, such as those of a whole clip; by default
            the lowest and the highest of `scores`.
    """
    low, high = limits or (float(scores.min()), float(scores.max()))
    scaled = ((scores.float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    grey = Image.fromarray((scaled.cpu().numpy() * 255).round().astype(np.uint8), mode="L")
    grey = grey.resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image, ImageOps.colorize(grey, LOW, HIGH, MIDDLE), opacity)


def kept_patches(
    image: Image.Image, mask: Tensor, ground: tuple[int, int, int] = PAPER
) -> Image.Image:
    """The kept patches as they are, the others faded: grey, and four fifths of the way to `ground`.

    Args:
        image: RGB.
        mask: (H, W) bool on the patch grid.
        ground: what the others fade to; by default white.
    """
    stencil = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255, mode="L")
    stencil = stencil.resize(image.size, Image.Resampling.NEAREST)
    faded = Image.blend(
        image.convert("L").convert("RGB"), Image.new("RGB", image.size, ground), 0.8
    )
    return Image.composite(image, faded, stencil)


def overlay(photo: Any, mask: Tensor, index: int = 0) -> Image.Image:
    """What was kept of one image of a batch, on its photograph; see `Selection.overlay`.

    Args:
        photo: a path, a PIL image, an array or a tensor.
        mask: (B, H, W) bool on the patch grid.
        index: which image.
    """
    if mask.ndim != 3:
        raise SelectionError(
            f"expected a selection of images to draw on a photograph, got a grid "
            f"{tuple(mask.shape[1:])} of clips: papr video draws those"
        )
    if not -len(mask) <= index < len(mask):
        raise SelectionError(f"expected an image among {len(mask)} of the batch, got {index}")
    image = _photograph(photo)
    rows, columns = mask.shape[1:]
    wide, high = rows * image.width / image.height, columns * image.height / image.width
    if abs(wide - columns) > 1 and abs(high - rows) > 1:
        raise SelectionError(
            f"expected the photograph as the model saw it, cropped to the aspect ratio of "
            f"{rows} x {columns} patches, got {image.height} x {image.width} pixels"
        )
    return kept_patches(image, mask[index])


def _photograph(photo: Any) -> Image.Image:
    """RGB, of whatever a user has of it."""
    if isinstance(photo, str | os.PathLike):
        return load_image(Path(photo))
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    found = photo.detach().cpu() if isinstance(photo, Tensor) else photo
    if isinstance(found, Tensor) and found.ndim == 3 and found.shape[0] == 3:
        found = found.float().permute(1, 2, 0).numpy() / (1 if found.is_floating_point() else 255)
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[2] != 3:
        shape = getattr(photo, "shape", None)
        raise SelectionError(
            "expected a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), got "
            f"{type(photo).__name__}{'' if shape is None else f' {tuple(shape)}'}"
        )
    if found.dtype != np.uint8:
        if found.min() < 0 or found.max() > 1:
            raise SelectionError(
                f"expected values from 0 to 1, before they are normalised, got {found.min():.3g} "
                f"to {found.max():.3g}"
            )
        found = (found * 255).round().astype(np.uint8)
    return Image.fromarray(found)


def merged_patches(
    image: Image.Image, sources: Tensor, ground: tuple[int, int, int] = PAPER
) -> Image.Image:
    """What the host's last tokens stand for: patches of one token in their mean colour.

    Lines part what ended in different tokens; patches whose token was dropped are `ground`.

    Args:
        image: RGB.
        sources: (H, W) int64, which token each patch of the grid ended in, -1 for none: one
            image's `Selection.sources`, on the grid.
        ground: what is shown where nothing is left; by default white.

    Raises:
        SelectionError: `sources` is not of one image on its grid.

    Examples:
        `chosen = papr.selection(model)`, then
        `merged_patches(photograph, chosen.sources[0].view(chosen.grid))`.
    """
    if sources.ndim != 2 or sources.is_floating_point():
        raise SelectionError(
            "expected the sources of one image on its grid, (H, W) int64, as "
            f"chosen.sources[0].view(chosen.grid) are, got {describe(sources)}"
        )
    ended = sources.cpu().numpy()
    rows, columns = ended.shape
    small = np.asarray(image.resize((columns, rows), Image.Resampling.BOX), dtype=np.float64)
    colours = np.full((rows, columns, 3), ground, dtype=np.float64)
    for token in np.unique(ended[ended >= 0]):
        colours[ended == token] = small[ended == token].mean(axis=0)
    painted = Image.fromarray(colours.round().astype(np.uint8), mode="RGB")
    painted = painted.resize(image.size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(painted)
    width, height = image.width / columns, image.height / rows
    for row, column in zip(*np.nonzero(ended[:, 1:] != ended[:, :-1]), strict=True):
        x = round((column + 1) * width)
        pen.line([(x, round(row * height)), (x, round((row + 1) * height))], fill=ground)
    for row, column in zip(*np.nonzero(ended[1:] != ended[:-1]), strict=True):
        y = round((row + 1) * height)
        pen.line([(round(column * width), y), (round((column + 1) * width), y)], fill=ground)
    return painted


def panel(
    pictures: Sequence[tuple[str, Image.Image]], apart: bool = False, note: str = ""
) -> Image.Image:
    """Pictures of one height side by side, each under its caption.

    Args:
        pictures: (caption, picture).
        apart: give each at least the room of its caption, for pictures that are small.
        note: a line below all of them, such as that weights are random.
    """
    font = ImageFont.load_default(size=14)
    widths = [
        max(picture.width, math.ceil(font.getlength(caption)) + 4 if apart else 0)
        for caption, picture in pictures
    ]
    width = sum(widths) + _GAP * (len(pictures) - 1)
    foot = _CAPTION + max(picture.height for _, picture in pictures)
    height = foot + (_CAPTION if note else 0)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    left = 0
    for (caption, picture), room in zip(pictures, widths, strict=True):
        pen.text((left + 2, 2), caption, fill=INK, font=font)
        sheet.paste(picture, (left, _CAPTION))
        left += room + _GAP
    pen.text((2, foot + 2), note, fill=INK, font=font)
    return sheet


def contact_sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Panels below one another."""
    width = max(row.width for row in rows)
    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (width, height), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return sheet
