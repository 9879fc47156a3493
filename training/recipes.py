"""What the trainings share: the learning rate's course, the moving average, pictures drawn anew."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor, nn

MIRROR = Image.Transpose.FLIP_LEFT_RIGHT


def share_of_rate(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to nothing, as a share of the highest."""
    warm = max(1, min(500, steps // 10))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def weight_groups(net: nn.Module, decay: float) -> list[dict[str, object]]:
    """Parameters for an optimizer; those with one axis, biases and norms, do not decay."""
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def average(kept: nn.Module, net: nn.Module, step: int, decay: float) -> None:
    """Move `kept` towards `net`: an exponential moving average, quicker in the first steps."""
    decay = min(decay, (step + 1) / (step + 10))
    states = kept.state_dict(), net.state_dict()
    for own, new in zip(*(state.values() for state in states), strict=True):
        if own.is_floating_point():
            own.lerp_(new, 1 - decay)
        else:
            own.copy_(new)


def recoloured(pixels: Tensor, rng: Generator) -> Tensor:
    """Contrast, brightness and each channel's gain drawn anew; one picture in ten is grey."""
    grey = torch.from_numpy(rng.random(len(pixels)) < 0.1).to(pixels.device)
    pixels[grey] = pixels[grey].mean(1, keepdim=True)
    shape = len(pixels), 3, 1, 1
    draws = np.exp(rng.normal(0, 0.2, (len(pixels), 1, 1, 1)) + rng.normal(0, 0.08, shape))
    gain, light = (
        torch.from_numpy(draw).to(pixels) for draw in (draws, rng.normal(0, 0.15, shape[:1]))
    )
    middle = pixels[..., ::8, ::8].float().mean((1, 2, 3)).to(pixels)
    shift = (middle + light).view(-1, 1, 1, 1) - middle.view(-1, 1, 1, 1) * gain
    return torch.addcmul(shift, pixels, gain)


def decoded(path: Path) -> Image.Image:
    """A picture from a file, in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def cropped(
    photo: Image.Image, width: int, height: int, least: float, rng: Generator
) -> Image.Image:
    """A random part of a photograph, perhaps mirrored, brought to (width, height)."""
    area = photo.width * photo.height * rng.uniform(least, 1)
    shape = width / height * np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    across = min(float(np.sqrt(area * shape)), photo.width)
    down = min(float(np.sqrt(area / shape)), photo.height)
    left, top = rng.uniform(0, photo.width - across), rng.uniform(0, photo.height - down)
    part = photo.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down)
    )
    return part.transpose(MIRROR) if rng.random() < 0.5 else part


def principal(features: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Mean (C,) and principal directions (C, components) of feature maps (B, C, h, w)."""
    cells = features.movedim(1, -1).flatten(0, -2).double()
    mean = cells.mean(0)
    _, directions = torch.linalg.eigh((cells - mean).T @ (cells - mean))
    return mean.float(), directions[:, -components:].flip(1).float()
