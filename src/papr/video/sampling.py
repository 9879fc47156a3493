"""Which frames and which crops of a video a host sees: named policies, on plain integers.

A view is one clip of one crop. Published accuracies are means over many views; to repeat them, the
views must be the same to the frame, so each policy is fixed by literal numbers in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.config import IMAGENET_MEAN, IMAGENET_STD, is_count
from papr.errors import ConfigError
from papr.video.decoding import Video

_CHUNK = 32  # frames decoded and resized at once


@dataclass(frozen=True)
class Policy:
    """How a video is cut into views: windows in time, times square crops in space.

    Attributes:
        style: whose rules: "videomae", "mmaction2", "uniform" or "consecutive" (see `views`).
        clip: frames of a view.
        stride: video frames from one of them to the next.
        windows: clips in time.
        crops: squares in space, 1 (the centre) or more along the long side.
        size: side of the square, which is also the shorter side of the resized frame, in pixels.
    """

    style: str
    clip: int = 16
    stride: int = 4
    windows: int = 5
    crops: int = 3
    size: int = 224

    def __post_init__(self) -> None:
        if self.style not in _STYLES:
            raise ConfigError(f"expected a style among {', '.join(_STYLES)}, got {self.style!r}")
        for name in ("clip", "stride", "windows", "crops", "size"):
            _check_positive(name, getattr(self, name))
        if self.style == "mmaction2" and self.crops not in (1, 3):
            raise ConfigError(f"expected 1 or 3 crops in mmaction2's protocol, got {self.crops}")


@dataclass(frozen=True)
class View:
    """One clip of one crop.

    Attributes:
        frames: frame numbers in the video, T of them; short videos repeat some.
        resized: (height, width) that the whole frame is resized to first, in pixels.
        top: of the crop in the resized frame.
        left: of the crop in the resized frame.
        size: side of the square crop.
    """

    frames: tuple[int, ...]
    resized: tuple[int, int]
    top: int
    left: int
    size: int


def _check_positive(name: str, number: int) -> None:
    if not is_count(number):
        raise ConfigError(f"expected {name} of at least 1, got {number!r}")


def views(policy: str | Policy, frames: int, height: int, width: int) -> list[View]:
    """The views of one video, window by window, crop by crop within each.

    Styles:
        - "videomae" (Tong et al., NeurIPS 2022, arXiv 2203.12602: 5 clips x 3 crops on
          Kinetics-400): every stride-th frame of the video, counted from 0; where fewer than `clip`
          remain, the last of them is repeated. Window i starts at `int(i * step)` of those, evenly
          from the first to the last possible; crop j at `int(j * step)` along the long side.
        - "mmaction2" (`SampleFrames` in test mode, `ThreeCrop`): windows start at
          `round(i * step)` video frames, halves to even, a single one in the middle; numbers beyond
          the end start again at 0. Crops in the order first, last, middle.
        - "uniform": one clip spread over the whole video, each frame in the middle of its part.
        - "consecutive": windows one behind the other from the first frame on, as many as have at
          least half of their frames in the video, `windows` at most; the last frame is repeated.

    Args:
        policy: a policy, or its name in `POLICIES`.
        frames: frames of the video.
        height: of its frames, in pixels.
        width: of its frames, in pixels.

    Raises:
        ConfigError: an unknown name, or a number that is not positive.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ConfigError(f"expected a policy among {', '.join(POLICIES)}, got {policy!r}")
        policy = POLICIES[policy]
    for name, number in (("frames", frames), ("height", height), ("width", width)):
        _check_positive(name, number)
    resized = resized_shape(height, width, policy.size, rounded=policy.style == "mmaction2")
    return [
        View(clip, resized, top, left, policy.size)
        for clip in _STYLES[policy.style](frames, policy)
        for top, left in _crops(resized, policy)
    ]


def resized_shape(height: int, width: int, size: int, rounded: bool = False) -> tuple[int, int]:
    """(height, width) with a shorter side of `size`; the longer rounded down, or to the nearest."""
    shorter, longer = min(height, width), max(height, width)
    scaled = int(longer * (size / shorter) + 0.5) if rounded else longer * size // shorter
    return (size, scaled) if height <= width else (scaled, size)


