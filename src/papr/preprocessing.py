"""From an upright picture to the pixels that a host takes, as the host's own library does it.

Every command and call that shows a host a picture asks here, so that figures of one host are of the
same pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from papr.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from papr.errors import ConfigError, PaprWarning, one_line

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    #: An upright RGB image to normalised pixels (3, H, W).
    Transform = Callable[[Image.Image], Tensor]


class Preprocessing(NamedTuple):
    """What is done to a picture before a host sees it.

    Attributes:
        transform: an upright RGB image to normalised pixels (3, H, W).
        mean: what these are normalised with.
        std: likewise.
    """

    transform: Transform
    mean: Triple
    std: Triple

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (..., 3, H, W) in [0, 1] as the host takes them."""
        import torch

        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def picture(self, pixels: Tensor) -> Image.Image:
        """What the host sees, as a picture.

        Args:
            pixels: (3, H, W), of `transform`.
        """
        import torch
        from PIL import Image

        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        levels = (pixels.cpu().float() * std + mean).mul(255).round().clamp(0, 255)
        return Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def apply(transform: Transform, image: Image.Image, name: str = "") -> Tensor:
    """Pixels (3, H, W).

    Args:
        transform: the host's.
        image: upright, RGB.
        name: of the picture, for messages.

    Raises:
        ImageError: the image is a line of pixels, or the transform takes none of this shape.
    """
    from papr.images import ImageError, check_shape

    try:
        check_shape(*image.size)
        return transform(image)
    except MemoryError:
        raise
    except Exception as error:  # a library's transform may take no picture of this shape
        which = f"the image {name}" if name else "it for the host"
        raise ImageError(f"cannot prepare {which}: {one_line(error)}") from None


def preprocessing(host: nn.Module, name: str) -> Preprocessing:
    """What the host's own library does with a picture before it.

    Args:
        host: of images.
        name: what `papr.named.create_classifier` made it of; where empty, what transformers says
            that it was loaded from. Of transformers its processor's file is looked for there;
            where nothing is known, timm's usual resize and crop to the host's size, with
            ImageNet's statistics.

    Raises:
        ConfigError: the host takes clips.
    """
    from papr.hub import load_processor
    from papr.timm_folders import is_timm

    _check_images(host)
    name = name or str(getattr(host, "name_or_path", ""))
    if name.startswith("torchvision/"):
        from torchvision.models import get_model_weights

        preset = get_model_weights(name.removeprefix("torchvision/")).DEFAULT.transforms()
        return Preprocessing(preset, tuple(preset.mean), tuple(preset.std))
    if is_timm(name) or not hasattr(host, "config"):
        return timm_preprocessing(host)
    processor = load_processor(name) if name else None
    if processor is None:
        warnings.warn(
            f"how {name or type(host).__name__} wants pictures is unknown, since it has no "
            "processor's file: taking ImageNet's mean and std, and a crop of its size",
            PaprWarning,
            stacklevel=2,
        )
        return timm_preprocessing(host)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Preprocessing(_Processor(processor), mean, std)


def timm_preprocessing(host: nn.Module, crop: float | None = None) -> Preprocessing:
    """What timm's evaluation does: resize, square in the middle, normalise.

    Args:
        host: a timm model, or any other that says its input size, with ImageNet's statistics then.
        crop: the square's share of the resized image's shorter side; None for the model's own.

    Raises:
        ConfigError: the host takes clips.
    """
    from timm.data import create_transform, resolve_data_config

    given: dict[str, Any] = {"input_size": _check_images(host)}
    if crop is not None:
        given["crop_pct"] = crop
    own = getattr(host, "pretrained_cfg", None)
    statistics = {} if own else {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config = resolve_data_config(given | statistics, pretrained_cfg=own or {}, verbose=False)
    mean, std = tuple(config["mean"]), tuple(config["std"])  # lists, of a file of JSON
    return Preprocessing(create_transform(**config), mean, std)


def _check_images(host: nn.Module) -> tuple[int, ...]:
    from papr.hosts.inputs import pixel_shape

    shape = pixel_shape(host)
    if len(shape) != 3:
        raise ConfigError(
            f"expected a host of images, got {type(host).__name__}, which takes clips"
        )
    return shape


@dataclass
class _Processor:
    """An image processor of transformers as a transform."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        import torch

        found: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return torch.as_tensor(found)

    def __repr__(self) -> str:
        return str(self.processor.to_json_string())
