"""Dense features: the host's own numbers where it kept, a named filling elsewhere."""

import math

import pytest
import torch
from torch import nn

import papr
from conftest import DEVICE
from papr.selecting import FILLS
from tiny import CASES, DROPPING
from tiny_pyramid import PYRAMID_CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@torch.no_grad()
@pytest.mark.parametrize("name", DROPPING)
def test_dropped_cells_are_filled_and_kept_ones_are_the_hosts(name: str) -> None:
    case = DROPPING[name]
    model = case.prune(case.build(), 0.5)
    x = case.pixels(2)
    features, kept = papr.features(model, x, fill="zero")
    tokens = case.tokens(model, x)
    prefix = case.prefix if case.head_prefix is None else case.head_prefix
    assert features.shape == (2, tokens.shape[-1], *case.grid())
    assert kept.sum() == 64
    for b in range(2):
        own = features[b].flatten(1)[:, kept[b].flatten()].T
        assert torch.equal(own, tokens[b, prefix:])
        assert not features[b].flatten(1)[:, ~kept[b].flatten()].any()


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMID_CASES)
def test_the_map_of_a_dense_grid(name: str) -> None:
    """At keep=1 it is the dense host's; pruned, ConvNeXt's empty cells are filled, Swin's stay."""
    case = PYRAMID_CASES[name]
    model = case.build()
    x = torch.randn(2, 3, 64, 64, device=DEVICE)
    whole, kept = papr.features(case.prune(model, 1.0), x)
    assert kept.all()
    assert whole.shape[-2:] == kept.shape[-2:]
    case.prune(model, 0.5)
    zero, kept = papr.features(model, x, fill="zero")
    assert zero.shape == whole.shape
    assert 0 < kept.sum() < kept.numel()
    nearest, _ = papr.features(model, x)
    empty = ~kept.unsqueeze(1).expand_as(zero)
    if "convnext" in name:
        assert not zero[empty].any()
        assert nearest[empty].any()
        assert torch.equal(nearest[~empty], zero[~empty])
    else:
        assert zero[empty].any()
        assert torch.equal(nearest, zero)


@pytest.mark.parametrize("fill", FILLS)
def test_fills_by_hand(fill: str) -> None:
    """Against loops over cells, on a grid that is not square."""
    rows, columns, kept = 4, 7, 9
    scores = torch.rand(3, rows, columns)
    chosen = papr.select(scores, kept)
    tokens = torch.randn(3, kept, 5)
    filled = chosen.restore(tokens, fill)
    for b in range(3):
        places = [divmod(i, columns) for i in chosen.indices[b].tolist()]
        for y in range(rows):
            for x in range(columns):
                if (y, x) in places:
                    expected = tokens[b, places.index((y, x))]
                elif fill == "zero":
                    expected = torch.zeros(5)
                elif fill == "mean":
                    expected = sum(tokens[b]) / kept
                else:
                    distances = [math.hypot(y - i, x - j) for i, j in places]
                    expected = tokens[b, distances.index(min(distances))]
                assert torch.allclose(filled[b, :, y, x], expected, atol=1e-6)


def test_gradients_reach_the_host_through_features() -> None:
    model = CASES["dinov2"].prune(CASES["dinov2"].build(), 0.5)
    papr.features(
        model, torch.randn(1, 3, 64, 64, device=DEVICE), fill="nearest"
    ).map.sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_a_stage_left_dense_is_all_there() -> None:
    case = PYRAMID_CASES["convnext"]
    model = case.prune(case.build(), 0.5, stages=(0, 1))
    _, kept = papr.features(model, torch.randn(1, 3, 64, 64, device=DEVICE))
    assert kept.all()


def test_a_segmentation_head_on_a_non_square_image() -> None:
    """Grid cells stand where their pixels are: a bright stripe lands in its own column."""
    case = CASES["dinov2"]
    model = case.prune(case.build(), 0.5)
    features, kept = papr.features(model, torch.randn(2, 3, 32, 96, device=DEVICE), fill="mean")
    assert features.shape[-2:] == kept.shape[-2:] == (4, 12)
    assert nn.Conv2d(48, 3, 1).to(DEVICE)(features).shape == (2, 3, 4, 12)


def test_bad_input() -> None:
    model = CASES["augreg"].build()
    x = torch.randn(1, 3, 64, 64, device=DEVICE)
    with pytest.raises(papr.PrunedModelError, match=r"expected a pruned model.*keep=1"):
        papr.features(model, x)
    CASES["augreg"].prune(model)
    with pytest.raises(papr.SelectionError, match="expected fill among zero, nearest, mean, got"):
        papr.features(model, x, fill="blur")
    CASES["augreg"].prune(model, trace=False)
    assert papr.features(model, x).kept.sum() == 32
