"""Speed of Swin-B and ConvNeXt-B, dense and pruned, and where their time goes.

Dense and pruned hosts take turns in one run, the proposal's time included; ratios are taken turn
by turn. Swin runs in the paper's mode (MLPs skip) and with attention="kept". A profile of each
host says what share of its time the kinds of operation take.
"""

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import papr
from common import parser, save
from papr.environment import describe_device, pick_device
from papr.measure import count_macs, interleave, peak_memory
from papr.twins import twin

HOSTS = {
    "swin_base_patch4_window7_224": [
        {"keep": 0.65},
        {"keep": 0.5},
        {"keep": 0.65, "attention": "kept"},
        {"keep": 0.5, "attention": "kept"},
    ],
    "convnext_base": [{"keep": 0.65}, {"keep": 0.5}],
}

#: What operations are called in the profile; the rest is "other".
KINDS = {
    "linear layers": ("aten::addmm", "aten::mm"),
    "convolutions": ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::cudnn_conv"),
    "attention and its softmax": (
        "aten::bmm",
        "aten::_softmax",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::baddbmm",
    ),
    "activations": ("aten::gelu",),
    "norms": ("aten::native_layer_norm",),
    "copies and rolls": ("aten::copy_", "aten::roll", "aten::cat"),
    "adding, scaling": ("aten::add", "aten::add_", "aten::mul", "aten::mul_"),
    "taking and putting rows": ("aten::index_select", "aten::index_copy", "aten::index_copy_"),
}


def shares(call, device: torch.device) -> dict[str, float]:
    """Share of the time of one call that each kind of operation takes itself."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        call()
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    spent = {event.key: getattr(event, name) for event in seen.key_averages()}
    total = sum(spent.values())
    parts = {kind: sum(spent.get(op, 0) for op in ops) for kind, ops in KINDS.items()}
    parts["other"] = total - sum(parts.values())
    return {kind: round(part / total, 4) for kind, part in parts.items()}


@torch.inference_mode()
def measure(name: str, variants: list[dict], batch: int, rounds: int, device) -> list[dict]:
    """One row for the dense host and one for each way of pruning it."""
    dense = timm.create_model(name).eval().to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    hosts = {"dense": dense}
    options = {"dense": {"keep": 1.0}}
    for variant in variants:
        label = " ".join(f"{k}={v}" for k, v in variant.items())
        hosts[label], options[label] = papr.prune(twin(dense), **variant), variant
    calls = {label: lambda host=host: host(images) for label, host in hosts.items()}
    timings = interleave(calls, rounds, device=device)
    macs = {label: count_macs(host, images).per_image(batch) for label, host in hosts.items()}
    rows = []
    for label, call in calls.items():
        row = {
            "model": name,
            **options[label],
            "batch": batch,
            "ms_per_image": timings[label].ms_per_image(batch),
            "speedup": timings[label].speedup_over(timings["dense"]),
            "ideal": macs["dense"].total / macs[label].total,
            "gmacs_host": macs[label].host / 1e9,
            "gmacs_proposal": macs[label].proposal / 1e9,
            "peak_mb": peak_memory(call, device) / 1e6,
            "share_of_time": shares(call, device),
        }
        rows.append(row)
        low, high = row["speedup"][1:]
        print(
            f"{name} {label}: {row['ms_per_image'][0]:.1f} ms/image, "
            f"{row['speedup'][0]:.3f}x ({low:.3f}-{high:.3f}), ideal {row['ideal']:.3f}, "
            f"peak {row['peak_mb']:.0f} MB",
            flush=True,
        )
    return rows


def main() -> None:
    options = parser(__doc__ or "", "pyramid_speed-{device}.json")
    options.add_argument("--models", nargs="+", default=list(HOSTS), choices=list(HOSTS))
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args()
    device = pick_device(args.device)
    print(describe_device(device))
    rows = []
    for name in args.models:
        rows += measure(name, HOSTS[name], args.batch, args.rounds, device)
    save(args.json, args.device, weights="random", rounds=args.rounds, rows=rows)


if __name__ == "__main__":
    main()
