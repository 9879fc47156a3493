"""Photographs in, patches out: what needs a proposal but no host."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from papr.config import Size
from papr.errors import PaprError
from papr.proposals import Proposal
from papr.selecting import Selection, kept_count, select
from papr.significance import to_grid
from papr.walking import WalkError, look

#: Formats that Pillow knows by name and that hold no picture, or one that it leaves to others: data
#: of science, drawings, documents, films; .pcd is mostly a cloud of points.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "PDF", "WMF"}


def _suffixes() -> frozenset[str]:
    """What the names of pictures end in that this Pillow reads; `.pfm` holds no levels."""
    known = Image.registered_extensions().items()  # loads all of Pillow's formats
    readable = {*Image.OPEN, "MPO"} - _NO_PICTURES  # MPO is opened as JPEG
    return frozenset(suffix for suffix, kind in known if kind in readable) - {".pfm"}


#: The names of pictures end so, in small letters; the one list of them.
SUFFIXES = _suffixes()

_BITS_PER_SAMPLE = 258  # a tag of TIFF
_LONGEST = 32  # sides; beyond, resizing a line of pixels would fill the memory


# Without a handler of its own, what Pillow logs of broken files would go to standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(PaprError, ValueError):
    """A file is not an image that can be read."""


class Images(NamedTuple):
    """What `find_images` found.

    Attributes:
        images: files that are images by their names, in order.
        left_out: what else lies in the folders, with the reason where the name does not say it.
    """

    images: list[Path]
    left_out: list[str]


def find_images(paths: Sequence[Path]) -> Images:
    """The image files among files and folders, folders searched to the bottom, in order.

    Links are followed. Of folders, names with a leading dot are left out, and folders that papr
    wrote.

    Raises:
        ImageError: a path does not exist, a folder holds no image, or links go round in it.
    """
    found = Images([], [])
    for path in paths:
        if path.is_dir():
            try:
                seen = look(path)
            except WalkError as error:
                raise ImageError(str(error)) from None
            names = seen.of(SUFFIXES)
            if not names:
                raise ImageError(f"expected images in {path}, none{seen.why_none()}")
            found.images.extend(sorted(path / name for name in names))
            others = sorted({*seen.files} - {*names})
            found.left_out.extend(str(path / name) for name in [*others, *seen.left_out])
        elif path.exists():
            found.images.append(path)
        else:
            raise ImageError(f"expected an image or a folder, {path} does not exist")
    return found


def load_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read a photograph as RGB, turned as its EXIF says; of an animation the first picture.

    Transparency is dropped, as torchvision and timm do. 16 bits become 8 by division by 257. Damage
    that the format itself cannot show (a changed byte in the data of a JPEG) stays unseen.

    Args:
        source: a file, or what is in it.
        name: of the file, for messages; its path where None.

    Raises:
        ImageError: the file cannot be read or decoded, has more pixels than Pillow takes
            (`PIL.Image.MAX_IMAGE_PIXELS`, twice), or levels of unknown range (floats, 32 bits).
    """
    path = name or source if isinstance(source, Path) else name or "in memory"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken tags and large pictures
            return _load(source)
    except UnidentifiedImageError:  # its message has an address in memory
        empty = not (len(source) if isinstance(source, bytes) else source.stat().st_size)
        reason = "it is empty" if empty else "it is none, or of a kind that Pillow does not know"
    except Exception as error:  # Pillow raises whatever a broken file makes of its code
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ImageError(f"cannot read the image {path}: {reason}")


def _load(source: Path | bytes) -> Image.Image:
    if isinstance(source, Path):
        _check_regular(source)
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        with _without_complaints(image.format):
            image.load()
        upright: Image.Image = image
        with contextlib.suppress(Exception):  # EXIF that cannot be read says nothing
            upright = ImageOps.exif_transpose(image)
        return _to_eight_bits(upright, image).convert("RGB")


def _check_regular(path: Path) -> None:
    """A folder, a pipe, a link to nothing: what opening would wait for, or name badly."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"it is a link to {path.readlink()}, which does not exist")
    if path.exists() and not path.is_file():
        raise OSError("it is a folder" if path.is_dir() else "it is no regular file")


def _to_eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Levels beyond 255 scaled; convert() would cut them off. Others are left as they are."""
    if image.mode == "F" or (image.mode == "I" and opened.format == "TIFF"):
        raise ValueError(f"expected 8 or 16 bits, got mode {image.mode} of unknown range")
    if not image.mode.startswith("I"):
        return image
    bits = getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    if tuple(bits) != (16,):
        raise ValueError(f"expected 8 or 16 bits, got {bits[0]}")
    return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def _without_complaints(kind: str | None) -> Iterator[None]:
    """Keep back what libtiff writes to the process's standard error."""
    if kind != "TIFF":
        yield
        return
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_shape(width: int, height: int, what: str = "an image") -> None:
    """Refuse a line of pixels, which would fill the memory when its shorter side is resized.

    Raises:
        ImageError: one side is more than 32 times the other.
    """
    if max(width, height) > _LONGEST * min(width, height):
        raise ImageError(
            f"expected {what} at most {_LONGEST} times as long as wide, got {(width, height)}"
        )


def fit(image: Image.Image, size: int, patch: int, square: bool = False) -> Image.Image:
    """Resize to a shorter side of `size` pixels, then crop around the centre to whole patches.

    Args:
        image: RGB.
        size: the shorter side, in pixels.
        patch: the patch's side, in pixels.
        square: crop to size x size instead.
    """
    check_shape(*image.size)
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
