"""From a file to what the host takes, as the host's own library does it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from papr.config import Triple
from papr.errors import ConfigError, VideoError
from papr.evaluate.answers import class_count, class_names
from papr.evaluate.finding import Found, find
from papr.evaluate.loading import Prepare
from papr.evaluate.sources import Item, Source
from papr.hosts.inputs import pixel_shape
from papr.hub import video_statistics
from papr.images import check_shape, load_image
from papr.preprocessing import apply, preprocessing, timm_preprocessing
from papr.video import POLICIES, Policy, open_video, read_views, views
from papr.video.decoding import usable

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

    transform: Callable[[Image.Image], Tensor]
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
        return apply(self.transform, image, item.id).unsqueeze(0)


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
        name: what `papr.named.create_video` made it of.
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
    """What timm's evaluation does; see `papr.preprocessing.timm_preprocessing`."""
    return ImageFile(*timm_preprocessing(host, crop))


def prepare_for(
    host: nn.Module, name: str, policy: str | Policy = "videomae"
) -> ImageFile | VideoFile:
    """What the host's own library does with an image, or a video, before it.

    Args:
        host: of images, or of square clips.
        name: what `papr.named.create_classifier` or `create_video` made it of; see
            `papr.preprocessing.preprocessing`.
        policy: the views of a video; see `video_file`.

    Raises:
        ConfigError: it takes clips that are not square.
    """
    if takes_clips(host):
        return video_file(host, name, policy)
    return ImageFile(*preprocessing(host, name))
