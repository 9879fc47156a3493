"""The selections PaPr must beat: fair, repeatable, and free of hidden waits on a GPU."""

import pytest
import torch

import papr
from conftest import DEVICE
from papr.baselines import centre_scores, random_scores
from tiny import CASES


def test_random_scores_repeat_with_the_seed_and_change_with_the_call() -> None:
    pixels = torch.zeros(2, 3, 32, 48, device=DEVICE)
    scores, again, other = random_scores(1), random_scores(1), random_scores(2)
    first = scores(pixels)
    assert first.shape == (2, 4, 6)
    assert first.device.type == DEVICE.type
    assert torch.equal(first, again(pixels))
    assert not torch.equal(first, other(pixels))
    second = scores(pixels)
    assert not torch.equal(first, second)
    assert torch.equal(second, again(pixels))


def test_random_scores_leave_the_global_seed_alone() -> None:
    before = torch.random.get_rng_state()
    random_scores()(torch.zeros(1, 3, 16, 16))
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.no_grad()
def test_random_selection_gives_every_patch_the_same_chance() -> None:
    """64 patches, half kept, 2000 draws: each is kept 1000 times, give or take five sigma."""
    model = papr.prune(CASES["augreg"].build(depth=1), 0.5, random_scores())
    kept = torch.zeros(8, 8, device=DEVICE)
    for _ in range(10):
        model(torch.zeros(200, 3, 64, 64, device=DEVICE))
        kept += papr.selection(model).mask().sum(0)
    assert (kept - 1000).abs().max() < 5 * (2000 * 0.25) ** 0.5


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA tells of hidden waits")
def test_random_scores_do_not_make_the_device_wait() -> None:
    pixels = torch.zeros(2, 3, 32, 32, device=DEVICE)
    scores = random_scores()
    scores(pixels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scores(pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_centre_scores_fall_with_the_distance() -> None:
    scores = centre_scores()(torch.zeros(1, 3, 40, 40, device=DEVICE))[0]
    assert scores.argmax() == 12
    assert torch.allclose(scores, scores.flip(0))
    assert torch.allclose(scores, scores.T)
