"""Pictures: significance maps, kept patches, panels and contact sheets. PIL images in and out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

_LOW, _MIDDLE, _HIGH = (30, 12, 84), (216, 70, 96), (253, 244, 134)
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_CAPTION = 22  # pixels
_GAP = 6


def heat_map(image: Image.Image, scores: Tensor, opacity: float = 0.6) -> Image.Image:
    """A significance map over its photograph, from dark violet (low) to yellow (high).

    Args:
        image: RGB.
        scores: (H, W), any scale.
        opacity: of the map, 0 to 1.
    """
    low, high = float(scores.min()), float(scores.max())
    scaled = (scores.float() - low) / max(high - low, 1e-12)
    grey = Image.fromarray((scaled.cpu().numpy() * 255).round().astype(np.uint8), mode="L")
    grey = grey.resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image, ImageOps.colorize(grey, _LOW, _HIGH, _MIDDLE), opacity)


def kept_patches(image: Image.Image, mask: Tensor) -> Image.Image:
    """The kept patches as they are, the others faded to a light grey.

    Args:
        image: RGB.
        mask: (H, W) bool on the patch grid.
    """
    stencil = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255, mode="L")
    stencil = stencil.resize(image.size, Image.Resampling.NEAREST)
    faded = Image.blend(
        image.convert("L").convert("RGB"), Image.new("RGB", image.size, _PAPER), 0.8
    )
    return Image.composite(image, faded, stencil)


def panel(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one height side by side, each under its caption."""
    width = sum(picture.width for _, picture in pictures) + _GAP * (len(pictures) - 1)
    height = _CAPTION + max(picture.height for _, picture in pictures)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    left = 0
    for caption, picture in pictures:
        pen.text((left + 2, 2), caption, fill=_INK, font=font)
        sheet.paste(picture, (left, _CAPTION))
        left += picture.width + _GAP
    return sheet


def contact_sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Panels below one another."""
    width = max(row.width for row in rows)
    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return sheet
