"""The training set: views of each photograph, and beside each what EfficientNet-Lite1 sees in it.

Memory maps, made once: pictures (N, S, S, 3) as bytes; features (N, 7, 7, 96), the principal
components of the teacher's last feature map, and pooled (N, 1280), its mean, in half precision.
Started again, it goes on where it was.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from papr.baselines.cams import folded
from papr.environment import environment
from papr.files import atomic, write_json
from papr.images import fit
from papr.proposals import wheels
from recipes import cropped, decoded, principal

TEACHER_SIDE = 224  # pixels; 240, for which Lite1 was made, has no whole number of cells
CELLS = 7
COMPONENTS = 96
CHANNELS = 1280
BACKGROUND = "BACKGROUND_Google"
BATCH = 64
EVERY = 16  # batches between two notes of how far it is
#: The least part of a photograph that a view shows.
LEAST = 0.25
#: How often a photograph does not fill the view, and how small it may be then.
AWAY, SMALLEST = 0.3, 0.4
FIRST = 512  # views whose features tell the principal directions


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
    return np.asarray(fit(decoded(str(path)), side, patch=1, square=True))


def view(photo: Image.Image, number: int, seed: int, side: int) -> np.ndarray:
    """View `number` of the set, (side, side, 3) bytes: a part, at times small on a plain ground."""
    rng = np.random.default_rng([seed, number])
    if rng.random() >= AWAY:
        return np.asarray(cropped(photo, side, side, LEAST, rng))
    ground = Image.new("RGB", (side, side), tuple(int(c) for c in rng.integers(0, 256, 3)))
    small = int(side * rng.uniform(SMALLEST, 1))
    left, top = (int(place) for place in rng.integers(0, side - small + 1, 2))
    ground.paste(cropped(photo, small, small, 0.6, rng), (left, top))
    return np.asarray(ground)


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
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "pictures": ((count, side, side, 3), np.uint8),
        "features": ((count, CELLS, CELLS, COMPONENTS), np.float16),
        "pooled": ((count, CHANNELS), np.float16),
    }
    made = {}
    for name, (shape, dtype) in shapes.items():
        path = out / f"{name}.npy"
        new = (path, "r+") if path.exists() else (path, "w+", dtype, shape)
        made[name] = open_memmap(*new)
    return made


def begun(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """How far an earlier run got.

    Raises:
        SystemExit: that run was asked for something else.
    """
    if not state.exists():
        return {**asked, "done": 0, "seconds": 0.0}
    report: dict[str, Any] = json.loads(state.read_text())
    before = {name: report[name] for name in asked}
    if before != asked:
        raise SystemExit(f"expected {before}, as in {state}, got {asked}: give another --data")
    return report


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
    out.mkdir(parents=True, exist_ok=True)
    state, count = out / "views.json", len(photos) * views
    asked = {"photographs": len(photos), "views": views, "side": side, "seed": seed}
    report = begun(state, asked)
    made = arrays(out, count, side)
    if report["done"] == count:
        return report
    teacher = Teacher(device)
    report |= {"teacher": wheels.LITE1, "environment": environment(device)}
    images = [decoded(str(photo.path)) for photo in photos]

    def draw(start: int) -> np.ndarray:
        numbers = range(start, min(start + BATCH, count))
        return np.stack([view(images[n % len(images)], n, seed, side) for n in numbers])

    mean, basis = directions(out / "basis.pt", teacher, draw)
    starts = list(range(report["done"], count, BATCH))
    with ThreadPoolExecutor(1) as pool:  # the next views while the teacher looks at these
        ahead = pool.submit(draw, starts[0])
        bar = track(starts, "views of photographs", disable=not os.isatty(2))
        for number, start in enumerate(bar):
            began, batch = time.monotonic(), ahead.result()
            ahead = pool.submit(draw, min(start + BATCH, count - 1))
            stop, features = start + len(batch), teacher(batch)
            made["pictures"][start:stop] = batch
            made["features"][start:stop] = ((features.movedim(1, 3) - mean) @ basis).cpu()
            made["pooled"][start:stop] = features.mean((2, 3)).cpu()
            report["seconds"] += time.monotonic() - began
            if number % EVERY == EVERY - 1 or stop == count:
                for array in made.values():
                    array.flush()
                report["done"] = stop
                write_json(state, report)
    return report


def directions(path: Path, teacher: Teacher, draw: Any) -> tuple[Tensor, Tensor]:
    """The mean and the principal directions of the teacher's features."""
    if not path.exists():
        features = [teacher(draw(start)).cpu() for start in range(0, FIRST, BATCH)]
        with atomic(path) as new:
            torch.save(principal(torch.cat(features), COMPONENTS), new)
    mean, basis = torch.load(path, weights_only=True, map_location=teacher.device)
    return mean, basis


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
