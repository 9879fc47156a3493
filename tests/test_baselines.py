"""The selections PaPr must beat: fair, repeatable, and free of hidden waits on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

import papr
from conftest import DEVICE
from papr.baselines import (
    centre_scores,
    lower_resolution,
    norm_scores,
    oracle_scores,
    random_scores,
    stride_scores,
)
from papr.baselines.resolution import nearest_grid
from papr.measure import count_macs
from tiny import CASES, DROPPING
from tiny_video import VIDEO_CASES


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


def test_without_a_seed_the_draws_are_those_of_torchs_own_generator() -> None:
    """Whatever was drawn before, the same seed of torch's gives the same selection."""
    pixels, scores = torch.zeros(2, 3, 32, 48, device=DEVICE), random_scores(None)
    torch.manual_seed(7)
    first, second = scores(pixels), scores(pixels)
    assert first.shape == (2, 4, 6)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(scores(pixels), first)
    torch.manual_seed(8)
    assert not torch.equal(random_scores(None)(pixels), first)


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


def kept(scores: Tensor, count: int) -> Tensor:
    return papr.select(scores, count).mask()


@torch.no_grad()
def test_stride_is_every_second_row_and_column_at_a_quarter_and_a_checkerboard_at_a_half() -> None:
    for name, scores in (("augreg", stride_scores(8)), ("hf_vit", stride_scores((8, 8)))):
        case = CASES[name]
        for keep in (0.25, 0.5):
            model = papr.prune(case.build(depth=1), keep, scores)
            case.logits(model, case.pixels(2))
            y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
            expected = (y % 2 == 0) & (x % 2 == 0) if keep == 0.25 else (y + x) % 2 == 0
            assert torch.equal(papr.selection(model).mask().cpu(), expected.expand(2, 8, 8))


