"""What pixels a host takes, read off the host."""

from collections.abc import Sequence

from torch import Tensor, nn

from papr.config import check_size
from papr.errors import ConfigError
from papr.significance import describe


def pixel_shape(
    model: nn.Module, example: Tensor | int | tuple[int, int] | None = None
) -> tuple[int, ...]:
    """The shape of one input of a host: (C, H, W), or (T, C, H, W) of a video host.

    Args:
        model: the host.
        example: a batch of inputs; or a size, an int or (H, W); or None for the size the model
            says it takes.

    Raises:
        ConfigError: `example` is none of these, or None where the model says nothing.
    """
    if isinstance(example, Tensor):
        if example.ndim not in (4, 5) or not example.is_floating_point() or 0 in example.shape:
            raise ConfigError(
                f"expected floating pixels (B, C, H, W) or (B, T, C, H, W), got {describe(example)}"
            )
        return tuple(example.shape[1:])
    size = _own_size(model) if example is None else check_size(example, "example")
    if size is None or isinstance(size, str):
        raise ConfigError(
            "expected an example, pixels (B, 3, H, W) or a size, since "
            f"{type(model).__name__} does not say what size it takes, got {example!r}"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return *_own_frames(model), 3, height, width


def _own_size(model: nn.Module) -> int | tuple[int, int] | None:
    """The input size that a timm, transformers or torchvision model carries, if any."""
    config = getattr(model, "config", None)
    timm_size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    for size in (
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        getattr(getattr(config, "vision_config", config), "image_size", None),
        getattr(config, "crop_size", None),
        getattr(model, "image_size", None),
        tuple(timm_size[1:]) if timm_size else None,
    ):
        if isinstance(size, int):
            return size
        if isinstance(size, Sequence) and len(size) == 2:
            return size[0], size[1]
    return None


def _own_frames(model: nn.Module) -> tuple[int, ...]:
    """How many frames a video host of transformers takes, as a tuple; empty of image hosts."""
    config = getattr(model, "config", None)
    frames = getattr(config, "num_frames", getattr(config, "frames_per_clip", None))
    return () if frames is None else (int(frames),)
