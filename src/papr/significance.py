"""From a feature map to a significance map on the host's patch grid.

Source: Mahmud et al., "PaPr: Training-Free One-Step Patch Pruning with Lightweight ConvNets for
Faster Inference", ECCV 2024 (arXiv 2403.16020), Sec. 3. Pure functions on plain tensors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.errors import ProposalError


def channel_mean(features: Tensor) -> Tensor:
    """Average a feature map over its channels, every channel with the same weight.

    Args:
        features: the proposal's last convolutional feature map F, (B, C, h, w) or
            (B, C, t, h, w), any floating dtype.

    Returns:
        (B, h, w) or (B, t, h, w), float32.

    Raises:
        ProposalError: `features` is not a floating tensor of rank 4 or 5.
    """
    if not isinstance(features, Tensor) or features.ndim not in (4, 5):
        raise ProposalError(
            f"expected a feature map (B, C, h, w) or (B, C, t, h, w), got {describe(features)}"
        )
    if not features.is_floating_point():
        raise ProposalError(f"expected a floating feature map, got {describe(features)}")
    return features.mean(dim=1, dtype=torch.float32)


def to_grid(scores: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize scores to the host's patch grid: bicubic in 2-D, trilinear in 3-D.

    Both with `align_corners=True`, in float32 whatever the dtype that comes in, since the ranking
    that follows must not depend on the host's dtype.

    Args:
        scores: (B, h, w) or (B, t, h, w).
        grid: (H, W) or (T, H, W), in patches.

    Returns:
        The significance map P, (B, *grid), float32.

    Raises:
        ProposalError: ranks do not fit, or the scores are not floating.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise ProposalError(f"expected floating scores (B, h, w), got {describe(scores)}")
    if len(grid) not in (2, 3) or scores.ndim != len(grid) + 1:
        axes = "(B, t, h, w)" if len(grid) == 3 else "(B, h, w)"
        raise ProposalError(
            f"expected scores {axes} for the grid {tuple(grid)}, got {describe(scores)}"
        )
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    resized = F.interpolate(
        scores.float().unsqueeze(1), size=tuple(grid), mode=mode, align_corners=True
    )
    return resized.squeeze(1)


def significance_map(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Feature map F (B, C, *map) to significance map P (B, *grid), float32.

    The mean over channels and the resize commute; averaging first is C times cheaper.
    """
    return to_grid(channel_mean(features), grid)


def check_scores(scores: Tensor) -> None:
    """Refuse scores that are not finite, where looking costs no synchronisation.

    That is eager mode on a CPU. On an accelerator, and in compiled or exported code, nothing is
    checked: reading the answer back would stall the device.

    Raises:
        ProposalError: a score is NaN or infinite.
    """
    if type(scores) is not Tensor or scores.device.type != "cpu":
        return
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    if in_transform(scores):  # values that vmap maps over cannot be asked for
        return
    finite = scores.isfinite()
    if not finite.all():
        raise ProposalError(
            f"expected finite scores, got {int((~finite).sum())} NaN or infinite values in "
            f"{describe(scores)}"
        )


def in_transform(tensor: Tensor) -> bool:
    """Whether a transform of torch.func (vmap, grad) is at work on this tensor, in eager code."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def describe(value: object) -> str:
    """A value in a few words for an error message: shape and dtype of a tensor, else its type."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    return type(value).__name__
