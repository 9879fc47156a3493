"""The significance map against NumPy, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import papr
import reference
from papr.errors import ProposalError
from papr.significance import channel_mean, check_scores, to_grid


@settings(max_examples=15, deadline=None)
@given(
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 9999),
)
def test_equals_numpy(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    features = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed))
    ours = papr.significance_map(features, (rows, columns)).numpy()
    theirs = reference.significance(features.numpy(), rows, columns)
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_always_float32(dtype: torch.dtype) -> None:
    features = torch.randn(2, 8, 4, 4).to(dtype)
    ours = papr.significance_map(features, (7, 5))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, papr.significance_map(features.float(), (7, 5)), atol=1e-6)


def test_trilinear_in_3d_reaches_the_corners() -> None:
    scores = torch.randn(2, 3, 4, 5)
    resized = to_grid(scores, (6, 8, 9))
    assert resized.shape == (2, 6, 8, 9)
    corners = [0, -1]
    for t in corners:
        for y in corners:
            for x in corners:
                assert torch.allclose(resized[:, t, y, x], scores[:, t, y, x])


@pytest.mark.parametrize("value", [torch.zeros(2, 1000), torch.zeros(3), [1, 2], None])
def test_no_feature_map(value: object) -> None:
    with pytest.raises(ProposalError, match="expected a feature map"):
        channel_mean(value)  # type: ignore[arg-type]


def test_integer_features_and_scores() -> None:
    with pytest.raises(ProposalError, match="floating"):
        channel_mean(torch.zeros(1, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ProposalError, match=r"floating scores.*int64 tensor \(1, 3, 3\)"):
        to_grid(torch.zeros(1, 3, 3, dtype=torch.int64), (4, 4))


def test_scores_of_another_rank() -> None:
    with pytest.raises(ProposalError, match=r"scores \(B, h, w\) for the grid \(4, 4\)"):
        to_grid(torch.zeros(1, 2, 3, 3), (4, 4))
    with pytest.raises(ProposalError, match=r"scores \(B, t, h, w\)"):
        to_grid(torch.zeros(1, 3, 3), (2, 4, 4))


@pytest.mark.parametrize("grid", [(14, 14), (7, 9), (1, 1), (8, 14, 14), (1, 3, 5)])
def test_scores_on_the_grid_are_what_the_resize_would_give(grid: tuple[int, ...]) -> None:
    scores = torch.randn(2, *grid)
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    slowly = F.interpolate(scores.unsqueeze(1), size=grid, mode=mode, align_corners=True)
    assert torch.equal(to_grid(scores, grid), slowly.squeeze(1))
    assert torch.equal(to_grid(scores.half(), grid), scores.half().float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_finite_scores_whose_sum_is_not(dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    scores = torch.full((2, 14, 14), largest, dtype=dtype)
    check_scores(scores)
    for bad in ([float("nan")], [float("inf")], [float("-inf")], [float("inf"), float("-inf")]):
        scores[1, 3, : len(bad)] = torch.tensor(bad)
        with pytest.raises(ProposalError, match=f"finite scores, got {len(bad)} NaN or infinite"):
            check_scores(scores)
        scores[1, 3, : len(bad)] = 0
