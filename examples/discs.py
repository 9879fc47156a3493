"""The toy images of the examples: on a smooth grey background with noise, one small disc."""

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = torch.tensor(
    [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0], [1.0, 0, 1.0], [0, 1.0, 1.0]]
)


def draw(batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Synthetic images, each with one disc.

    Returns:
        Pixels (B, 3, size, size) in [0, 1], which of `COLOURS` each disc has (B,), and where it is
        (B, size, size), bool.
    """
    coarse = torch.rand(batch, 1, 4, 4, generator=generator)
    grey = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 0.5 + 0.25
    noise = torch.randn(batch, 3, size, size, generator=generator)
    radius = size // 12
    centre = torch.randint(radius, size - radius, (batch, 2, 1, 1), generator=generator)
    row, column = torch.arange(size)[:, None], torch.arange(size)[None, :]
    inside = (row - centre[:, 0]) ** 2 + (column - centre[:, 1]) ** 2 < radius**2
    classes = torch.randint(len(COLOURS), (batch,), generator=generator)
    disc = COLOURS[classes][:, :, None, None]
    pixels = torch.where(inside[:, None], disc, (grey + 0.05 * noise).clamp(0, 1))
    return pixels, classes, inside
