"""Speed of a pruned timm ViT beside the dense one, and where the time goes.

Rivals take turns in one run; ratios are taken turn by turn. On a CPU: ViT-B/16, batch 8, float32
and bfloat16. On CUDA: ViT-B/16 and ViT-L/16, batch 256, bfloat16, eager and compiled. Beside the
default proposal runs a selection at random (what pruning costs without a proposal) and the host's
bare work on the same number of tokens, so that papr's own overhead shows; and the dense host on a
smaller picture, which has about as many patches without a proposal. For a GPU there is gpu.py,
which measures more of it.
"""

import time
from functools import partial

import timm
import torch

import papr
from common import parser, save
from papr.baselines import lower_resolution, random_scores
from papr.compare import compare
from papr.environment import describe_device, pick_device
from papr.measure import interleave, peak_memory, quartiles
from papr.selecting import kept_count
from papr.twins import twin

KEEPS = (0.7, 0.5, 0.3)
CPU = {"models": ["vit_base_patch16_224"], "batch": 8, "dtypes": ["float32", "bfloat16"]}
CUDA = {
    "models": ["vit_base_patch16_224", "vit_large_patch16_224"],
    "batch": 256,
    "dtypes": ["bfloat16"],
}


@torch.inference_mode()
def overhead(host: torch.nn.Module, images: torch.Tensor, rounds: int) -> dict:
    """What pruning at 0.5 costs beside the proposal and the host's remaining work."""
    kept = 1 + 98
    scorer = papr.Proposal().scorer(images.device, images.dtype)

    def bare() -> torch.Tensor:
        tokens = host._pos_embed(host.patch_embed(images))[:, :kept].contiguous()
        return host.forward_head(host.norm(host.blocks(host.norm_pre(tokens))))

    rivals = {
        "pruned": papr.prune(twin(host), 0.5),
        "random": papr.prune(twin(host), 0.5, proposal=random_scores(cell=16)),
    }
    calls = {name: lambda m=model: m(images) for name, model in rivals.items()}
    calls |= {"bare": bare, "proposal": lambda: scorer(images)}
    timings = interleave(calls, rounds, device=images.device)
    t = {name: timing.seconds for name, timing in timings.items()}
    added = [r / b - 1 for r, b in zip(t["random"], t["bare"], strict=True)]
    share = [p / w for p, w in zip(t["proposal"], t["pruned"], strict=True)]
    device = images.device
    return {
        "selection_and_gather_over_bare_host": quartiles(added),
        "proposal_share_of_pruned_time": quartiles(share),
        "peak_mb": {
            "dense": peak_memory(lambda: host(images), device) / 1e6,
            "pruned": peak_memory(calls["pruned"], device) / 1e6,
            "proposal": peak_memory(calls["proposal"], device) / 1e6,
        },
    }


@torch.inference_mode()
def smaller_pictures(host: torch.nn.Module, images: torch.Tensor, rounds: int) -> list[dict]:
    """The dense host on pictures with about as many patches as pruning keeps."""
    found = {keep: lower_resolution(host, kept_count(keep, 14 * 14), images) for keep in KEEPS}
    calls = {"dense": partial(host, images)}
    calls |= {str(keep): partial(model, images) for keep, model in found.items()}
    timings = interleave(calls, rounds, device=images.device)
    return [
        {
            "keep": keep,
            "side": model.size[0],
            "patches": model.count,
            "speedup": timings[str(keep)].speedup_over(timings["dense"]),
        }
        for keep, model in found.items()
    ]


def seconds_to_prune(host: torch.nn.Module) -> float:
    """One call with glance, its weights read from disk."""
    model = twin(host)
    start = time.perf_counter()
    papr.prune(model, 0.5, proposal=papr.Proposal())
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__ or "", "speed-{device}.json")
    options.add_argument("--models", nargs="+")
    options.add_argument("--batch", type=int)
    options.add_argument("--dtypes", nargs="+")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--compile", action="store_true", help="also compiled, on any device")
    args = options.parse_args()
    device = pick_device(args.device)
    plan = dict(CUDA if device.type == "cuda" else CPU)
    plan |= {k: getattr(args, k) for k in plan if getattr(args, k) is not None}
    print(describe_device(device))

    rows = []
    smaller = []
    costs = {}
    for name in plan["models"]:
        host = timm.create_model(name).eval()
        prune_seconds = seconds_to_prune(host)
        for dtype in plan["dtypes"]:
            host = host.to(device=device, dtype=getattr(torch, dtype))
            images = torch.randn(
                plan["batch"], 3, 224, 224, device=device, dtype=getattr(torch, dtype)
            )
            costs[f"{name} {dtype}"] = overhead(host, images, args.rounds)
            costs[f"{name} {dtype}"]["seconds_to_prune"] = prune_seconds
            for row in smaller_pictures(host, images, args.rounds):
                smaller.append({"model": name, "dtype": dtype} | row)
                print(smaller[-1], flush=True)
            compiles = device.type == "cuda" or args.compile
            for mode in ["eager", "compiled"] if compiles else ["eager"]:
                for row in compare(host, images, KEEPS, rounds=args.rounds, mode=mode):
                    rows.append({"model": name} | row.to_dict())
                    print(
                        f"{name} {dtype} {mode} keep={row.keep:g}: "
                        f"{row.ms_per_image[0]:.2f} ms/image, {row.speedup[0]:.3f}x "
                        f"({row.speedup[1]:.3f}-{row.speedup[2]:.3f}), ideal {row.ideal:.3f}, "
                        f"efficiency {row.efficiency:.3f}, peak {row.peak_mb:.0f} MB",
                        flush=True,
                    )
            print(costs[f"{name} {dtype}"], flush=True)
    figures = {"rows": rows, "smaller": smaller, "costs": costs}
    save(args.json, args.device, weights="random", rounds=args.rounds, **figures)


if __name__ == "__main__":
    main()
