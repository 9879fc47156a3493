"""Dynamic int8 quantisation by torchao stacks with pruning, in either order.

What the photographs show: a small host is fitted to give each of 100 photographs a class of its
own, so that the winners take 100 classes, and agreement by chance is one in a hundred. It has
learned them by heart, and with patches dropped at random, so nearly any half of the patches tells
them apart: the test says that quantising and pruning do not spoil each other's answers. It does
not say that PaPr's patches are better ones than others, nor how a host with pretrained weights
fares.
"""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import papr
from papr.images import fit, load_image, to_pixels
from papr.twins import twin
from tiny import CASES, prune

try:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8Tensor,
        quantize_,
    )
except Exception as error:  # not installed, or not for this PyTorch
    pytest.skip(f"needs torchao ({type(error).__name__}: {error})", allow_module_level=True)

HALF = (0.5, 0.5, 0.5)


def quantise(model: nn.Module) -> nn.Module:
    """In place: int8 weights per row, activations quantised per token as they come.

    Left out is the qkv projection of timm's Eva and Beit: they call `linear(x, weight=...)`, which
    torchao 0.18 fails on with an IndexError, dense or pruned.
    """
    by_name = type(model).__name__ in ("Eva", "Beit")

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not (by_name and name.endswith("qkv"))

    quantize_(model, Int8DynamicActivationInt8WeightConfig(), chosen)
    return model


def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


def is_int8(model: nn.Module) -> bool:
    """Whether the weights that most of the work is done with are torchao's."""
    mlps = [m.weight for n, m in model.named_modules() if n.endswith(("mlp.fc1", "mlp.fc2"))]
    assert mlps
    return all(isinstance(weight, Int8Tensor) for weight in mlps)


@torch.no_grad()
@pytest.mark.parametrize("family", ["augreg", "siglip", "dinov3", "beit_both", "cait"])
def test_both_orders_give_one_answer(family: str) -> None:
    host, x = CASES[family].build(), images()
    pruned = prune(copy.deepcopy(host), 0.5)(x)
    before = prune(quantise(copy.deepcopy(host)), 0.5)
    after = quantise(prune(copy.deepcopy(host), 0.5))
    assert is_int8(before)
    assert is_int8(after)
    answer = before(x)
    assert torch.equal(answer, after(x))
    assert papr.selection(before).indices.shape == (3, 32)
    assert not torch.equal(answer, pruned)  # int8 is at work
    assert (answer - pruned).norm() < 0.1 * pruned.norm()


@torch.no_grad()
@pytest.mark.parametrize("first", ["quantised", "pruned"])
def test_undone_copied_and_shared(first: str) -> None:
    host, x = CASES["augreg"].build(), images()
    dense = quantise(copy.deepcopy(host))
    expected = dense(x)
    both = prune(quantise(host), 0.5) if first == "quantised" else quantise(prune(host, 0.5))
    answer = both(x)
    assert torch.equal(copy.deepcopy(both)(x), answer)
    assert torch.equal(twin(both)(x), answer)
    prune(both, 0.25)
    both(x)
    assert papr.selection(both).indices.shape == (3, 16)
    papr.unprune(both)
    assert torch.equal(both(x), expected)
    assert is_int8(both)


def test_the_proposal_is_not_quantised() -> None:
    """It lies outside the module tree, and other hosts may share it."""
    model = quantise(prune(CASES["augreg"].build(), 0.5))
    net = model.patch_embed._papr.scorer.net
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in net.parameters())


def photographs(folder: Path, count: int, size: int) -> Tensor:
    """Pixels (count, 3, size, size), normalised with 0.5 and 0.5, every so-manieth of all."""
    files = sorted(folder.glob("*/*.jpg"))
    chosen = files[:: len(files) // count][:count]
    pixels = [to_pixels(fit(load_image(file), size, patch=1, square=True)) for file in chosen]
    return (torch.cat(pixels) - 0.5) / 0.5


def fitted(pixels: Tensor, steps: int = 40) -> nn.Module:
    """A small host that tells these photographs from each other, (N, 3, 96, 96) to (N, N)."""
    count = len(pixels)
    host = VisionTransformer(
        img_size=96,
        embed_dim=128,
        depth=3,
        num_heads=4,
        num_classes=count,
        class_token=False,
        global_pool="avg",
        patch_drop_rate=0.25,  # in training only: cheaper, and used to missing patches
    )
    optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(host(pixels), torch.arange(count)).backward()
        optimizer.step()
        schedule.step()
    return host.eval()


def test_winners_of_100_photographs(shared_data: Path) -> None:
    pixels = photographs(shared_data / "imagenet-sample", 100, 96)
    assert pixels.shape == (100, 3, 96, 96)
    host = fitted(pixels)
    hosts = {"dense": host, "int8": quantise(copy.deepcopy(host))}
    for name in ("dense", "int8"):
        for keep in (0.7, 0.5):
            model = copy.deepcopy(hosts[name])
            hosts[f"{name} {keep}"] = papr.prune(model, keep, mean=HALF, std=HALF)
    with torch.no_grad():
        winners = {name: model(pixels).argmax(1) for name, model in hosts.items()}

    def agree(a: str, b: str) -> int:
        return int((winners[a] == winners[b]).sum())

    assert winners["int8"].unique().numel() >= 95  # what makes agreement mean something
    assert int((winners["int8"] == winners["int8"].roll(1)).sum()) <= 5  # with another photograph's
    assert agree("int8", "dense") >= 95
    assert agree("int8 0.7", "int8") >= 90
    assert agree("int8 0.5", "int8") >= 80
    for keep in (0.7, 0.5):  # what int8 changes of the pruned host, and what it adds to pruning
        assert agree(f"int8 {keep}", f"dense {keep}") >= 95
        assert agree(f"int8 {keep}", "int8") >= agree(f"dense {keep}", "dense") - 5
