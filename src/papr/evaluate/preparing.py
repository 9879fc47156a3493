"""From a file to what the host takes, as the host's own library does it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from papr.config import IMAGENET_MEAN, IMAGENET_STD, Triple
from papr.errors import ConfigError, VideoError, one_line
from papr.evaluate.answers import class_count, class_names
from papr.evaluate.finding import Found, find
from papr.evaluate.loading import Prepare
from papr.evaluate.sources import Item, Source
from papr.hosts.inputs import pixel_shape
from papr.hub import load_processor, video_statistics
from papr.images import ImageError, check_shape, load_image
from papr.video import POLICIES, Policy, open_video, read_views, views
from papr.video.decoding import usable

#: An upright RGB image to normalised pixels (3, H, W).
Transform = Callable[[Image.Image], Tensor]
#: In the words for a transform: where it lies in memory, or torchvision's name for any function.
_UNSAID = re.compile(r" at 0x[0-9a-fA-F]+|\bLambda\(\)|\bLambda\([^()]*types=")


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
            ImageError: the image cannot be read, or is a line of pixels.
        """
        image = load_image(item.content, item.id)
        try:
            check_shape(*image.size)
            return self.transform(image).unsqueeze(0)
        except MemoryError:
            raise
        except Exception as error:  # a library's transform may take no picture of this shape
            raise ImageError(f"cannot prepare the image {item.id}: {one_line(error)}") from None


@dataclass
class VideoFile:
    """Decodes the views of a video: (V, T, 3, S, S), normalised.

    Attributes:
        policy: which frames and crops; see `papr.video.views`.
        mean: what the host's pixels are normalised with.
        std: likewise.
        backend: who decodes; see `papr.video.open_video`.
        described: all that in words, for the configuration of a run. Of the backend it says which
            are tried, in order: for "auto" those installed here, and each file then falls back to
            the second in the same way every time.
    """

    policy: Policy
    mean: Triple
    std: Triple
    backend: str = "auto"
    described: str = field(default="")

    def __post_init__(self) -> None:
        tried = " then ".join(self.backends) or "none"
        facts = f"{self.policy}, mean={self.mean}, std={self.std}, backend={tried}"
        self.described = self.described or facts

    @property
    def backends(self) -> tuple[str, ...]:
        """Who decodes here, in the order in which they are tried."""
        return usable(self.backend)

    @property
    def views(self) -> int:
        """How many views a video has, at most."""
        return self.policy.windows * self.policy.crops

    def __call__(self, item: Item) -> Tensor:
        """(V, T, 3, S, S).

        Raises:
            VideoError: the video cannot be read.
            ImageError: its frames are lines of pixels.
        """
        if not isinstance(item.content, Path):
            raise VideoError(f"expected a file of a video, {item.id} lies within another")
        with open_video(item.content, self.backend) as video:
            check_shape(video.width, video.height, "a video")
            chosen = views(self.policy, video.frames, video.height, video.width)
            return read_views(video, chosen, self.mean, self.std)


def in_words(prepare: Prepare) -> str:
    """What `prepare` does, in words that are the same in every process and differ where it does.

    Raises:
        ConfigError: it does not say: a function, or a transform that holds one.
    """
    found = str(getattr(prepare, "described", None) or repr(prepare))
    unsaid = _UNSAID.search(found)
    if unsaid:
        raise ConfigError(
            "expected preprocessing that says what it does, since a run is known by it, got "
            f"{found[:200]}: give it an attribute `described`, or ImageFile(described=...)"
        )
    return found


def libraries(host: nn.Module, prepare: Prepare) -> list[str]:
    """The packages that decode, resize and make the host, beside torch and timm."""
    made_of = {type(module).__module__.partition(".")[0] for module in host.modules()}
    backends = getattr(prepare, "backends", None)
    packages = {"torchcodec": "torchcodec", "pyav": "av"}
    decoding = ["pillow"] if backends is None else [packages[name] for name in backends]
    # timm's transforms are torchvision's
    return [*decoding, "torchvision", *(made_of & {"transformers"})]


def takes_clips(host: nn.Module) -> bool:
    """Whether a host's pixels are clips."""
    return len(pixel_shape(host)) == 4


def open_for(
    host: nn.Module,
    data: str | Path | Found,
    root: str | Path | None = None,
    image_column: str | None = None,
) -> Source:
    """The samples that `data` names, as a host takes them: images or videos, its classes.

    Args:
        host: the one to be asked.
        data: see `papr.evaluate.finding.find`; or what that found.
        root: likewise.
        image_column: likewise.

    Raises:
        DataError: nothing that can be read is there.
    """
    classes, clips = class_names(host) or class_count(host), takes_clips(host)
    if not isinstance(data, Found):
        data = find(data, root=root, image_column=image_column, clips=clips)
    return data.open(classes, clips)


def video_file(host: nn.Module, name: str, policy: str | Policy = "videomae") -> VideoFile:
    """What a video host's protocol does with a video.

    Args:
        host: of square clips.
        name: what `papr.hub.create_video` made it of.
        policy: one of `papr.video.POLICIES`, whose frames and size become the host's; or a policy,
            taken as it is. "videomae" is the protocol of published accuracies, 5 clips x 3 crops;
            "uniform" a single view of the whole video, 15 times as fast.

    Raises:
        ConfigError: the host takes no square clips, or no policy has that name.
    """
    shape = pixel_shape(host)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ConfigError(f"expected a host of square clips (T, C, S, S), got pixels {shape}")
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ConfigError(f"expected views among {', '.join(POLICIES)}, got {policy!r}")
        policy = replace(POLICIES[policy], clip=shape[0], size=shape[2])
    return VideoFile(policy, *video_statistics(host, name))


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


def prepare_for(
    host: nn.Module, name: str, policy: str | Policy = "videomae"
) -> ImageFile | VideoFile:
    """What the host's own library does with an image, or a video, before it.

    Args:
        host: of images, or of square clips.
        name: what `papr.hub.create_classifier` or `create_video` made it of. Of transformers its
            processor's file is looked for there; where nothing is known, timm's usual resize and
            crop to the host's size, with ImageNet's statistics.
        policy: the views of a video; see `video_file`.

    Raises:
        ConfigError: it takes clips that are not square.
    """
    import timm

    if takes_clips(host):
        return video_file(host, name, policy)
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
