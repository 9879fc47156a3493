"""How many operations pruning adds to a host's own, the proposal's apart."""

import pytest
import torch
import torch.nn.functional as F

import papr
from conftest import DEVICE
from operations import more, operations
from papr.selecting import gather
from tiny import CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


def test_what_counts_as_an_operation() -> None:
    x = torch.randn(2, 3, 4)
    assert operations(lambda: x.transpose(0, 1)[:1].expand(3, 2, 4).unsqueeze(0)) == []
    assert operations(lambda: x.float().contiguous().reshape(6, 4).to("cpu")) == []
    assert operations(lambda: F.dropout(x, 0.5, training=False)) == []
    assert operations(lambda: x.detach().requires_grad_(False).view(-1)) == []
    assert operations(lambda: torch.promote_types(x.dtype, torch.half)) == []
    assert operations(lambda: x.half()) == ["_to_copy"]
    assert operations(lambda: x.transpose(0, 1).reshape(6, 4)) == ["clone"]
    assert operations(lambda: x.clone().add_(1)) == ["clone", "add_.Tensor"]
    assert operations(lambda: x.flatten(0, 1) @ x[0].T) == ["mm"]
    assert operations(lambda: x.sum().item()) == ["sum", "_local_scalar_dense"]
    assert len(operations(lambda: F.dropout(x, 0.5))) == len(operations(lambda: F.dropout(x, 0.5)))


#: At most so many more than the dense host, however deep it is. Two of them look on a CPU whether
#: the scores are finite, one brings the scores to the host's grid, two rank, four take the tokens
#: (one where there are no prefix tokens); what is above that gathers rotary tables.
MOST = {
    "augreg": 9,
    "dinov2": 9,
    "gap": 6,
    "eva": 9,
    "dinov3": 10,
    "hf_vit": 9,
    "hf_dinov2_registers": 9,
    "hf_dinov3": 11,
    "hf_siglip": 6,
    "torchvision": 9,
    "hf_videomae": 6,
    "hf_vivit": 9,
    "hf_vjepa2": 6,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MOST)
def test_a_cut_costs_a_handful(name: str, dtype: torch.dtype) -> None:
    """The proposal is a map that is there, so that it costs none; depth and dtype add none."""
    case = CASES[name]
    x = case.pixels(2).to(dtype)
    added = {}
    for depth in (1, 2):
        dense = operations(case.logits, case.build(depth=depth).to(dtype), x)
        for smaller in (0, 1):
            scores = torch.rand(2, *(side - smaller for side in case.grid()), device=DEVICE)
            pruned = papr.prune(case.build(depth=depth).to(dtype), 0.5, lambda _, s=scores: s)
            added[depth, smaller] = more(operations(case.logits, pruned, x), dense)
    for depth in (1, 2):
        on_grid, resized = added[depth, 0], added[depth, 1]
        assert not any("upsample" in name for name in on_grid), "no resize where the grids agree"
        assert sum("upsample" in name for name in resized) == 1
        assert not any("copy" in name for name in resized), "nothing is cast"
        assert sum(on_grid.values()) < sum(resized.values()) <= MOST[name], resized


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("contiguous", [True, False])
def test_tokens_are_taken_in_one_copy(prefix: int, contiguous: bool) -> None:
    tokens = torch.randn(3, 7, prefix + 12)
    tokens = tokens.transpose(1, 2).contiguous() if contiguous else tokens.transpose(1, 2)
    indices = torch.rand(3, 12).argsort(1)[:, :5]
    expected = [
        torch.cat([t[:prefix], t[prefix:][i]]) for t, i in zip(tokens, indices, strict=True)
    ]
    assert torch.equal(gather(tokens, indices, prefix), torch.stack(expected))
    assert gather(tokens, indices, prefix).is_contiguous()
    assert len(operations(gather, tokens, indices, prefix)) <= (4 if contiguous else 5)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [
        ("augreg", torch.float32, 26),
        ("gap", torch.float32, 26),
        ("hf_vit", torch.float32, 26),
        ("augreg", torch.bfloat16, 29),
        ("hf_vit", torch.bfloat16, 29),
    ],
)
def test_what_merging_costs_a_block(name: str, dtype: torch.dtype, most: int, keep: float) -> None:
    """It was 63 in float32 and 66 in bfloat16, whose means are taken in float32."""
    case = CASES[name]
    x, scores = case.pixels(2).to(dtype), torch.rand(2, 8, 8, device=DEVICE)
    added = []
    for depth in (1, 2, 3):
        dense = operations(case.logits, case.build(depth=depth).to(dtype), x)
        model = case.build(depth=depth).to(dtype)
        papr.prune(model, keep, lambda _: scores, merge=papr.Merge(4, 0.0))
        added.append(more(operations(case.logits, model, x), dense))
    cut, first, second, third = (
        0 if keep == 1 else MOST[name] - 1,
        *(sum(a.values()) for a in added),
    )
    assert first - cut < most, added[0]  # no mask, no sizes
    assert second - first == third - second <= most, added[2]
