"""From a file to what the host takes, as the host's own library does it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from papr.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from papr.errors import ConfigError
from papr.evaluate.sources import Item
from papr.hosts.inputs import pixel_shape
from papr.hub import load_processor
from papr.images import load_image

#: An upright RGB image to normalised pixels (3, H, W).
Transform = Callable[[Image.Image], Tensor]


@dataclass
class ImageFile:
    """Decodes an image and prepares it: one view, (1, 3, H, W).

    Attributes:
        transform: the host's.
        mean: what its pixels are normalised with.
        std: likewise.
        described: the transform in words, for the configuration of a run.
    """

    transform: Transform
    mean: Triple
    std: Triple
    described: str = field(default="")

    def __post_init__(self) -> None:
        self.described = self.described or " ".join(repr(self.transform).split())

    def __call__(self, item: Item) -> Tensor:
        """(1, 3, H, W).

        Raises:
            ImageError: the image cannot be read.
        """
        return self.transform(load_image(item.content, item.id)).unsqueeze(0)


def timm_transform(host: nn.Module, crop: float | None = None) -> ImageFile:
    """What timm's evaluation does: resize, square in the middle, normalise.

    Args:
        host: a timm model, or any other that says its input size, with ImageNet's statistics then.
        crop: the square's share of the resized image's shorter side; None for the model's own.
    """
    from timm.data import create_transform, resolve_data_config

    given: dict[str, Any] = {"input_size": pixel_shape(host)}
    if len(given["input_size"]) != 3:
        raise ConfigError(
            f"expected a host of images, got {type(host).__name__}, which takes clips"
        )
    if crop is not None:
        given["crop_pct"] = crop
    own = getattr(host, "pretrained_cfg", None)
    statistics = {} if own else {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config = resolve_data_config(given | statistics, pretrained_cfg=own or {}, verbose=False)
    return ImageFile(create_transform(**config), config["mean"], config["std"])


@dataclass
class _Processor:
    """An image processor of transformers as a transform."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        found: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return torch.as_tensor(found)

    def __repr__(self) -> str:
        return str(self.processor.to_json_string())


def prepare_for(host: nn.Module, name: str) -> ImageFile:
    """What the host's own library does with an image before it.

    Args:
        host: of images.
        name: what `papr.hub.create_classifier` made it of. Of transformers its processor's file is
            looked for there; where nothing is known, timm's usual resize and crop to the host's
            size, with ImageNet's statistics.

    Raises:
        ConfigError: it takes clips.
    """
    import timm

    if name.startswith("torchvision/"):
        from torchvision.models import get_model_weights

        preset = get_model_weights(name.removeprefix("torchvision/")).DEFAULT.transforms()
        return ImageFile(preset, tuple(preset.mean), tuple(preset.std))
    processor = None
    if not timm.is_model(name) and hasattr(host, "config"):
        processor = load_processor(name)
    if processor is None:
        return timm_transform(host)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return ImageFile(_Processor(processor), mean, std)
