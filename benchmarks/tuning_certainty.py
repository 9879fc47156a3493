"""What `papr.evaluate.tune`'s `sure` is worth: how often its choice truly meets the target.

The trained host of examples/cluttered_digits, pruned to each fortieth, answers 2000 held-out
pictures; their agreement with the dense host is taken for the true one. Then the search is run on
random draws of 200 or 500 of them, as `tune` runs it on its tuning half, for several targets. Where
the target is met is counted among the draws in which the search found a keep at all. The pictures
drawn are among those that the truth is of, which makes the choice look a little better than it is.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cluttered_digits"))

from common import parser, save
from papr import prune
from papr.evaluate.searching import edge
from papr.measure import wilson
from papr.twins import twin

STEPS, COARSE, BATCH = 40, (32, 24, 16, 8), 50
TARGETS, IMAGES, SURE = (0.95, 0.96, 0.97, 0.98, 0.99), (200, 500), (0.5, 0.8, 0.9, 0.95)


@torch.inference_mode()
def agreement(pictures: int) -> dict[int, Tensor]:
    """Fortieths kept -> (pictures,) bool, whether the answer is the dense host's."""
    import data
    import evaluate

    host, proposal = evaluate.networks()
    parts = [
        data.batch("held-out", 1, range(i, min(i + BATCH, pictures)))[0]
        for i in range(0, pictures, BATCH)
    ]
    dense = torch.cat([host(part).argmax(1) for part in parts])
    found = {}
    for step in range(1, STEPS):
        pruned = prune(twin(host), step / STEPS, proposal)
        found[step] = torch.cat([pruned(part).argmax(1) for part in parts]) == dense
    return found


def draws(
    found: dict[int, Tensor], target: float, images: int, sure: float, count: int
) -> dict[str, Any]:
    """How often the choice meets the target, of so many draws."""
    random = torch.Generator().manual_seed(0)
    chosen = []
    for _ in range(count):
        drawn = torch.randperm(len(found[1]), generator=random)[:images]

        def meets(step: int, drawn: Tensor = drawn) -> bool:
            agree = int(found[step][drawn].sum())
            return wilson(agree, images, 2 * sure - 1)[0] >= target

        chosen.append(edge(meets, STEPS, 0, COARSE))
    some = [step for step in chosen if step < STEPS]
    met = sum(float(found[step].float().mean()) >= target for step in some)
    return {
        "target": target,
        "images": images,
        "sure": sure,
        "found": len(some) / count,
        "met": met / len(some) if some else None,
        "mean_keep": sum(some) / STEPS / len(some) if some else None,
    }


def main() -> None:
    options = parser(__doc__, "tuning_certainty.json")
    options.add_argument("--pictures", type=int, default=2000, help="default 2000")
    options.add_argument("--draws", type=int, default=200, help="default 200")
    args = options.parse_args()
    found = agreement(args.pictures)
    true = {step / STEPS: float(same.float().mean()) for step, same in found.items()}
    rows = [
        draws(found, target, images, sure, args.draws)
        for target in TARGETS
        for images in IMAGES
        for sure in SURE
    ]
    save(args.json, "cpu", pictures=args.pictures, draws=args.draws, agreement=true, rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
