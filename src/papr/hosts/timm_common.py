"""What the timm families have in common."""

from typing import Any

from torch import Tensor, nn

from papr.config import Triple, check_statistics
from papr.errors import ConfigError, MissingSiteError
from papr.hosts.grids import convolutions
from papr.hosts.state import HostFacts


def read_facts(model: nn.Module, prefix_tokens: int, class_token: bool) -> HostFacts:
    """The facts of a timm host, its channels and input statistics read off the model.

    Args:
        model: the host.
        prefix_tokens: leading tokens at the cut.
        class_token: whether the host has a class token.

    Raises:
        MissingSiteError: the patch grid cannot be read off `model.patch_embed`.
    """
    embed = model.get_submodule("patch_embed")
    for name in ("dynamic_feat_size", "feat_ratio"):
        if not hasattr(embed, name):
            raise MissingSiteError(
                f"cannot prune {type(model).__name__}: its patch_embed ({type(embed).__name__}) "
                f"has no {name}, which the patch grid is read from"
            )
    channels = next((conv.in_channels for conv in convolutions(embed)), 3)
    mean, std = input_statistics(model)
    return HostFacts(prefix_tokens, class_token, channels, mean, std)


def last_tokens(model: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
    """What a timm host has before its head, (B, P + N, C)."""
    tokens: Tensor = model.forward_features(pixels, **options)  # type: ignore[operator]
    return tokens


def input_statistics(model: object) -> tuple[Triple | None, Triple | None]:
    """The input mean and std in timm's `pretrained_cfg`; (None, None) where it has none."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None:
        return None, None
    try:
        return check_statistics(tuple(mean), tuple(std))
    except ConfigError:  # not an RGB model
        return None, None
