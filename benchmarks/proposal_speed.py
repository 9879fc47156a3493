"""What each proposal of `masked_accuracy.py` costs, at a picture of 224 px.

Multiply-accumulates; milliseconds an image at batches of 8 and 32, all in turns in one run,
uncompiled; and the speed-up of a ViT-B/16 at keep 0.5 that contains it, at batch 8.
"""

from functools import partial

import timm
import torch

from common import parser, proposals, save
from papr.compare import compare
from papr.environment import describe_device, pick_device
from papr.measure import count_macs, interleave

BATCHES = (8, 32)


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__ or "", "proposal_speed-{device}.json")
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args()
    device = pick_device(args.device)
    print(describe_device(device))
    images = torch.randn(max(BATCHES), 3, 224, 224, device=device)
    found = proposals()
    scorers = {
        name: who.scorer(device, torch.float32, size, score=score)
        for name, (who, size, score) in found.items()
    }
    calls = {
        f"{name}, {batch}": partial(scorer, images[:batch])
        for name, scorer in scorers.items()
        for batch in BATCHES
    }
    timings = interleave(calls, args.rounds, device=device)
    host = timm.create_model("vit_base_patch16_224").to(device).eval()
    rows = []
    for name, (who, size, score) in found.items():
        chosen = {"proposal": who, "proposal_size": size, "score": score}
        pruned = compare(host, images[: BATCHES[0]], [0.5], rounds=args.rounds, **chosen)[1]
        row = {
            "proposal": name,
            "gmacs": count_macs(scorers[name], images[:1]).total / 1e9,
            "ms_per_image": {str(n): timings[f"{name}, {n}"].ms_per_image(n) for n in BATCHES},
            "vit_b16_speedup_at_0.5": pruned.speedup,
        }
        rows.append(row)
        print(row, flush=True)
    save(args.json, args.device, rounds=args.rounds, rows=rows)


if __name__ == "__main__":
    main()
