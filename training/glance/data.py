"""Make the training set: pictures, and beside each what the teachers find in it.

    python training/glance/data.py --photographs ../shared/data --out build/glance

Three memory maps: pictures (N, 224, 224, 3) as bytes; maps (N, 4, 14, 14) and features
(N, 64, 8, 8) in half precision. Started again, it goes on where it was; stopped early, what is
there can be trained on. Needs `pip install 'papr-torch[training]'` for the teachers.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.progress import track
from torch import Tensor

from papr.environment import environment, pick_device
from papr.files import atomic, write_json
from pictures import SIDE, photographs, picture
from teachers import CELLS, COMPONENTS, GRID, MAPS, NETWORKS, Teachers, principal

BATCH = 64
EVERY = 16  # batches between two notes of how far it is
FIRST = 512  # pictures whose features tell the principal directions

Draw = Callable[[int, int], np.ndarray]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument(
        "--photographs",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="holds caltech-101/ and imagenet-sample/",
    )
    options.add_argument("--out", type=Path, default=Path("build/glance"), metavar="FOLDER")
    options.add_argument("--count", type=int, default=40_000, help="pictures to make")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    return options.parse_args(argv)


def arrays(out: Path, count: int) -> dict[str, np.ndarray]:
    """The memory maps, made or opened."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "pictures": ((count, SIDE, SIDE, 3), np.uint8),
        "maps": ((count, len(MAPS), GRID, GRID), np.float16),
        "features": ((count, COMPONENTS, CELLS, CELLS), np.float16),
    }
    made = {}
    for name, (shape, dtype) in shapes.items():
        path = out / f"{name}.npy"
        new = (path, "r+") if path.exists() else (path, "w+", dtype, shape)
        made[name] = open_memmap(*new)
    return made


def begun(state: Path, asked: dict[str, int]) -> dict[str, Any]:
    """How far an earlier run got.

    Raises:
        SystemExit: that run was asked for something else.
    """
    if not state.exists():
        return {**asked, "done": 0, "seconds": 0.0}
    report: dict[str, Any] = json.loads(state.read_text())
    before = {name: report[name] for name in asked}
    if before != asked:
        raise SystemExit(f"expected {before}, as in {state}, got {asked}: give another --out")
    return report


def found(teachers: Teachers, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the teachers make of pictures (B, 224, 224, 3)."""
    return teachers(torch.from_numpy(batch).movedim(3, 1) / 255)


def directions(path: Path, teachers: Teachers, draw: Draw) -> tuple[Tensor, Tensor]:
    """The mean and the principal directions of Lite1's features."""
    if not path.exists():
        starts = range(0, FIRST, BATCH)
        features = [found(teachers, draw(start, start + BATCH))[1] for start in starts]
        with atomic(path) as new:
            torch.save(principal(torch.cat(features).cpu()), new)
    mean, basis = torch.load(path, weights_only=True, map_location=teachers.device)
    return mean, basis


def main(argv: list[str] | None = None) -> None:
    """Makes what is missing."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / "data.json"
    report = begun(state, {"count": args.count, "seed": args.seed})
    sets = photographs(args.photographs)
    teachers = Teachers(pick_device(args.device))
    made = arrays(args.out, args.count)
    report |= {
        "photographs": dict(zip(("imagenet-sample", "caltech-101"), map(len, sets), strict=True)),
        "teachers": NETWORKS,
        "maps": MAPS,
        "environment": environment(teachers.device),
    }

    def draw(start: int, stop: int) -> np.ndarray:
        return np.stack([picture(number, args.seed, *sets) for number in range(start, stop)])

    mean, basis = directions(args.out / "basis.pt", teachers, draw)
    starts = range(report["done"], args.count, BATCH)
    stops = [min(start + BATCH, args.count) for start in starts]
    with ThreadPoolExecutor(1) as pool:  # the next pictures while the teachers look at these
        ahead = [pool.submit(draw, *ends) for ends in zip(starts[:1], stops[:1], strict=True)]
        for number, (start, stop) in enumerate(
            zip(track(starts, "pictures", disable=not os.isatty(2)), stops, strict=True)
        ):
            began, batch = time.monotonic(), ahead.pop().result()
            if stop < args.count:
                ahead.append(pool.submit(draw, stop, min(stop + BATCH, args.count)))
            maps, features = found(teachers, batch)
            cells = (features.movedim(1, -1) - mean) @ basis
            made["pictures"][start:stop] = batch
            made["maps"][start:stop] = maps.cpu()
            made["features"][start:stop] = cells.movedim(-1, 1).cpu()
            report["seconds"] += time.monotonic() - began
            if number % EVERY == EVERY - 1 or stop == args.count:
                for array in made.values():
                    array.flush()
                report["done"] = stop
                write_json(state, report)
    print(f"{report['done']} pictures in {args.out}")


if __name__ == "__main__":
    main()
