"""Does int8 stack with pruning? ViT-B/16, batch 8: float32 and int8, dense and pruned, in turns.

int8 is torchao's dynamic quantisation of linear layers: weights per row, activations per token as
they come. Eagerly every layer quantises, multiplies and rescales in passes of its own; --compile
fuses them, and compiles the float32 rivals too. How much int8 gains hangs on the processor (VNNI,
AMX). The weights are random, which timing does not mind; beside it stands how far int8 moves the
logits.
"""

import copy

import timm
import torch
import torchao
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

import papr
from common import parser, save
from papr.environment import describe_device, pick_device
from papr.measure import interleave
from papr.proposals import wheels
from papr.twins import twin


def rivals(name: str, keep: float, device: torch.device) -> dict[str, torch.nn.Module]:
    """Four hosts from the same weights."""
    dense = timm.create_model(name).eval().to(device)
    int8 = copy.deepcopy(dense)
    quantize_(int8, Int8DynamicActivationInt8WeightConfig())
    return {
        "float32 dense": dense,
        "float32 pruned": papr.prune(twin(dense), keep, wheels.LITE0),
        "int8 dense": int8,
        "int8 pruned": papr.prune(twin(int8), keep, wheels.LITE0),
    }


@torch.inference_mode()
def distance(hosts: dict[str, torch.nn.Module], images: torch.Tensor, kind: str) -> float:
    """Relative distance of the int8 logits from the float32 ones."""
    exact, rounded = hosts[f"float32 {kind}"](images), hosts[f"int8 {kind}"](images)
    return ((rounded - exact).norm() / exact.norm()).item()


@torch.inference_mode()
def measure(
    hosts: dict[str, torch.nn.Module], images: torch.Tensor, rounds: int, compiled: bool
) -> list[dict]:
    """One row for each rival."""
    if compiled:
        torch._dynamo.reset()
        hosts = {k: torch.compile(host, fullgraph=True) for k, host in hosts.items()}
    calls = {name: lambda host=host: host(images) for name, host in hosts.items()}
    timings = interleave(calls, rounds, 2, images.device)
    return [
        {
            "rival": name,
            "compiled": compiled,
            "ms_per_image": timing.ms_per_image(len(images)),
            "over_float32_dense": timing.speedup_over(timings["float32 dense"]),
            "over_same_dtype_dense": timing.speedup_over(timings[f"{name.split()[0]} dense"]),
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    options = parser(__doc__ or "", "int8-{device}.json")
    options.add_argument("--model", default="vit_base_patch16_224")
    options.add_argument("--keep", type=float, default=0.5)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--compile", action="store_true", help="also compiled")
    args = options.parse_args()
    device = pick_device(args.device)
    print(describe_device(device))
    hosts = rivals(args.model, args.keep, device)
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    rows = []
    for compiled in (False, True) if args.compile else (False,):
        for row in measure(hosts, images, args.rounds, compiled):
            rows.append(row)
            print(
                f"{row['rival']:15} compiled={compiled}: {row['ms_per_image'][0]:7.1f} ms/image, "
                "{:.2f}x ({:.2f}-{:.2f}) over float32 dense, ".format(*row["over_float32_dense"])
                + "{:.2f}x over its own dense".format(*row["over_same_dtype_dense"]),
                flush=True,
            )
    moved = {kind: distance(hosts, images, kind) for kind in ("dense", "pruned")}
    print("int8 logits from float32's, relative:", moved)
    save(
        args.json,
        args.device,
        torchao=torchao.__version__,
        weights="random",
        model=args.model,
        keep=args.keep,
        batch=args.batch,
        rounds=args.rounds,
        rows=rows,
        int8_moves_logits=moved,
    )


if __name__ == "__main__":
    main()
