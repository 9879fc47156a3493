"""Speed of VideoMAE-B, dense and pruned, and memory of VideoMAE-L.

One clip of 16 frames of 224 x 224 px a call. Dense and pruned hosts take turns in one run, the
proposal's time included; ratios are taken turn by turn. Two proposals: EfficientNet-Lite0 on a
frame of each tubelet, and X3D-M on 8 frames of 160 x 160 px (random weights: same speed). Memory is
what the tensors of one forward pass hold at its peak, weights not counted: in inference, and with
gradients, where everything the backward pass needs is kept.
"""

import torch

import papr
from common import parser, save
from papr.compare import compare
from papr.environment import describe_device, pick_device
from papr.measure import interleave, peak_memory, quartiles
from papr.named import create_video
from papr.twins import twin

HOST, KEEPS = "videomae_base", [0.45, 0.35]
LARGE, LARGE_KEEP = "videomae_large", 0.3


def clips(batch: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """What VideoMAE takes: (B, T, C, H, W)."""
    return torch.randn(batch, 16, 3, 224, 224, device=device, dtype=dtype)


@torch.inference_mode()
def proposal_share(host: torch.nn.Module, x: torch.Tensor, who: papr.Proposal, rounds: int) -> dict:
    """What part of the pruned host's time the proposal takes."""
    scorer = who.scorer(x.device, x.dtype, tubelet=2)
    pruned = papr.prune(twin(host), KEEPS[-1], who)
    calls = {"pruned": lambda: pruned(x), "proposal": lambda: scorer(x.transpose(1, 2))}
    timings = interleave(calls, rounds, device=x.device)
    pairs = zip(timings["proposal"].seconds, timings["pruned"].seconds, strict=True)
    return {"proposal_share_of_pruned_time": quartiles([p / w for p, w in pairs])}


def memory(device: torch.device) -> dict:
    """Peak memory of VideoMAE-L's forward pass, dense and pruned, in 10^6 bytes."""
    host = create_video(LARGE, random_weights=True)[0].to(device)
    x = clips(1, device, torch.float32)
    found = {}
    for mode, grad in (("inference", False), ("with_gradients", True)):
        with torch.set_grad_enabled(grad):
            dense = peak_memory(lambda: papr.unprune(host)(x), device) / 1e6
            papr.prune(host, LARGE_KEEP)
            pruned = peak_memory(lambda: host(x), device) / 1e6
        found[mode] = {"dense_mb": dense, "pruned_mb": pruned, "ratio": pruned / dense}
    return {"model": LARGE, "keep": LARGE_KEEP, **found}


def main() -> None:
    options = parser(__doc__ or "", "video_speed-{device}.json")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--rounds", type=int, default=11)
    args = options.parse_args()
    device = pick_device(args.device)
    print(describe_device(device))
    used = memory(device)
    print(used, flush=True)
    proposals = {
        "efficientnet_lite0": papr.Proposal("efficientnet_lite0"),
        "x3d_m": papr.Proposal("x3d_m", pretrained=False),
    }
    host = create_video(HOST, random_weights=True)[0]
    rows = []
    for name in args.dtypes:
        dtype = getattr(torch, name)
        host = host.to(device=device, dtype=dtype)
        x = clips(args.batch, device, dtype)
        for proposal, who in proposals.items():
            share = proposal_share(host, x, who, args.rounds)
            for row in compare(host, x, KEEPS, rounds=args.rounds, proposal=who):
                rows.append({"model": HOST, "proposal": proposal} | row.to_dict() | share)
                print(
                    f"{HOST} {name} {proposal} keep={row.keep:g}: {row.ms_per_image[0]:.0f} ms a "
                    f"clip, {row.speedup[0]:.3f}x ({row.speedup[1]:.3f}-{row.speedup[2]:.3f}), "
                    f"ideal {row.ideal:.3f}, efficiency {row.efficiency:.3f}",
                    flush=True,
                )
            print(share, flush=True)
    save(args.json, args.device, weights="random", rounds=args.rounds, rows=rows, memory=used)


if __name__ == "__main__":
    main()
