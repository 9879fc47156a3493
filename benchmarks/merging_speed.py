"""ViT-B/16 with tokens pruned, merged, pooled and cut a second time: time beside GMACs.

Everything takes turns in one run, the proposal's time included. Weights are random: speed does not
depend on them.
"""

from functools import partial

import timm
import torch

from common import parser, save
from papr import Merge, Proposal, Recut, prune
from papr.environment import pick_device
from papr.measure import count_macs, interleave
from papr.twins import twin

HOST = "vit_base_patch16_224"
BATCH = 8
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
RIVALS: dict[str, dict] = {
    "ToMe, r = 8": {"keep": 1.0, "merge": Merge(8)},
    "ToMe, r = 8, attention not proportional": {"keep": 1.0, "merge": Merge(8, proportional=False)},
    "ToMe, r = 14": {"keep": 1.0, "merge": Merge(14)},
    "papr, keep 0.6": {"keep": 0.6},
    "papr, keep 0.6, and ToMe, r = 8": {"keep": 0.6, "merge": Merge(8)},
    "papr, keep 0.6, and ToMe, r = 16": {"keep": 0.6, "merge": Merge(16)},
    "papr, keep 0.6, 4 means of the rest": {"keep": 0.6, "pool": 4},
    "papr, keep 0.6, cut to 0.8 in block 6": {"keep": 0.6, "recut": Recut(0.8)},
    "class attention, cut to 0.5 in block 3": {
        "keep": 1.0,
        "recut": Recut(0.5, (3,), "attention"),
    },
}


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__ or "", "merging_speed-{device}.json")
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args()
    device = pick_device(args.device)
    images = torch.randn(BATCH, 3, 224, 224, device=device)
    dense = timm.create_model(HOST).to(device).eval()
    who = Proposal()
    hosts = {
        name: prune(twin(dense), proposal=who, **STATISTICS, **choice)
        for name, choice in RIVALS.items()
    }
    macs = {name: count_macs(host, images).per_image(BATCH) for name, host in hosts.items()}
    whole = count_macs(dense, images).per_image(BATCH).total
    calls = {"dense": partial(dense, images)}
    calls |= {name: partial(host, images) for name, host in hosts.items()}
    timings = interleave(calls, args.rounds, 2, device)
    rows = []
    for name in hosts:
        speedup = timings[name].speedup_over(timings["dense"])
        ideal = whole / macs[name].total
        row = {
            "name": name,
            "gmacs_host": macs[name].host / 1e9,
            "gmacs_proposal": macs[name].proposal / 1e9,
            "ideal": ideal,
            "speedup": speedup,
            "ms_per_image": timings[name].ms_per_image(BATCH),
        }
        rows.append(row)
        print(
            f"{name:40} {row['gmacs_host']:6.2f} + {row['gmacs_proposal']:.2f} GMACs, "
            f"ideal {ideal:.2f}x, measured {speedup[0]:.2f}x ({speedup[1]:.2f}-{speedup[2]:.2f})"
        )
    figures = {"host": HOST, "batch": BATCH, "dense_gmacs": whole / 1e9, "rounds": args.rounds}
    save(args.json, args.device, **figures, rows=rows)


if __name__ == "__main__":
    main()
