"""Selections that PaPr must beat, as scorers: pixels (B, 3, H, W) in, scores (B, h, w) out.

Of clips (B, 3, T, H, W) the scores are (B, T, h, w). Each is a `proposal=` for `papr.prune`.
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
        return torch.rand(_cells(pixels, cell), generator=generators[device], device=device)

    return scores


def centre_scores(cell: int = 8) -> Scores:
    """The nearer to the centre of the image or frame, the higher: what photographers do anyway.

    Args:
        cell: pixels a score covers along each side.
    """

    def scores(pixels: Tensor) -> Tensor:
        shape = _cells(pixels, cell)
        y = torch.linspace(-1, 1, shape[-2], device=pixels.device)
        x = torch.linspace(-1, 1, shape[-1], device=pixels.device)
        return -(y[:, None] ** 2 + x[None, :] ** 2).expand(shape)

    return scores


def _cells(pixels: Tensor, cell: int) -> tuple[int, ...]:
    """The shape of the scores: (B, h, w), or (B, T, h, w) of clips."""
    batch, _, *frames, height, width = pixels.shape
    return batch, *frames, height // cell, width // cell