def _crops(resized: tuple[int, int], policy: Policy) -> list[tuple[int, int]]:
    """(top, left) of each crop."""
    spare = max(resized) - policy.size
    if policy.crops == 1:
        offsets = [spare // 2]
    elif policy.style == "mmaction2":
        step = spare // 2
        offsets = [0, 2 * step, step]
    else:
        offsets = [int(i * (spare / (policy.crops - 1))) for i in range(policy.crops)]
    return [(offset, 0) if resized[0] > resized[1] else (0, offset) for offset in offsets]


# The steps are floats, as in the originals: a sum of thirds may fall just short of a whole number.


def _videomae(frames: int, policy: Policy) -> list[tuple[int, ...]]:
    thinned = list(range(0, frames, policy.stride))
    thinned += thinned[-1:] * (policy.clip - len(thinned))
    spare, gaps = len(thinned) - policy.clip, policy.windows - 1
    starts = [int(i * (spare / gaps)) for i in range(policy.windows)] if gaps else [spare // 2]
    return [tuple(thinned[start : start + policy.clip]) for start in starts]


def _mmaction2(frames: int, policy: Policy) -> list[tuple[int, ...]]:
    spare = max(frames - ((policy.clip - 1) * policy.stride + 1), 0)
    gaps = policy.windows - 1
    starts = [round(i * (spare / gaps)) for i in range(policy.windows)] if gaps else [spare // 2]
    steps = [i * policy.stride for i in range(policy.clip)]
    return [tuple((start + step) % frames for step in steps) for start in starts]


def _uniform(frames: int, policy: Policy) -> list[tuple[int, ...]]:
    return [tuple((2 * i + 1) * frames // (2 * policy.clip) for i in range(policy.clip))]


def _consecutive(frames: int, policy: Policy) -> list[tuple[int, ...]]:
    length = policy.clip * policy.stride
    windows = min(policy.windows, max(1, (frames + length // 2) // length))
    return [window(frames, i * length, policy.clip, policy.stride) for i in range(windows)]


def window(frames: int, start: int, clip: int, stride: int) -> tuple[int, ...]:
    """`clip` frame numbers, `stride` apart, from `start` on; the video's last frame is repeated.

    Raises:
        ConfigError: the video does not reach `start`, or a number is not positive.
    """
    for name, number in (("frames", frames), ("clip", clip), ("stride", stride)):
        _check_positive(name, number)
    if not 0 <= start < frames:
        raise ConfigError(f"expected a window that starts in frames 0 to {frames - 1}, got {start}")
    return tuple(min(start + i * stride, frames - 1) for i in range(clip))


_STYLES = {
    "videomae": _videomae,
    "mmaction2": _mmaction2,
    "uniform": _uniform,
    "consecutive": _consecutive,
}

#: The policies that have a name. mmaction2's numbers are those of its configurations
#: `vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400` and
#: `slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb`; others follow by `dataclasses.replace`.
POLICIES = {
    "videomae": Policy("videomae"),
    "mmaction2": Policy("mmaction2"),
    "mmaction2-slowonly": Policy("mmaction2", clip=8, stride=8, windows=10, size=256),
    "uniform": Policy("uniform", windows=1, crops=1),
    "consecutive": Policy("consecutive", windows=10**6, crops=1),  # the whole video
}


def read_views(
    video: Video,
    chosen: Sequence[View],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """What the host sees: views as normalised pixels, each frame decoded and resized once.

    Frames are resized bilinearly without antialiasing, half-pixel centres, and rounded to whole
    levels, as OpenCV does in the protocols above (its fixed-point rounding may differ by one).

    Args:
        video: opened.
        chosen: V views of T frames and one size.
        mean: subtracted, per channel of RGB in [0, 1].
        std: divided by.

    Returns:
        (V, T, 3, size, size) float32.

    Raises:
        ConfigError: no views, or views that do not fit one tensor.
        VideoError: a frame cannot be decoded.
    """
    return normalise(read_crops(video, chosen), mean, std)


def read_crops(video: Video, chosen: Sequence[View]) -> Tensor:
    """The views' pixels as they are: (V, T, 3, size, size) uint8. See `read_views`."""
    shapes = {(len(view.frames), view.size) for view in chosen}
    if len(shapes) != 1:
        raise ConfigError(f"expected views of one length and one size, got {sorted(shapes)}")
    ((clip, size),) = shapes
    pixels = torch.empty(len(chosen), clip, 3, size, size, dtype=torch.uint8)
    numbers = sorted({number for view in chosen for number in view.frames})
    for at in range(0, len(numbers), _CHUNK):
        chunk = numbers[at : at + _CHUNK]
        decoded = video.read(chunk)
        for resized in {view.resized for view in chosen}:
            ready = dict(zip(chunk, resize(decoded, resized), strict=True))
            for v, view in enumerate(chosen):
                if view.resized == resized:
                    _paste(pixels[v], view, ready)
    return pixels


def _paste(pixels: Tensor, view: View, ready: dict[int, Tensor]) -> None:
    """Fill in the frames of a view that are ready, in place."""
    rows, columns = slice(view.top, view.top + view.size), slice(view.left, view.left + view.size)
    for t, number in enumerate(view.frames):
        if number in ready:
            pixels[t] = ready[number][:, rows, columns]


def resize(frames: Tensor, shape: tuple[int, int]) -> Tensor:
    """Frames (T, 3, H, W) uint8 to (T, 3, *shape) uint8, as `read_views` says."""
    if tuple(frames.shape[-2:]) == shape:
        return frames
    scaled = F.interpolate(frames.float(), shape, mode="bilinear", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def normalise(
    pixels: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """(..., 3, H, W) uint8 to float32, (x / 255 - mean) / std per channel."""
    middle, spread = (
        torch.tensor(list(v), dtype=torch.float32).view(-1, 1, 1) for v in (mean, std)
    )
    return pixels.float().div_(255).sub_(middle).div_(spread)


def average_views(logits: Tensor) -> Tensor:
    """The prediction for a video: the mean of its views' softmax.

    Args:
        logits: (V, classes), one row a view.

    Returns:
        (classes,) float32 probabilities, which sum to 1.

    Raises:
        ConfigError: `logits` is not (V, classes) with a view and two classes at least.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise ConfigError(
            f"expected logits (views, classes) of two classes or more, got {tuple(logits.shape)}"
        )
    return logits.float().softmax(-1).mean(0)
