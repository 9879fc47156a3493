"""The training set: views of each photograph, and beside each what EfficientNet-Lite1 sees in it.

Memory maps, made once: pictures (N, S, S, 3) as bytes; features (N, 7, 7, 96), the principal
components of the teacher's last feature map, and pooled (N, 1280), its mean, in half precision.
Started again, it goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from checkpoints import begun, directions, fill, memory_maps
from papr.baselines.cams import folded
from papr.environment import environment
from papr.files import write_json
from papr.images import fit
from papr.proposals import wheels
from recipes import cropped, decoded

TEACHER_SIDE = 224  # pixels; 240, for which Lite1 was made, has no whole number of cells
CELLS = 7
COMPONENTS = 96
CHANNELS = 1280
BACKGROUND = "BACKGROUND_Google"
#: The least part of a photograph that a view shows.
LEAST = 0.25
#: How often a photograph does not fill the view, and how small it may be then.
AWAY, SMALLEST = 0.4, 0.4


class Photograph(NamedTuple):
    """A file and the number of its class."""

    path: Path
    label: int


def classes(data: Path) -> list[str]:
    """The names of the 99 classes, in order.

    Raises:
        SystemExit: there are none.
    """
    folders = sorted((data / "caltech-101").glob("*/"))
    names = [folder.name for folder in folders if folder.name != BACKGROUND]
    if not names:
        raise SystemExit(f"expected photographs in {data}/caltech-101/<class>, found none")
    return names


def photographs(data: Path, test: bool) -> list[Photograph]:
    """Those for testing, every fourth of each class in sorted order, or those for training."""
    found = []
    for label, name in enumerate(classes(data)):
        for place, path in enumerate(sorted((data / "caltech-101" / name).glob("*.jpg"))):
            if (place % 4 == 3) == test:
                found.append(Photograph(path, label))
    return found


def whole(path: Path, side: int) -> np.ndarray:
    """A photograph as it is tested, (side, side, 3) bytes: the shorter side, then the centre."""
    return np.asarray(fit(decoded(path), side, patch=1, square=True))


def ground(photos: Sequence[Image.Image], side: int, rng: np.random.Generator) -> Image.Image:
    """What may stand around a small photograph: one colour, or another photograph out of focus."""
    if rng.random() < 0.5:
        return Image.new("RGB", (side, side), tuple(int(c) for c in rng.integers(0, 256, 3)))
    other = cropped(photos[rng.integers(len(photos))], side, side, LEAST, rng)
    return other.filter(ImageFilter.GaussianBlur(side / rng.uniform(20, 40)))


def view(photos: Sequence[Image.Image], number: int, seed: int, side: int) -> np.ndarray:
    """View `number` of the set, (side, side, 3) bytes: a part of a photograph, at times small."""
    rng = np.random.default_rng([seed, number])
    photo = photos[number % len(photos)]
    if rng.random() >= AWAY:
        return np.asarray(cropped(photo, side, side, LEAST, rng))
    around = ground(photos, side, rng)
    small = int(side * rng.uniform(SMALLEST, 1))
    left, top = (int(place) for place in rng.integers(0, side - small + 1, 2))
    around.paste(cropped(photo, small, small, 0.6, rng), (left, top))
    return np.asarray(around)


class Teacher:
    """EfficientNet-Lite1, batch norms folded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        net = folded(wheels.classifier(wheels.LITE1))
        self.net = net.to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> Tensor:
        """Pictures (B, S, S, 3), bytes, to features (B, 1280, 7, 7)."""
        x = torch.from_numpy(pictures).to(self.device).movedim(3, 1).float() / 127.5 - 1
        size = (TEACHER_SIDE, TEACHER_SIDE)
        x = F.interpolate(x, size, mode="bicubic", antialias=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.net.forward_features(x).float()  # type: ignore[no-any-return]


def arrays(out: Path, count: int, side: int) -> dict[str, np.ndarray]:
    """The memory maps, made or opened."""
    return memory_maps(
        out,
        {
            "pictures": ((count, side, side, 3), np.uint8),
            "features": ((count, CELLS, CELLS, COMPONENTS), np.float16),
            "pooled": ((count, CHANNELS), np.float16),
        },
    )


def make(
    photos: list[Photograph], out: Path, side: int, views: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Make what is missing of the training set.

    Args:
        photos: those for training.
        out: the folder of the memory maps.
        side: of the views, in pixels.
        views: of each photograph. View v of photograph p has number v * len(photos) + p.
        seed: of what is drawn.
        device: the teacher's.

    Returns:
        What was made, how long it took and where.
    """
    state, count = out / "views.json", len(photos) * views
    asked = {"photographs": len(photos), "views": views, "side": side, "seed": seed}
    report = begun(state, asked, "--data")
    if report["done"] == count:
        return report
    teacher = Teacher(device)
    report |= {"teacher": wheels.LITE1, "environment": environment(device)}
    images = [decoded(photo.path) for photo in photos]
    write_json(state, report)  # from here on, no other views can be made in this folder

    def draw(start: int, stop: int) -> np.ndarray:
        numbers = range(start, stop)
        return np.stack([view(images, n, seed, side) for n in numbers])

    def find(batch: np.ndarray) -> dict[str, Tensor]:
        features = teacher(batch)
        cells = (features.movedim(1, 3) - mean) @ basis
        return {"features": cells, "pooled": features.mean((2, 3))}

    mean, basis = directions(out / "basis.pt", draw, teacher, COMPONENTS, device)
    fill(arrays(out, count, side), state, report, draw, find)
    return report


def linear_head(
    pooled: Tensor, labels: Tensor, classes: int, seed: int, passes: int = 20
) -> nn.Linear:
    """The teacher's answer for these classes: a linear layer on pooled features (N, 1280)."""
    torch.manual_seed(seed)
    head = nn.Linear(pooled.shape[1], classes).to(pooled.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    steps = passes * (len(pooled) // 256 + 1)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(pooled), (256,), generator=generator).to(pooled.device)
        loss = F.cross_entropy(head(pooled[chosen].float()), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.step()
    return head.eval()
