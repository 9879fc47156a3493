"""What each process of the data-parallel test does; spawned, so it must be importable."""

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import papr
from tiny import CASES, prune

STEPS = 3
HALF = 3  # images a process sees
KEEPS = (0.7, 0.5, 0.3)

Wrap = Callable[[nn.Module], DistributedDataParallel]


def wrap(model: nn.Module) -> DistributedDataParallel:
    """With the options that show a parameter left out: it then fails at the second step."""
    return DistributedDataParallel(model, find_unused_parameters=False, static_graph=False)


def prune_then_wrap(model: nn.Module) -> DistributedDataParallel:
    return wrap(prune(model, 0.5))


def wrap_then_prune(model: nn.Module) -> DistributedDataParallel:
    wrapped = wrap(model)
    assert prune(wrapped, 0.5) is wrapped
    return wrapped


def checkpointed(model: nn.Module) -> DistributedDataParallel:
    model.set_grad_checkpointing(True)
    return prune_then_wrap(model)


#: name -> (family, how it is wrapped and pruned, keep of each step where it changes)
VARIANTS: dict[str, tuple[str, Wrap, tuple[float, ...] | None]] = {
    "pruned, then wrapped": ("augreg", prune_then_wrap, None),
    "wrapped, then pruned": ("augreg", wrap_then_prune, None),
    "gradient checkpointing": ("augreg", checkpointed, None),
    "keep changes": ("augreg", wrap_then_prune, KEEPS),
    "rotary positions": ("dinov3", wrap_then_prune, None),
    "rotary positions, checkpointing": ("dinov3", checkpointed, None),
    "relative positions": ("beit_both", wrap_then_prune, None),
    "Swin": ("swin", wrap_then_prune, KEEPS),
    "ConvNeXt, checkpointing": ("convnext", checkpointed, None),
}


def data() -> tuple[Tensor, Tensor]:
    """The batches of all steps and both processes: (STEPS, 2 * HALF, 3, 64, 64) and classes."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(STEPS, 2 * HALF, 3, 64, 64, generator=generator)
    return pixels, torch.randint(10, (STEPS, 2 * HALF), generator=generator)


def train(
    model: nn.Module, images: Tensor, classes: Tensor, keeps: tuple[float, ...] | None
) -> list[Tensor]:
    """SGD over the leading dimension; the gradients of the first step, in parameter order."""
    first: list[Tensor] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(zip(images, classes, strict=True)):
        if keeps is not None:
            prune(model, keeps[step])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        chosen = papr.selection(model)
        patches = chosen.grid[0] * chosen.grid[1]
        assert chosen.indices.shape[1] == int((keeps[step] if keeps else 0.5) * patches)
        if step == 0:
            first = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return first


def run(rank: int, folder: Path) -> None:
    """Every variant, then a model that must fail; what came out is saved for the test."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        report = {name: variant(rank, *given) for name, given in VARIANTS.items()}
        report["unused parameter"] = unused_parameter(rank)
        torch.save(report, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def variant(
    rank: int, family: str, make: Wrap, keeps: tuple[float, ...] | None
) -> dict[str, list[Tensor]]:
    """Train in two processes; on rank 0 also alone, on the whole batch."""
    images, classes = data()
    mine = slice(rank * HALF, (rank + 1) * HALF)
    model = CASES[family].build().cpu().train()
    start, alone = copy.deepcopy(model), prune(copy.deepcopy(model), 0.5)
    wrapped = make(model)
    gradients = train(wrapped, images[:, mine], classes[:, mine], keeps)
    return {
        "start": list(start.state_dict().values()),
        "end": list(wrapped.module.state_dict().values()),
        "gradients": gradients,
        "alone": train(alone, images, classes, keeps),
        "end alone": list(alone.state_dict().values()),
    }


def unused_parameter(rank: int) -> str:
    """The control: DDP must complain of a parameter that no loss depends on."""
    images, classes = data()
    model = CASES["augreg"].build().cpu().train()
    model.left_out = nn.Parameter(torch.zeros(1))
    wrapped = wrap_then_prune(model)
    try:
        for x, y in zip(images, classes, strict=True):
            nn.functional.cross_entropy(wrapped(x), y).backward()
    except RuntimeError as error:
        return str(error)
    return "no complaint"
