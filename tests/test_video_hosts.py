"""Video hosts: the native mask as an oracle, what they refuse, options of their own."""

import copy
import itertools
import threading

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import papr
from conftest import DEVICE, TOLERANCE
from papr.baselines import centre_scores, random_scores
from papr.graft import states
from papr.proposals.scorers import GlanceScorer
from tiny import prune
from tiny_video import SMALL_VIDEO, VIDEO_CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")

MAE = VIDEO_CASES["hf_videomae"]


def masked_logits(dense: nn.Module, clips: Tensor, chosen: papr.Selection) -> Tensor:
    """What VideoMAE answers when it is told itself which patches it may see."""
    hidden = dense.videomae(clips, bool_masked_pos=~chosen.mask().flatten(1)).last_hidden_state
    return dense.classifier(dense.fc_norm(hidden.mean(1)))


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.05, 0.35, 0.45, 0.9])
def test_native_mask_gives_the_same_logits(keep: float) -> None:
    model, clips = MAE.build(), MAE.pixels(4)
    dense = copy.deepcopy(model)
    logits = prune(model, keep)(clips).logits
    chosen = papr.selection(model)
    assert chosen.indices.shape == (4, int(keep * 64))
    assert (logits - masked_logits(dense, clips, chosen)).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_the_giant_of_version_2_has_patches_of_14_pixels() -> None:
    """VideoMAE v2's ViT-g: other patches, MLPs and head widths, same classes."""
    options = {**SMALL_VIDEO, "hidden_size": 88, "num_attention_heads": 1, "patch_size": 14}
    more = {"image_size": 56, "num_frames": 4, "intermediate_size": 384, "num_hidden_layers": 2}
    model = hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**options, **more)).eval()
    model, clips = model.to(DEVICE), torch.randn(2, 4, 3, 56, 56, device=DEVICE)
    dense = copy.deepcopy(model)
    logits = prune(model, 0.4)(clips).logits
    chosen = papr.selection(model)
    assert chosen.grid == (2, 4, 4)
    assert (logits - masked_logits(dense, clips, chosen)).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_reference_mode_counts_no_class_token() -> None:
    """In images it does; in video K is int(keep T H W), ViViT's class token or not."""
    case = VIDEO_CASES["hf_vivit"]
    model = prune(case.build(), 0.99, reference=True)
    model(case.pixels(1))
    assert papr.selection(model).indices.shape == (1, 63)  # 0.99 * 65 would be 64


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("hf_videomae", (2, 6, 3, 64, 64), r"64 patches.*got 6 frames of 64 x 64.*3 x 4 x 4 = 48"),
        ("hf_videomae", (2, 9, 3, 96, 64), r"64 patches.*got 9 frames of 96 x 64.*4 x 6 x 4 = 96"),
        ("hf_vivit", (2, 10, 3, 64, 64), r"64 patches.*got 10 frames of 64 x 64.*5 x 4 x 4 = 80"),
        ("hf_videomae", (2, 3, 64, 64), r"clip \(B, T, 3, H, W\), got a float32 tensor \(2, 3, 64"),
        ("hf_videomae", (2, 3, 8, 64, 64), r"clip \(B, T, 3, H, W\), got a float32 tensor \(2, 3"),
    ],
)
def test_other_clips_are_refused_with_the_numbers(name: str, shape, message: str) -> None:
    model = prune(VIDEO_CASES[name].build(depth=1), 0.5)
    with pytest.raises(papr.SelectionError, match=message):
        model(torch.randn(*shape, device=DEVICE))
    with pytest.raises(papr.SelectionError, match=r"floating clip .*got a uint8 tensor"):
        model(MAE.pixels(1).to(torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize(("frames", "tubelets"), [(1, 1), (2, 1), (7, 3), (12, 6)])
def test_vjepa2_takes_other_lengths(frames: int, tubelets: int) -> None:
    """Of one frame it makes a tubelet by repeating it; what is left over it leaves out."""
    case = VIDEO_CASES["hf_vjepa2"]
    model, clips = case.build(), torch.randn(2, frames, 3, 64, 64, device=DEVICE)
    dense = copy.deepcopy(model)
    logits = prune(model, 0.5, score="motion")(clips).logits
    assert papr.selection(model).grid == (tubelets, 4, 4)
    expected = case.logits_on_kept(dense, clips, model)
    assert (logits - expected).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_vjepa2_predictor_is_refused_while_pruned() -> None:
    """It would take the kept patches for the first ones of the clip."""
    model, clips = VIDEO_CASES["hf_vjepa2"].build().vjepa2, MAE.pixels(1)
    dense = model(clips).predictor_output.last_hidden_state
    prune(model, 0.5)
    with pytest.raises(papr.PrunedModelError, match="skip_predictor=True"):
        model(clips)
    assert model(clips, skip_predictor=True).last_hidden_state.shape == (1, 32, 48)
    papr.unprune(model)
    assert torch.equal(model(clips).predictor_output.last_hidden_state, dense)


def test_hosts_that_cannot_be_pruned_say_why() -> None:
    small = {**SMALL_VIDEO, "intermediate_size": 96, "num_hidden_layers": 1, "image_size": 32}
    config = hf.VideoMAEConfig(**small, num_frames=4, use_mean_pooling=False)
    reason = papr.supported(hf.VideoMAEForVideoClassification(config)).reason
    assert "use_mean_pooling=False" in str(reason)
    reason = papr.supported(hf.VideoMAEForPreTraining(config)).reason
    assert "VideoMAEForPreTraining" in str(reason)
    assert "pretraining" in str(reason)


@torch.no_grad()
def test_no_selection_of_vjepa2_outlives_its_pass() -> None:
    model = prune(VIDEO_CASES["hf_vjepa2"].build(depth=2), 0.5)
    model(MAE.pixels(1))
    with pytest.raises(papr.SelectionError, match="got tokens only"):
        model.vjepa2.encoder.layer[0](torch.randn(1, 64, 48, device=DEVICE), None)


def test_motion_takes_no_gradient_and_refuses_what_is_not_finite() -> None:
    model, clips = prune(MAE.build(depth=1), 0.5, score="motion"), MAE.pixels(1).requires_grad_()
    model(clips).logits.sum().backward()
    assert clips.grad.abs().sum() > 0
    assert not papr.selection(model).scores.requires_grad
    broken = MAE.pixels(1)
    broken[0, 3, 0, 5, 5] = float("nan")  # a frame that the proposal does not look at
    if DEVICE.type == "cpu":
        with pytest.raises(papr.ProposalError, match="expected finite scores"):
            model(broken)


@torch.no_grad()
def test_a_mask_given_to_a_pruned_host_is_refused() -> None:
    model, clips = MAE.build(depth=1).videomae, MAE.pixels(1)
    mask = torch.arange(64, device=DEVICE).view(1, 64) < 16
    dense = model(clips, mask).last_hidden_state
    prune(model, 0.5)
    with pytest.raises(papr.SelectionError, match=r"bool_masked_pos=None.*bool tensor \(1, 64\)"):
        model(clips, mask)
    assert torch.equal(prune(model, 1.0)(clips, mask).last_hidden_state, dense)


@torch.no_grad()
@pytest.mark.parametrize("frames", [8, 10, 34])
def test_an_image_proposal_sees_the_first_frame_of_each_tubelet(frames: int) -> None:
    """And its maps are stacked over time, also where it looks at them in several goes."""
    model = VIDEO_CASES["hf_vjepa2"].build(depth=1)
    clips = torch.randn(2, frames, 3, 64, 64, device=DEVICE)
    who = papr.Proposal()
    papr.prune(model, 0.5, who, proposal_size=64)
    model(clips)
    scorer = who.scorer(torch.device("cpu"), torch.float32, 64)
    assert type(scorer) is GlanceScorer
    firsts = range(0, frames, 2)
    by_hand = torch.stack([scorer(clips[:, frame].cpu()) for frame in firsts], dim=1)
    grid = (frames // 2, 4, 4)
    expected = papr.select(papr.significance_map(by_hand.unsqueeze(1), grid), frames * 4)
    assert torch.equal(papr.selection(model).indices.cpu(), expected.indices)


@torch.no_grad()
def test_the_proposal_sees_what_the_patches_cover() -> None:
    """Of a clip that is no multiple of the patch the rest is cut off, as the host does."""
    model = VIDEO_CASES["hf_vjepa2"].build(depth=1)
    clips = torch.randn(1, 9, 3, 70, 75, device=DEVICE)
    seen = []

    def scores(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels.mean(1)

    papr.prune(model, 0.5, scores)(clips)
    assert torch.equal(seen[0], clips[:, :8, :, :64, :64].transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("scores", [random_scores(), centre_scores()])
def test_baselines_score_clips(scores) -> None:
    model, clips = MAE.build(depth=1), MAE.pixels(2)
    papr.prune(model, 0.25, scores)(clips)
    chosen = papr.selection(model)
    assert chosen.indices.shape == (2, 16)
    assert chosen.scores.shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score": "motion"},
            r'score="significance" or "softcam" and reuse=1 for a timm Vis.*score=.motion',
        ),
        ({"reuse": 4}, "reuse=4"),
        ({"proposal_size": (8, 32, 32)}, r"\(height, width\).*got \(8, 32, 32\)"),
    ],
)
def test_image_hosts_refuse_the_options_of_video(options: dict, message: str) -> None:
    from tiny import CASES

    model = CASES["augreg"].build(depth=1)
    with pytest.raises(papr.ConfigError, match=message):
        prune(model, 0.5, **options)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "cam"}, 'expected score "significance" or "softcam" or "motion", got .cam'),
        ({"motion_weight": 1.5}, "0 <= motion_weight <= 1, got 1.5"),
        ({"motion_weight": True}, "motion_weight <= 1, got True"),
        ({"reuse": 0}, "number of clips from 1, got 0"),
        ({"reuse": 1.5}, "number of clips from 1, got 1.5"),
        ({"reuse": 2, "reuse_threshold": -1}, "at least 0, got -1"),
        ({"reuse": 2, "reuse_threshold": float("inf")}, "finite reuse_threshold.*got inf"),
        ({"reuse_threshold": 0.5}, "with reuse > 1, got 0.5 with 1"),
        ({"motion_weight": 0.7}, "motion_weight with score=.motion., got 0.7"),
        ({"score": "motion", "reference": True}, "significance.* in reference mode, got .motion"),
        ({"proposal_size": (8, 160, 0)}, "height, width"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(papr.ConfigError, match=message):
        papr.PruneConfig(**options)


def test_options_round_trip() -> None:
    config = papr.PruneConfig(
        score="motion", motion_weight=0.7, reuse=4, reuse_threshold=1, proposal_size=(8, 160, 160)
    )
    assert papr.PruneConfig.from_json(config.to_json()) == config


class Looks:
    """A proposal that counts the clips it was shown and scores them by their first channel."""

    def __init__(self) -> None:
        self.clips = 0

    def __call__(self, clips: Tensor) -> Tensor:
        self.clips += clips.shape[0]
        return clips[:, 0, ::2, ::16, ::16]


@torch.no_grad()
def test_a_stream_is_looked_at_once_for_n_clips() -> None:
    looks, model = Looks(), MAE.build(depth=1)
    papr.prune(model, 0.5, looks, reuse=3, reuse_threshold=10)
    kept = []
    for _ in range(7):
        model(MAE.pixels(1))
        kept.append(papr.selection(model).indices)
    assert looks.clips == 3  # at clips 1, 4 and 7
    same = [torch.equal(a, b) for a, b in itertools.pairwise(kept)]
    assert same == [True, True, False, True, True, False]


@torch.no_grad()
def test_a_slow_drift_is_noticed() -> None:
    """The picture is compared with the one the map was made from, not with the last one."""
    looks, model = Looks(), MAE.build(depth=1)
    papr.prune(model, 0.5, looks, reuse=100, reuse_threshold=0.25)
    clips = MAE.pixels(1)
    counts = []
    for _ in range(7):
        model(clips)
        counts.append(looks.clips)
        clips = clips + 0.1
    assert counts == [1, 1, 1, 2, 2, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 64, 64), (8, 64, 128), (8, 32, 64)])
