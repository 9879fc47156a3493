"""Sources of tiny pictures, and what a loader makes of them."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from papr.evaluate.loading import Batch, Plan, Skipped, loader
from papr.evaluate.sources import Item, Source
from papr.images import load_image


def png(level: int) -> bytes:
    """A picture of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def level(item: Item) -> int:
    return int(np.asarray(load_image(item.content))[0, 0, 0])


def prepare(item: Item) -> Tensor:
    return torch.tensor([[float(level(item))]])


def everything(source: Source, **options) -> list[Batch]:
    """All batches of a source, by its loader, in order."""
    plan = Plan(2, 4)
    work = list(range(len(source.shards))) if source.length is None else plan.parts(source)
    return list(loader(source, plan, work, prepare, workers=0, **options))


def rows(batches: Iterable[Batch]) -> list[tuple[int, int, str, int | None, float]]:
    return sorted(
        (batch.part.shard, position, name, label, pixel)
        for batch in batches
        if batch.pixels is not None
        for position, name, label, pixel in zip(
            batch.positions, batch.ids, batch.labels, batch.pixels[:, 0].tolist(), strict=True
        )
    )


def skips(batches: Iterable[Batch]) -> list[Skipped]:
    return [sample for batch in batches for sample in batch.skipped]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    return root


def write_shard(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def odd_name(folder: Path, name: bytes) -> str:
    """A name whose bytes are no Unicode; where the file system takes none, one without them."""
    folder.mkdir(parents=True, exist_ok=True)
    odd = os.fsdecode(name)
    try:
        (folder / odd).touch()
        (folder / odd).unlink()
    except OSError:
        return name.decode("ascii", "ignore")
    return odd
