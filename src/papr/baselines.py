"""Selections that PaPr must beat, as scorers: pixels (B, 3, H, W) in, scores (B, h, w) out.

Each is a `proposal=` for `papr.prune`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Scores = Callable[[Tensor], Tensor]


def random_scores(seed: int = 0, cell: int = 8) -> Scores:
    """Uniform noise: every patch has the same chance. Another draw at each call.

    The noise is drawn where the pixels are, so that no copy makes the device wait. The same seed
    gives the same draws on the same kind of device, and others on another kind: a CPU and a GPU
    generate numbers each in their own way.

    Args:
        seed: of the generators, one for each device that pixels come from.
        cell: pixels a score covers along each side.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def scores(pixels: Tensor) -> Tensor:
        device = pixels.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        batch, _, height, width = pixels.shape
        shape = (batch, height // cell, width // cell)
        return torch.rand(shape, generator=generators[device], device=device)

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