def test_clips_of_another_shape_start_anew(shape: tuple[int, int, int]) -> None:
    model = VIDEO_CASES["hf_vjepa2"].build(depth=1)
    frames, height, width = shape
    first = torch.zeros(2, 8, 3, 64, 64, device=DEVICE)
    other = torch.randn(2, frames, 3, height, width, device=DEVICE) * 0.01
    papr.prune(model, 0.5, reuse=9)(first)
    model(other)
    chosen = papr.selection(model)
    alone = papr.prune(VIDEO_CASES["hf_vjepa2"].build(depth=1), 0.5)
    alone(other)
    assert chosen.grid == papr.selection(alone).grid == (frames // 2, height // 16, width // 16)
    assert torch.equal(chosen.indices, papr.selection(alone).indices)


@torch.no_grad()
def test_a_changed_picture_is_looked_at_at_once_and_only_it() -> None:
    """Two streams in a batch; one of them cuts to another scene."""
    looks, model = Looks(), MAE.build(depth=1)
    papr.prune(model, 0.5, looks, reuse=100, reuse_threshold=0.5)
    first, other = MAE.pixels(2), MAE.pixels(2)
    model(first)
    before = papr.selection(model).indices
    cut = torch.stack([first[0], other[1] + 1])
    model(cut)
    chosen = papr.selection(model).indices
    assert looks.clips == 3
    assert torch.equal(chosen[0], before[0])
    assert not torch.equal(chosen[1], before[1])
    alone = papr.prune(MAE.build(depth=1), 0.5, Looks())
    alone(cut)
    assert torch.equal(chosen, papr.selection(alone).indices)
    model(cut[:1])  # fewer streams than before: they cannot be the same ones
    assert looks.clips == 4


def test_reuse_looks_at_everything_where_gradients_flow_or_threads_differ() -> None:
    looks, model, clips = Looks(), MAE.build(depth=1), MAE.pixels(1)
    papr.prune(model, 0.5, looks, reuse=100)
    for _ in range(2):
        model(clips)
    assert looks.clips == 2
    with torch.no_grad():
        for _ in range(3):
            model(clips)
        assert looks.clips == 3

        thread = threading.Thread(target=lambda: torch.no_grad()(model)(clips))
        thread.start()
        thread.join()
        assert looks.clips == 4
        copy.deepcopy(model)(clips)
        assert looks.clips == 5  # a copy has streams of its own


@torch.no_grad()
def test_compiled_code_has_no_memory_and_says_so() -> None:
    torch._dynamo.reset()
    model = papr.prune(MAE.build(depth=1), 0.5, Looks(), reuse=2)
    (state,) = states(model)  # by itself: torch 2.6 does not compile transformers 5.0
    compiled = torch.compile(state.scorer, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="expected reuse=1 in compiled or exported code"):
        compiled(MAE.pixels(1).transpose(1, 2))
    torch._dynamo.reset()
