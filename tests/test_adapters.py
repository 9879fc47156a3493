"""PEFT's adapters on a pruned host, put on before or after pruning; folded and undone.

The oracle is independent of both: the dense host with the same adapters, told to look at kept
patches only.
"""

import copy

import pytest
import torch
from torch import nn

import papr
from tiny import CASES

peft = pytest.importorskip("peft")  # not in the extra test-oldest

pytestmark = [
    pytest.mark.filterwarnings("ignore::papr.PaprWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

#: Host, what LoRA adapts, what is trained whole.
ADAPTED = [
    ("torchvision_convnext", "all-linear", None),
    ("hf_convnext", "all-linear", None),
    ("hf_convnext_v2", "all-linear", None),
    ("hf_dinov3_convnext", "all-linear", None),
    ("convnext", "all-linear", None),
    ("convnext", ["stem.0"], None),
    ("hf_convnext", ["patch_embeddings"], None),
    ("torchvision_swin", ["features.0.0"], None),
    ("torchvision", ["conv_proj"], None),
    ("augreg", ["qkv", "proj"], None),
    ("augreg", ["qkv"], ["patch_embed"]),
    ("hf_vit", ["q_proj", "query"], ["embeddings"]),
    ("hf_beit", "all-linear", None),
]


@torch.no_grad()
@pytest.mark.parametrize("first", ["papr", "peft"])
@pytest.mark.parametrize(("name", "targets", "whole"), ADAPTED)
def test_adapted_and_pruned_in_both_orders(name: str, targets, whole, first: str) -> None:
    case = CASES[name]
    host, x = case.build(), case.pixels()
    options = peft.LoraConfig(
        target_modules=targets, modules_to_save=whole, init_lora_weights=False
    )
    if first == "papr":
        case.prune(host, 0.4)
    adapted = peft.get_peft_model(host, options).eval()
    if first == "peft":
        case.prune(host, 0.4)
    answer = case.logits(host, x)
    assert papr.selection(host).indices.shape == (3, int(0.4 * case.patches()))
    dense = papr.unprune(copy.deepcopy(host))
    assert not papr.is_pruned(dense)
    assert close(answer, case.logits_on_kept(dense, x, host))
    folded = adapted.merge_and_unload()
    assert papr.is_pruned(folded)
    assert close(case.logits(folded, x), answer)
    assert close(case.logits(papr.unprune(folded), x), case.logits(dense, x))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5)


@torch.no_grad()
def test_a_copy_that_is_trained_whole_shares_the_merged_blocks_pass() -> None:
    case = CASES["hf_vit"]
    host, x = case.prune(case.build(), merge=papr.Merge(4)), case.pixels()
    expected = case.logits(host, x)
    options = peft.LoraConfig(target_modules=["q_proj", "query"], modules_to_save=["embeddings"])
    adapted = peft.get_peft_model(host, options).eval()
    assert close(case.logits(host, x), expected)
    assert close(case.logits(adapted.merge_and_unload(), x), expected)


def test_adapters_are_trained_and_nothing_else() -> None:
    case = CASES["torchvision_convnext"]
    host = case.prune(case.build())
    adapted = peft.get_peft_model(host, peft.LoraConfig(target_modules="all-linear")).train()
    case.logits(adapted, case.pixels()).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_module_made_of_a_sites_class_is_no_site() -> None:
    """As LoRA makes its own convolutions: `type(base_layer)(...)`."""
    case = CASES["torchvision"]
    host = case.prune(case.build())
    made = type(host.conv_proj)(3, 4, kernel_size=2)
    assert type(made) is nn.Conv2d
    assert made.out_channels == 4
