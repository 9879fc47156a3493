"""Selections that PaPr must beat, as scorers: pixels (B, 3, H, W) in, scores (B, h, w) out.

Each is a `proposal=` for `papr.prune`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Scores = Callable[[Tensor], Tensor]


def random_scores(seed: int = 0, cell: int = 8) -> Scores:
    """Uniform noise: every patch has the same chance. Another draw at each call.

    Args:
        seed: of the generator, which lies on the CPU.
        cell: pixels a score covers along each side.
    """
    generator = torch.Generator().manual_seed(seed)

    def scores(pixels: Tensor) -> Tensor:
        batch, _, height, width = pixels.shape
        noise = torch.rand(batch, height // cell, width // cell, generator=generator)
        return noise.to(pixels.device)

    return scores


def centre_scores(cell: int = 8) -> Scores:
    """The nearer to the centre of the image, the higher: what photographers do anyway.

    Args:
        cell: pixels a score covers along each side.
    """

    def scores(pixels: Tensor) -> Tensor:
        batch, _, height, width = pixels.shape
        y = torch.linspace(-1, 1, height // cell, device=pixels.device)
        x = torch.linspace(-1, 1, width // cell, device=pixels.device)
        return -(y[:, None] ** 2 + x[None, :] ** 2).expand(batch, -1, -1)

    return scores
