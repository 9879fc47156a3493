"""Photographs off the centre: what photographers do not make, and cameras on walls and cars do.

A photograph at 0.5 to 0.65 of its size stands in a random corner; around it lies another one in
which no object can be told, so that the ground has colours and texture but no second answer.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from papr.proposals.scorers import resize

SMALLEST, LARGEST = 0.5, 0.65
#: Of the blur, in fractions of the picture's side: 8 px of 224.
SIGMA = 1 / 28


class OffCentre(NamedTuple):
    """Composites and how they were made.

    Attributes:
        pixels: (N, 3, S, S) in [0, 1].
        boxes: (N, 4) int64, where the photograph stands: top, left, bottom, right, in pixels.
        grounds: (N,) int64, whose pixels the ground was made of.
    """

    pixels: Tensor
    boxes: Tensor
    grounds: Tensor


def blurred(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, S, S) out of focus: whatever looks for sharp edges leaves them alone."""
    side = pixels.shape[-1]
    kernel = 2 * round(3 * SIGMA * side) + 1
    return gaussian_blur(pixels, [kernel, kernel], [SIGMA * side] * 2)


def scrambled(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, S, S) with random phases: as sharp as they were, of the same colours.

    The amplitude at each frequency stays, and so do the differences between channels.
    """
    noise = torch.rand(pixels.shape[0], 1, *pixels.shape[2:], generator=generator)
    phases = torch.fft.rfft2(noise).angle().to(pixels.device)
    phases[..., 0, 0] = 0  # the mean colour stays
    mixed = torch.fft.rfft2(pixels) * torch.exp(1j * phases)
    return torch.fft.irfft2(mixed, s=pixels.shape[2:]).clamp(0, 1)


def off_centre(
    pixels: Tensor,
    ground: Callable[[Tensor, torch.Generator], Tensor] = blurred,
    seed: int = 0,
) -> OffCentre:
    """A composite of each photograph, on the ground of another one of the same batch.

    The same photographs and seed give the same composites. Each photograph is a ground once; sizes,
    corners and whose ground it is depend on no `ground`.

    Args:
        pixels: (N, 3, S, S) in [0, 1], N >= 2.
        ground: what is made of a photograph around another one.
        seed: of all that is drawn.
    """
    count, side = pixels.shape[0], pixels.shape[-1]
    if count < 2:
        raise ValueError(f"expected two photographs or more, got {count}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    grounds = torch.empty_like(order)
    grounds[order] = order.roll(1)  # once around: none is its own ground
    bounds = round(SMALLEST * side), round(LARGEST * side) + 1
    sides = torch.randint(*bounds, (count,), generator=generator)
    corners = torch.randint(2, (count, 2), generator=generator)
    firsts = corners * (side - sides).unsqueeze(1)
    boxes = torch.cat([firsts, firsts + sides.unsqueeze(1)], 1)
    made = torch.empty_like(pixels)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        other = int(grounds[i])
        made[i] = ground(pixels[other : other + 1], generator)[0]
        made[i, :, top:bottom, left:right] = resize(pixels[i : i + 1], bottom - top)[0]
    return OffCentre(made, boxes, grounds)
