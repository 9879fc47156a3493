"""From a feature map to a significance map on the host's patch grid.

Source: Mahmud et al., "PaPr: Training-Free One-Step Patch Pruning with Lightweight ConvNets for
Faster Inference", ECCV 2024 (arXiv 2403.16020), Sec. 3. Pure functions on plain tensors.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.errors import ProposalError

#: Whether compiled code may ask what is known of symbolic sizes without making it a condition.
_KNOWS_SYMBOLS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


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
    that follows must not depend on the host's dtype. Scores that are on the grid stay as they are,
    bit for bit what the resize would give.

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
    scores = scores.float()
    if _is_on(scores, grid):
        return scores
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    resized = F.interpolate(scores.unsqueeze(1), size=tuple(grid), mode=mode, align_corners=True)
    return resized.squeeze(1)


def _is_on(scores: Tensor, grid: Sequence[int]) -> bool:
    """Whether scores lie on the grid, as far as one may ask.

    While a graph is made only what holds for all sizes it is for: each answer would be a graph of
    its own.
    """
    pairs = zip(scores.shape[1:], grid, strict=True)
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace counts in tensors
        return False
    if not torch.compiler.is_compiling():
        return all(side == wanted for side, wanted in pairs)
    if not _KNOWS_SYMBOLS:
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(side == wanted) for side, wanted in pairs)


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
    if math.isfinite(scores.sum(dtype=torch.float32).item()):
        return  # one NaN or infinite value, and the sum would be none
    finite = scores.isfinite()  # or the sum alone was too large
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
