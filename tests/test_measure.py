"""MACs against formulas, memory against arithmetic, timing against a clock of our own."""

import functools

import pytest
import timm
import torch
from torch import nn

import papr
from papr.measure import Macs, Timing, count_macs, interleave, peak_memory
from tiny import CASES


@functools.cache
def mobileone() -> papr.Proposal:
    """Random weights do for counting."""
    return papr.Proposal("mobileone_s0", pretrained=False)


def meta_host(name: str) -> nn.Module:
    return timm.create_model(name).eval().to("meta")


def vit_macs(tokens: int, width: int, depth: int, patches: int, volume: int, classes: int) -> int:
    """algorithm: patch embedding on all patches, blocks on the kept tokens, head."""
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return patches * width * volume + depth * block + width * classes


@pytest.mark.parametrize(
    ("name", "keep", "published"),
    [
        ("vit_base_patch16_224", 0.60, 10.77),
        ("vit_base_patch16_224", 0.55, 9.88),
        ("vit_base_patch16_224", 0.50, 8.98),
        ("vit_base_patch16_224", 0.45, 8.10),
        ("vit_large_patch16_224", 0.50, 30.8),
    ],
)
def test_published_gmacs(name: str, keep: float, published: float) -> None:
    model = papr.prune(meta_host(name), keep, mobileone(), reference=True)
    macs = count_macs(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert macs.total / 1e9 == pytest.approx(published, rel=0.005)
    width, depth = (768, 12) if "base" in name else (1024, 24)
    expected = vit_macs(1 + int(keep * 197), width, depth, 196, 768, 1000)
    assert macs.host == expected
    assert macs.proposal / 1e9 == pytest.approx(0.28, abs=0.01)


@pytest.mark.parametrize("fused", [True, False])
def test_counts_with_fused_attention_on_a_cpu(fused: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    macs = count_macs(model, torch.randn(2, 3, 224, 224))
    assert macs == Macs(2 * vit_macs(197, 192, 2, 196, 768, 1000), 0)


def test_counts_the_encoder_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    tokens = 5
    expected = tokens * 16 * (3 * 16 + 16 + 2 * 32) + 2 * tokens**2 * 16
    assert count_macs(layer, torch.randn(1, tokens, 16)).total == expected


def test_peak_memory_of_a_chain() -> None:
    x = torch.randn(1000)

    def chain() -> torch.Tensor:
        a = x * 2  # 4000 bytes
        b = a + 1  # 8000 held
        del a
        return b * b  # 8000 held

    assert peak_memory(chain) == 8000


def test_peak_memory_does_not_count_weights_and_inputs() -> None:
    layer, x = nn.Linear(1000, 10), torch.randn(4, 1000)
    with torch.no_grad():
        assert peak_memory(lambda: layer(x)) == 4 * 10 * 4


def test_pruned_memory_is_below_dense_plus_proposal() -> None:
    model = timm.create_model("vit_small_patch16_224", depth=2).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        dense = peak_memory(lambda: model(x))
        papr.prune(model, 0.5)
        scorer = model.patch_embed._papr.scorer
        proposal = peak_memory(lambda: scorer(x))
        assert peak_memory(lambda: model(x)) <= dense + proposal


def test_rivals_take_turns() -> None:
    order: list[str] = []
    turns: list[int] = []
    timings = interleave(
        {name: lambda n=name: order.append(n) for name in "ab"},
        rounds=3,
        warmup=1,
        each_turn=lambda: turns.append(1),
    )
    assert "".join(order) == "ab" * 4
    assert len(turns) == 8
    assert all(len(t.seconds) == 3 for t in timings.values())


def test_speedup_is_taken_turn_by_turn() -> None:
    """A machine that halves its speed half way through changes no ratio."""
    dense, pruned = Timing((2.0, 2.0, 4.0, 4.0)), Timing((1.0, 1.0, 2.0, 2.0))
    assert pruned.speedup_over(dense) == (2.0, 2.0, 2.0)
    assert dense.median == 3.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_counts_attention_pooling_with_and_without_gradients(mode: type) -> None:
    """Its query is a view of a parameter, which PyTorch's record of modules stumbles over."""
    case = CASES["siglip"]
    model, width, patches = case.build(depth=1), 48, 64
    with mode():
        counted = count_macs(model, case.pixels(1)).host
    block = 12 * patches * width**2 + 2 * patches**2 * width
    pool = 2 * patches * width**2 + 2 * width**2 + 2 * patches * width  # k and v; q, proj; attend
    mlp = 8 * width**2
    assert counted == patches * width * 3 * 8 * 8 + block + pool + mlp + width * 10
