"""Video in reference mode, against the NumPy reference; the arithmetic of the paper's table."""

import copy

import numpy as np
import pytest
import torch

import papr
import reference
from conftest import DEVICE, TOLERANCE
from papr.measure import count_macs
from papr.named import create_video
from papr.proposals.clips import ClipScorer, resize_clip
from test_video_hosts import masked_logits
from tiny_video import VIDEO_CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")

MAE = VIDEO_CASES["hf_videomae"]
NETS = {"x3d_s": 160, "slowonly_r50": 224}


@pytest.fixture(scope="module", params=NETS)
def proposal(request: pytest.FixtureRequest) -> papr.Proposal:
    """A clip network with random weights."""
    torch.manual_seed(0)
    return papr.Proposal(request.param, pretrained=False)


@torch.no_grad()
def test_reference_mode(proposal: papr.Proposal) -> None:
    """Clip to 8 x side x side, map to 8 x 14 x 14, int(keep N) patches; keep counted by hand."""
    model = MAE.build(depth=1, size=(224, 224), num_frames=16)
    clips = torch.randn(1, 16, 3, 224, 224, device=DEVICE)
    dense = copy.deepcopy(model)
    papr.prune(model, 0.35, proposal, reference=True)
    logits = model(clips).logits
    chosen = papr.selection(model)

    side = NETS[proposal.name]
    pixels = clips[0].transpose(0, 1).cpu().numpy()
    small = reference.trilinear(pixels, 8, side, side)
    features = proposal.net.forward_features(torch.from_numpy(small).float()[None])[0].numpy()
    assert features.shape[1] == 8
    scores = reference.trilinear(features.astype(np.float64).mean(0), 8, 14, 14)
    assert np.abs(chosen.scores[0].cpu().numpy() - scores).max() < 1e-4 * np.abs(scores).max()
    assert chosen.grid == (8, 14, 14)
    assert chosen.indices.shape == (1, 548)  # int(0.35 * 1568)
    kept = set(reference.kept(scores[None], 548)[0].tolist())
    assert len(kept ^ set(chosen.indices[0].tolist())) <= 2  # rounding may turn the last one around
    difference = (logits - masked_logits(dense, clips, chosen)).abs().max()
    assert difference < TOLERANCE[torch.float32]


@pytest.mark.parametrize("size", [(8, 160, 160), (1, 3, 5), (3, 7, 4), (16, 9, 9)])
def test_trilinear_resize_is_the_reference_one(size: tuple[int, int, int]) -> None:
    clip = torch.randn(2, 3, 5, 9, 6)
    expected = reference.trilinear(clip.numpy(), *size)
    assert np.abs(resize_clip(clip, size).numpy() - expected).max() < 1e-5


def test_aligned_weights_by_hand() -> None:
    assert np.allclose(
        reference.aligned_weights(3, 5),
        [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]],
    )


@pytest.mark.parametrize(
    ("size", "clip", "expected"),
    [
        (None, (16, 224, 224), (8, 160, 160)),  # one frame a tubelet, shorter side 160
        (None, (16, 224, 448), (8, 160, 320)),
        (None, (4, 64, 96), (2, 64, 96)),  # never enlarged
        (112, (16, 224, 448), (8, 112, 224)),
        ((96, 128), (16, 224, 224), (8, 96, 128)),
        ((5, 96, 128), (16, 224, 224), (5, 96, 128)),
        ("input", (16, 64, 64), (16, 64, 64)),
    ],
)
def test_sizes_that_a_clip_network_looks_at(size, clip, expected) -> None:
    who = papr.Proposal("x3d_s", pretrained=False)
    scorer = who.scorer(torch.device("cpu"), torch.float32, size, tubelet=2)
    assert isinstance(scorer, ClipScorer)
    assert scorer._target(torch.empty(1, 3, *clip, device="meta")) == expected


def test_networks_that_stride_in_time_see_every_frame() -> None:
    who = papr.Proposal("r2plus1d_18", pretrained=False)
    scorer = who.scorer(torch.device("cpu"), torch.float32, tubelet=2)
    assert scorer._target(torch.empty(1, 3, 16, 224, 224, device="meta")) == (16, 112, 112)


def test_a_clip_too_short_for_the_network_is_refused_with_the_numbers() -> None:
    scorer = papr.Proposal("s3d", pretrained=False).scorer(
        torch.device("cpu"), torch.float32, tubelet=2
    )
    with pytest.raises(papr.ProposalError, match=r"at least 5 frames.*got 4 of a clip of 4"):
        scorer(torch.rand(1, 3, 4, 64, 64))
    assert scorer(torch.rand(1, 3, 5, 64, 64)).shape == (1, 1, 2, 2)


@torch.no_grad()
def test_clips_are_renormalised_for_the_network() -> None:
    """From the host's mean and std to those the network was trained with."""
    who = papr.Proposal("x3d_s", pretrained=False)
    own = who.scorer(torch.device("cpu"), torch.float32, tubelet=2)
    host = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    affine = who.scorer(torch.device("cpu"), torch.float32, None, *host, tubelet=2)
    pixels = torch.rand(1, 3, 4, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in host)
    expected = own((pixels - 0.45) / 0.225)
    assert torch.allclose(affine((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)


def test_an_image_host_refuses_a_clip_network() -> None:
    from tiny import CASES

    model = CASES["augreg"].build(depth=1)
    with pytest.raises(papr.ProposalError, match=r"looks at images.*x3d_s.*looks at clips"):
        papr.prune(model, 0.5, papr.Proposal("x3d_s", pretrained=False))
    assert not papr.is_pruned(model)


@pytest.mark.parametrize(("keep", "printed"), [(0.45, 75.6), (0.35, 58.7)])
def test_macs_are_the_papers(keep: float, printed: float) -> None:
    """VideoMAE-B: the formula to 0.1 %; with X3D-M on the whole clip what the paper prints."""
    model, weights = create_video("videomae_base", random_weights=True)
    assert weights.random
    model.to("meta")  # where nothing is computed
    clip = torch.empty(1, 16, 3, 224, 224, device="meta")
    who = papr.Proposal("x3d_m", pretrained=False, size="input")
    assert count_macs(model, clip).host / 1e9 == pytest.approx(180, rel=0.01)
    macs = count_macs(papr.prune(model, keep, who), clip)
    n, d = int(keep * 1568), 768
    formula = 1568 * d * 2 * 16 * 16 * 3 + 12 * (12 * n * d**2 + 2 * n**2 * d) + d * 400
    assert macs.host == pytest.approx(formula, rel=1e-3)
    assert macs.total / 1e9 == pytest.approx(printed, rel=0.01)