def bayer(size: int) -> Tensor:
    """The dither matrix as textbooks write it, by recursion."""
    if size == 1:
        return torch.zeros(1, 1)
    m = 4 * bayer(size // 2)
    return torch.cat([torch.cat([m, m + 2], 1), torch.cat([m + 3, m + 1], 1)])


@pytest.mark.parametrize("grid", [(16, 16), (14, 14), (7, 13), (1, 9)])
def test_stride_ranks_by_bayer_and_spreads_every_share(grid: tuple[int, int]) -> None:
    scores = stride_scores(4)(torch.zeros(1, 3, 4 * grid[0], 4 * grid[1]))
    cut = bayer(16)[: grid[0], : grid[1]]
    patches = grid[0] * grid[1]
    assert torch.equal(-scores[0].flatten(), cut.flatten().argsort().argsort().float())
    if grid != (16, 16):
        return
    for count in range(1, patches + 1):  # every quarter and sixteenth of the image has its share
        chosen = kept(scores, count).float().unsqueeze(0)
        for parts in (2, 4):
            shares = F.adaptive_avg_pool2d(chosen, parts) * patches / parts**2
            assert shares.max() - shares.min() < 1 + 1e-3


def test_stride_takes_the_same_patches_of_every_frame() -> None:
    scores = stride_scores(8, tubelet=2)(torch.zeros(2, 3, 8, 32, 48))
    assert scores.shape == (2, 4, 4, 6)
    mask = kept(scores, 4 * 12)
    alone = kept(stride_scores(8)(torch.zeros(1, 3, 32, 48)), 12)
    assert torch.equal(mask, alone.unsqueeze(1).expand_as(mask))
    per_frame = kept(scores, 4 * 12 + 2).sum((2, 3))
    assert per_frame.tolist() == [[13, 12, 13, 12]] * 2


#: What a host normalises between the cut and its first block is no part of the embedding.
NORMED_LATER = ("clip", "perception_encoder", "hf_clip", "hf_clip_projection")


@pytest.mark.parametrize("name", [name for name in DROPPING if name not in NORMED_LATER])
@torch.no_grad()
def test_norm_scores_are_of_what_the_first_block_sees(name: str) -> None:
    case = CASES[name]
    model, images = case.build(depth=1), case.pixels(2)
    before = case.logits(model, images)
    scores = norm_scores(papr.prune(model, 0.5, random_scores()))
    papr.unprune(model)
    seen: list[Tensor] = []
    handle = case.blocks(model)[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    assert torch.equal(case.logits(model, images), before)
    handle.remove()
    expected = torch.linalg.vector_norm(seen[0][:, case.prefix :], dim=-1)
    found = scores(images.transpose(1, 2) if name in VIDEO_CASES else images)
    assert found.shape == (2, *case.grid())
    assert torch.allclose(found.flatten(1), expected, rtol=1e-5)


@torch.no_grad()
def test_norm_scores_cost_the_embedding_only() -> None:
    case = CASES["augreg"]
    model = case.build()
    macs = count_macs(papr.prune(model, 0.5, norm_scores(model)), case.pixels(2)).per_image(2)
    assert macs.proposal == 64 * 48 * 3 * 8 * 8
    assert macs.host == count_macs(papr.prune(model, 0.5, random_scores()), case.pixels(1)).host


def test_norm_scores_refuse_a_host_that_keeps_its_grid() -> None:
    with pytest.raises(papr.UnsupportedModelError, match="whose tokens are dropped, got a timm Sw"):
        norm_scores(CASES["swin"].build(depth=1))


def test_oracle_hands_out_scores_in_order_and_begins_again() -> None:
    table = torch.rand(5, 2, 3)
    scores = oracle_scores(table)
    given = [scores(torch.zeros(n, 3, 16, 24)) for n in (2, 2, 1, 3)]
    assert torch.equal(torch.cat(given), torch.cat([table, table[:3]]))
    with pytest.raises(papr.SelectionError, match="at most the 5 images there are scores of, got"):
        scores(torch.zeros(6, 3, 16, 24))
    assert oracle_scores(given.append) == given.append
    for wrong in (3, torch.rand(5), torch.ones(5, 2, 3, dtype=torch.int64)):
        with pytest.raises(papr.ConfigError, match="expected"):
            oracle_scores(wrong)


@pytest.mark.parametrize(
    ("grid", "count", "expected"),
    [((14, 14), 98, (10, 10)), ((14, 28), 196, (10, 20)), ((28, 14), 100, (14, 7)),
     ((14, 14), 196, (14, 14)), ((8, 8), 1, (1, 1)), ((3, 4), 6, (2, 3))],
)  # fmt: skip
def test_the_smaller_grid_has_the_aspect_ratio_and_the_nearest_count(
    grid: tuple[int, int], count: int, expected: tuple[int, int]
) -> None:
    assert nearest_grid(grid, count) == expected


@torch.no_grad()
def test_lower_resolution_is_the_host_built_for_that_size() -> None:
    case = CASES["augreg"]
    model, images = case.build(), case.pixels(2)
    before = model(images)
    lower = lower_resolution(papr.prune(model, 0.5, random_scores()), 32, images)
    assert (lower.size, lower.grid, lower.count) == ((48, 48), (6, 6), 36)
    assert torch.equal(papr.unprune(model)(images), before)
    weights = model.state_dict()
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], (6, 6), num_prefix_tokens=1)
    small = case.build(size=(48, 48))
    small.load_state_dict(weights)
    shrunk = F.interpolate(images, size=(48, 48), mode="bilinear", antialias=True)
    assert (lower(images) - small(shrunk)).abs().max() < 1e-5


@torch.no_grad()
def test_lower_resolution_of_torchvision_resamples_as_torchvision_does() -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    case = CASES["torchvision"]
    model, images = case.build(), case.pixels(2)
    lower = lower_resolution(model, 36, images)
    small = case.build(size=(48, 48))
    small.load_state_dict(interpolate_embeddings(48, 8, model.state_dict()))
    shrunk = F.interpolate(images, size=(48, 48), mode="bilinear", antialias=True)
    assert (lower(images) - small(shrunk)).abs().max() < 1e-5


@pytest.mark.parametrize("name", [n for n in CASES if n not in {"cait", *VIDEO_CASES}])
@torch.no_grad()
def test_every_image_host_runs_at_a_lower_resolution(name: str) -> None:
    case = CASES[name]
    model, images = case.build(depth=1), case.pixels(2)
    before = case.logits(model, images)
    lower = lower_resolution(model, case.patches() // 2, images)
    assert lower.size < (64, 64)
    assert lower.count == pytest.approx(case.patches() * lower.size[0] * lower.size[1] / 64**2)
    answer = case.logits(lower, images)
    assert answer.shape == before.shape
    assert not torch.allclose(answer, before, atol=1e-3)
    assert torch.equal(case.logits(model, images), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cait", "cannot run Cait at 48 x 48 pixels"), ("hf_videomae", "expected a host of images")],
)
def test_hosts_of_one_size_refuse_another(name: str, message: str) -> None:
    case = CASES[name]
    with pytest.raises(papr.UnsupportedModelError, match=message):
        lower_resolution(case.build(depth=1), 32, case.pixels(1))
