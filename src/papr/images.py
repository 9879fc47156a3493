"""Photographs in, patches out: what needs a proposal but no host."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from papr.config import Size
from papr.errors import PaprError
from papr.proposals import Proposal
from papr.selecting import Selection, kept_count, select
from papr.significance import to_grid

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


_LONGEST = 32  # sides; beyond, resizing a line of pixels would fill the memory


class ImageError(PaprError, ValueError):
    """A file is not an image that can be read."""


def find_images(paths: list[Path]) -> list[Path]:
    """The image files among files and folders, folders searched to the bottom, in order.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ImageError(f"expected images ({', '.join(sorted(SUFFIXES))}) in {path}, none")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"expected an image or a folder, {path} does not exist")
    return found


def load_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read a photograph as RGB, turned as its EXIF says.

    Args:
        source: a file, or what is in it.
        name: of the file, for messages; its path where None.

    Raises:
        ImageError: the file cannot be read or decoded.
    """
    path = name or source if isinstance(source, Path) else name
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits: convert() would cut them off at 255
                upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ImageError(f"cannot read the image {path}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read the image {path}: {error}") from None


def fit(image: Image.Image, size: int, patch: int, square: bool = False) -> Image.Image:
    """Resize to a shorter side of `size` pixels, then crop around the centre to whole patches.

    Args:
        image: RGB.
        size: the shorter side, in pixels.
        patch: the patch's side, in pixels.
        square: crop to size x size instead.
    """
    if max(image.size) > _LONGEST * min(image.size):
        raise ImageError(
            f"expected an image at most {_LONGEST} times as long as wide, got {image.size}"
        )
    scale = size / min(image.size)
    resized = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    width = size if square else resized.width
    height = size if square else resized.height
    return ImageOps.fit(resized, (width // patch * patch, height // patch * patch))


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image to (1, 3, H, W), float32 in [0, 1]."""
    array = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return array.permute(2, 0, 1).unsqueeze(0).contiguous()


def select_patches(
    pixels: Tensor,
    keep: float,
    proposal: Proposal,
    patch: int = 16,
    proposal_size: Size = None,
    score: str = "significance",
) -> Selection:
    """The patches of plain images that a proposal finds significant, without any host.

    Args:
        pixels: (B, 3, H, W) in [0, 1], sides multiples of `patch`.
        keep: fraction to keep, 0 < keep <= 1.
        proposal: who looks.
        patch: side of a patch, in pixels.
        proposal_size: resolution the proposal runs at.
        score: "significance" or "softcam"; see `papr.PruneConfig`.
    """
    height, width = pixels.shape[-2:]
    grid = (height // patch, width // patch)
    plain = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scorer = proposal.scorer(pixels.device, torch.float32, proposal_size, *plain, score=score)
    scores = to_grid(scorer(pixels), grid)
    return select(scores, kept_count(keep, grid[0] * grid[1]))


def keep_visible(pixels: Tensor, mask: Tensor) -> Tensor:
    """Fill the patches that are not kept with the image's own mean colour.

    Args:
        pixels: (B, C, H, W).
        mask: (B, rows, columns) bool on a grid that divides the image.
    """
    cells = (pixels.shape[-2] // mask.shape[1], pixels.shape[-1] // mask.shape[2])
    visible = mask.repeat_interleave(cells[0], 1).repeat_interleave(cells[1], 2).unsqueeze(1)
    return torch.where(visible, pixels, pixels.mean(dim=(2, 3), keepdim=True))
