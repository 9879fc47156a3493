"""Make the training set: pictures, and beside each what the teachers find in it.

    python training/glance/data.py --photographs ../shared/data --out build/glance

Three memory maps: pictures (N, 224, 224, 3) as bytes; maps (N, 4, 14, 14) and features
(N, 64, 8, 8) in half precision. Started again, it goes on where it was; stopped early, what is
there can be trained on. Needs `pip install 'papr-torch[training]'` for the teachers.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papr.environment import environment, pick_device
from papr.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import begun, directions, fill, memory_maps
from pictures import SIDE, photographs, picture
from teachers import CELLS, COMPONENTS, GRID, MAPS, NETWORKS, Teachers


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
    return memory_maps(
        out,
        {
            "pictures": ((count, SIDE, SIDE, 3), np.uint8),
            "maps": ((count, len(MAPS), GRID, GRID), np.float16),
            "features": ((count, COMPONENTS, CELLS, CELLS), np.float16),
        },
    )


def main(argv: list[str] | None = None) -> None:
    """Makes what is missing."""
    args = arguments(argv)
    state = args.out / "data.json"
    report = begun(state, {"count": args.count, "seed": args.seed}, "--out")
    sets = photographs(args.photographs)
    teachers = Teachers(pick_device(args.device))
    report |= {
        "photographs": dict(zip(("imagenet-sample", "caltech-101"), map(len, sets), strict=True)),
        "teachers": NETWORKS,
        "maps": MAPS,
        "environment": environment(teachers.device),
    }

    write_json(state, report)  # from here on, no other set can be made in this folder

    def draw(start: int, stop: int) -> np.ndarray:
        return np.stack([picture(number, args.seed, *sets) for number in range(start, stop)])

    def look(batch: np.ndarray) -> tuple[Tensor, Tensor]:
        return teachers(torch.from_numpy(batch).movedim(3, 1) / 255)

    def find(batch: np.ndarray) -> dict[str, Tensor]:
        maps, features = look(batch)
        cells = (features.movedim(1, -1) - mean) @ basis
        return {"maps": maps, "features": cells.movedim(-1, 1)}

    mean, basis = directions(
        args.out / "basis.pt", draw, lambda batch: look(batch)[1], COMPONENTS, teachers.device
    )
    fill(arrays(args.out, args.count), state, report, draw, find)
    print(f"{report['done']} pictures in {args.out}")


if __name__ == "__main__":
    main()
