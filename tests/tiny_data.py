"""Small folders of pictures and a small host for runs over data sets."""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from papr.config import PruneConfig
from papr.evaluate import ImageFile
from papr.evaluate.preparing import timm_transform
from papr.evaluate.sources import Item

CLASSES = ("ant", "bee", "cat")
SIZE = 32
#: A proposal that a configuration can name, at the host's size: glance.
KEEPS = [PruneConfig(keep, proposal_size="input") for keep in (0.75, 0.5)]


def host() -> nn.Module:
    """A random ViT of 16 patches and three classes; the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VisionTransformer(
            img_size=SIZE,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=2,
            num_classes=len(CLASSES),
        ).eval()


def pictures(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """`count` pictures of noise in folders of three classes, some of them broken."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / CLASSES[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in broken:
            path.write_bytes(b"no image")
        else:
            noise = random.integers(0, 256, (SIZE + 4, SIZE + 9, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return folder


class Slow(ImageFile):
    """The host's own preprocessing, a while later."""

    def __init__(self, seconds: float) -> None:
        own = timm_transform(host())
        super().__init__(own.transform, own.mean, own.std)
        self.seconds = seconds

    def __call__(self, item: Item) -> Tensor:
        time.sleep(self.seconds)
        return super().__call__(item)
