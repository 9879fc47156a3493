"""How much each patch of a clip changed since the last tubelet, and how that joins significance.

Pixel differences between neighbouring tubelets tell static patches from moving ones, as run-length
tokenisation does (Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length
Tokenization", NeurIPS 2024, arXiv 2411.05222): under a static camera the background goes first.
Pure functions on plain tensors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-6  # a range of values smaller than this is none


def motion_map(clip: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean absolute difference of each patch to the one at its place in the tubelet before.

    Frame i of a tubelet is compared with frame i of the last one. The first tubelet has none before
    it and takes the second one's change; a clip of one tubelet has no motion.

    Args:
        clip: (B, C, T, H, W) in any unit, sides multiples of the grid's; a clip shorter than one
            tubelet is allowed.
        grid: the patch grid (t, h, w).

    Returns:
        (B, t, h, w), float32, in the clip's unit.
    """
    t, h, w = grid
    frames, height, width = clip.shape[2:]
    if t < 2:
        return torch.zeros(clip.shape[0], t, h, w, dtype=torch.float32, device=clip.device)
    tubelet = frames // t
    change = (clip[:, :, tubelet:] - clip[:, :, :-tubelet]).abs().mean(1, dtype=torch.float32)
    cells = F.avg_pool3d(change.unsqueeze(1), (tubelet, height // h, width // w)).squeeze(1)
    return torch.cat([cells[:, :1], cells], dim=1)


def mix(significance: Tensor, motion: Tensor, weight: float) -> Tensor:
    """(1 - weight) * significance + weight * motion, each brought to 0..1 within its clip.

    Significance from its lowest to its highest value, motion from 0 to its highest: a clip in
    which nothing moves is ranked by significance alone.

    Args:
        significance: the significance map (B, t, h, w), float32.
        motion: `motion_map`'s, same shape.
        weight: of the motion, 0 to 1.

    Returns:
        Scores (B, t, h, w), float32.
    """
    low, high = significance.amin((1, 2, 3), True), significance.amax((1, 2, 3), True)
    still = (significance - low) / (high - low).clamp(min=_LEAST)
    moving = motion / motion.amax((1, 2, 3), True).clamp(min=_LEAST)
    return (1 - weight) * still + weight * moving
