"""Blocks of a host that were wrapped before it is pruned: checkpoints, compiled ones; torch.fx."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torchvision.models.feature_extraction import create_feature_extractor

import papr
from papr.errors import PrunedModelError
from tiny import CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")

BLOCKS = ["convnext", "hf_convnext", "torchvision_convnext", "swin", "torchvision_swin_v2"]
WRAPPED = [
    *((name, "block") for name in (*BLOCKS, "swin_kept", "hf_swin", "beit", "hf_vjepa2")),
    *((name, "holder") for name in BLOCKS),
    *((f"{name}+merge", "block") for name in ("augreg", "hf_vit", "torchvision")),
]


def prune(name: str, model: nn.Module) -> nn.Module:
    name, plus, _ = name.partition("+")
    return CASES[name].prune(model, **({"merge": papr.Merge(4)} if plus else {}))


@pytest.mark.parametrize(("name", "around"), WRAPPED)
def test_checkpoints_put_around_blocks_before_pruning(name: str, around: str) -> None:
    """With another pass before the backward pass; as without checkpoints, gradient by gradient."""
    case = CASES[name.partition("+")[0]]
    x, other = case.pixels(), case.pixels()
    gradients = []
    for wrapped in (False, True):
        model = case.build().train()
        parts = [b[1] if isinstance(b, tuple) else b for b in case.blocks(model)]
        if around == "holder":
            parts = [m for m in model.modules() if not parts_apart(parts, m)]
        if wrapped:
            apply_activation_checkpointing(
                model,
                checkpoint_wrapper_fn=checkpoint_wrapper,
                check_fn=lambda module, parts=parts: any(module is part for part in parts),
            )
        prune(name, model)
        loss = case.logits(model, x).square().sum()
        case.logits(model, other)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        assert plain is None or torch.equal(plain, recomputed)


def parts_apart(parts: list[nn.Module], module: nn.Module) -> bool:
    """Whether the module is not what holds blocks and is called with what they are called with."""
    holds = any(child is part for child in module._modules.values() for part in parts)
    return not holds or isinstance(module, nn.ModuleList)


@torch.no_grad()
@pytest.mark.parametrize("name", ["augreg", "augreg+merge", "convnext"])
def test_blocks_compiled_before_pruning(name: str) -> None:
    torch._dynamo.reset()
    case = CASES[name.partition("+")[0]]
    model, x = case.build(), case.pixels()
    expected = case.logits(prune(name, copy.deepcopy(model)), x)
    blocks = model.blocks if hasattr(model, "blocks") else model.stages[1].blocks
    dense = case.logits(model, x)
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")
    case.logits(model, x)  # compiled while dense
    prune(name, model)
    assert torch.equal(case.logits(model, x), expected)
    assert torch.equal(case.logits(papr.unprune(model), x), dense)


@pytest.mark.parametrize("name", ["torchvision", "torchvision_convnext", "augreg"])
def test_torch_fx_is_told_the_way_out(name: str) -> None:
    case = CASES[name]
    model, x = case.prune(case.build()), case.pixels()
    node = {"torchvision": "encoder", "augreg": "norm"}.get(name, "features.3")
    with pytest.raises(PrunedModelError, match=r"traced by torch\.fx.*papr\.features") as caught:
        create_feature_extractor(model, [node])
    assert "\n" not in str(caught.value)
    assert papr.features(model, x).map.shape[0] == 3  # what it says
    extractor = create_feature_extractor(papr.unprune(model), [node])
    support = papr.supported(extractor)
    assert not support
    assert "torch.fx traced it" in support.reason
