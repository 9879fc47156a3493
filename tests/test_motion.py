"""Motion: against the NumPy reference, and what it is for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import papr
import reference
from papr.motion import mix, motion_map
from tiny_video import VIDEO_CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@settings(max_examples=25, deadline=None)
@given(
    tubelets=st.integers(1, 4),
    tubelet=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_map_is_the_reference_one(tubelets, tubelet, rows, columns, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(2, 3, tubelets * tubelet, rows * 4, columns * 4, generator=generator)
    found = motion_map(clip, (tubelets, rows, columns))
    expected = np.stack([reference.motion(one.numpy(), tubelet, 4) for one in clip])
    assert found.shape == (2, tubelets, rows, columns)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_mixing_is_by_rank_of_neither_unit() -> None:
    """Scaling significance or motion of one clip changes nothing."""
    significance, motion = torch.rand(2, 2, 3, 3), torch.rand(2, 2, 3, 3)
    scores = mix(significance, motion, 0.3)
    assert torch.allclose(mix(significance * 100 - 7, motion * 0.01, 0.3), scores, atol=1e-4)
    ends = mix(significance, motion, 0.0), mix(significance, motion, 1.0)
    for end, alone in zip(ends, (significance, motion), strict=True):
        assert torch.equal(end.flatten(1).argsort(), alone.flatten(1).argsort())


def test_a_still_clip_is_ranked_by_significance_alone() -> None:
    significance = torch.rand(1, 4, 4, 4)
    still = mix(significance, torch.zeros(1, 4, 4, 4), 0.9)
    assert torch.equal(still.flatten().argsort(), significance.flatten().argsort())


@torch.no_grad()
def test_under_a_static_camera_what_moves_stays() -> None:
    """A square walks over a textured background that the proposal finds as significant as it."""
    case = VIDEO_CASES["hf_videomae"]
    model = case.build(depth=1)
    clip = torch.rand(1, 1, 3, 64, 64).expand(-1, 8, -1, -1, -1).clone()
    for frame in range(8):  # one patch further with each tubelet
        left = frame // 2 * 16
        clip[:, frame, :, 16:32, left : left + 16] = torch.rand(3, 16, 16)
    generator = torch.Generator().manual_seed(1)

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(pixels), 4, 4, 4, generator=generator)

    papr.prune(model, 8 / 64, noise, score="motion", motion_weight=0.9)(clip)
    kept = papr.selection(model).mask()[0]
    walk = torch.zeros(4, 4, 4, dtype=torch.bool)
    for t in range(4):  # where it is, and what it uncovers; the first tubelet looks ahead
        walk[t, 1, [t, t - 1 if t else 1]] = True
    assert torch.equal(kept, walk)
