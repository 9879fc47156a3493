"""A budget for each image: what it keeps, and that it answers as if it were alone."""

import copy
import inspect
import pickle
import threading
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import papr
from conftest import DEVICE, TOLERANCE
from papr.baselines import centre_scores
from papr.budgets import SHARES, STEPS, budgets, default_share, fit, from_zero, ladder
from papr.measure import count_macs
from tiny import DROPPING, TIMM_CASES, Case
from tiny_pyramid import PYRAMID_CASES
from tiny_video import VIDEO_CASES

SHARE = 0.75


def detail(pixels: Tensor) -> Tensor:
    """Scores (B, 8, 8) of images of 64 x 64: how far pixels are from grey."""
    return nn.functional.avg_pool2d(pixels.abs().mean(1, keepdim=True), 8)[:, 0]


AUTO = papr.PruneConfig(keep=0.5, proposal=detail, share=SHARE)


def slow_budget(scores: Tensor, share: float, target: float) -> int:
    """One image's, patch by patch."""
    weights = sorted((max(0.0, float(w)) for w in scores.flatten()), reverse=True)
    wanted, carried = 0, 0.0
    if not sum(weights):
        wanted = int(target * len(weights) + 1e-6)
    while carried < share * sum(weights) and wanted < len(weights):
        carried += weights[wanted]
        wanted += 1
    steps = [min(len(weights), int(target * s * len(weights) + 1e-6)) for s in STEPS]
    return min(steps, key=lambda step: (abs(step - wanted), step))


def varied(batch: int = 6) -> Tensor:
    """Images of which some have their detail in one corner, so that budgets differ."""
    images = torch.randn(batch, 3, 64, 64, device=DEVICE) * 0.3
    for place in range(batch):
        images[place, :, : 8 * place + 8, : 8 * place + 8] *= 4
    return images


def alone(model: nn.Module, case: Case, images: Tensor, counts: Tensor) -> Tensor:
    """Each image on its own through a host with its own fixed keep."""
    answers = []
    for image, count in zip(images, counts.tolist(), strict=True):
        papr.prune(model, (count + 0.5) / 64 if count < 64 else 1.0, detail)
        answers.append(case.logits(model, image.unsqueeze(0)))
    return torch.cat(answers)


def test_budgets_are_those_counted_patch_by_patch():
    scores = torch.randn(40, 7, 9) * torch.linspace(0.1, 3, 40).view(-1, 1, 1) + 1
    for share, target in ((0.3, 0.25), (0.6, 0.5), (0.9, 0.8), (0.5, 1.0)):
        found = budgets(scores, share, target)
        assert found.tolist() == [slow_budget(s, share, target) for s in scores]
        assert found[7:8].equal(budgets(scores[7:8], share, target))
    assert len(budgets(scores, 0.6, 0.5).unique()) > 2


def test_a_map_without_anything_positive_gets_the_targets_count():
    scores = torch.stack([-torch.ones(4, 4), torch.zeros(4, 4), torch.ones(4, 4)])
    for share in (0.1, 0.9):
        assert budgets(scores, share, 0.5)[:2].tolist() == [8, 8]
        assert slow_budget(scores[0], share, 0.5) == 8
    assert budgets(scores, 0.1, 0.5)[2] == 6
    model = papr.prune(
        TIMM_CASES["augreg"].build(depth=1), "auto", centre_scores(8), target=0.6, share=0.7
    )
    model(varied(2))
    assert papr.selection(model).counts.tolist() == [38, 38]
    assert ladder(0.8, 196)[-1] == 196
    assert ladder(0.01, 4) == [1]


def test_a_share_that_misses_the_target_is_not_given():
    with pytest.raises(papr.ConfigError, match="something above 0 to share out, got 2 maps"):
        papr.calibrate(varied(2), 0.5, centre_scores(8), (8, 8))
    scores = torch.rand(5, 8, 8) + 0.1
    assert fit(scores, 0.5) < 1
    scores[:, 2:] = -1  # 16 of 64 patches carry all: whatever the share, the lowest step is nearer
    with pytest.raises(papr.ConfigError, match=r"carried by 32 of 64 .* got 24\.0 at the best"):
        fit(scores, 0.5)
    assert 0 < fit(scores, 0.25) < 1
    spike = torch.zeros(1, 8, 8)
    spike[0, 3, 3] = 1
    with pytest.raises(papr.ConfigError, match=r"got 24\.0 at the best"):
        fit(spike, 0.5)


def test_a_share_for_softcam_is_calibrated_on_softcam():
    net = timm.create_model("test_resnet", num_classes=7).eval().to(DEVICE)
    nn.init.normal_(net.fc.weight, std=2)
    proposal = papr.Proposal(net, size="input")
    images = torch.cat([varied(), torch.randn(10, 3, 64, 64, device=DEVICE)])
    share = papr.calibrate(images, 0.5, proposal, (8, 8), score="softcam")
    assert share != pytest.approx(papr.calibrate(images, 0.5, proposal, (8, 8)), abs=1e-3)
    model = TIMM_CASES["augreg"].build(depth=1)
    options = {"keep": "auto", "target": 0.5, "share": share, "score": "softcam"}
    papr.prune(model, proposal=proposal, mean=(0.5,) * 3, std=(0.5,) * 3, **options)
    model(images)
    assert abs(float(papr.selection(model).counts.float().mean()) - 32) <= 2
    with pytest.raises(papr.ConfigError, match=r"a callable"):
        papr.calibrate(images, 0.5, detail, (8, 8), score="softcam")
    with pytest.raises(papr.ConfigError, match=r"got 'motion'"):
        papr.calibrate(images, 0.5, proposal, (8, 8), score="motion")


def test_calibration_reaches_the_target_in_the_mean():
    images = torch.cat([varied(), torch.randn(58, 3, 64, 64, device=DEVICE)])
    share = papr.calibrate(images.split(16), 0.5, detail, (8, 8))
    one = papr.calibrate(images, 0.5, detail, (8, 8))
    assert share == pytest.approx(one, abs=1e-3)
    model = TIMM_CASES["augreg"].build(depth=1)
    papr.prune(model, keep="auto", target=0.5, share=share, proposal=detail)
    model(images)
    counts = papr.selection(model).counts.float()
    assert abs(float(counts.mean()) - 32) < 0.5
    assert float(counts.std()) > 0.5
    with pytest.raises(papr.SelectionError, match="at least one image"):
        papr.calibrate([], 0.5, detail)


#: Whose answer holds the tokens that are left: no tensor holds those of unequal budgets.
RAGGED = {"hf_vit_model", "hf_dinov3", "hf_clip_projection", "hf_siglip_model", "hf_timm_model"}


@pytest.mark.parametrize("name", [n for n in DROPPING if n not in VIDEO_CASES])
def test_every_image_answers_as_it_would_alone_with_its_own_fixed_keep(name):
    case, images = DROPPING[name], varied()
    model = case.build(depth=2)
    reference = copy.deepcopy(model)
    if hasattr(model, "text_model"):
        with pytest.raises(papr.UnsupportedModelError, match="texts"):
            papr.prune(model, AUTO)
        return
    papr.prune(model, AUTO)
    with torch.no_grad():
        if name in RAGGED:
            with pytest.raises(papr.PrunedModelError, match="alike for all images"):
                case.logits(model, images)
            return
        answer = case.logits(model, images)
        kept = papr.selection(model)
        assert len(kept.groups) > 1
        assert kept.mask().sum((1, 2)).tolist() == kept.counts.tolist()
        torch.testing.assert_close(
            answer,
            alone(reference, case, images, kept.counts),
            rtol=0,
            atol=TOLERANCE[torch.float32],
        )
    assert kept.of(3).indices.equal(kept.mask()[3].flatten().nonzero().T)
    assert kept.counts.tolist() == [slow_budget(s, SHARE, 0.5) for s in kept.scores]
    with pytest.raises(papr.SelectionError, match=r"ask for \.mask"):
        _ = kept.indices


@pytest.mark.parametrize("name", ["augreg", "hf_vit", "torchvision"])
def test_an_image_keeps_its_patches_whatever_stands_beside_it(name):
    case, images = DROPPING[name], varied()
    model = papr.prune(case.build(depth=1), AUTO)
    case.logits(model, images)
    together = papr.selection(model).mask()
    for place in (0, 5):
        case.logits(model, images[place : place + 1])
        assert papr.selection(model).mask()[0].equal(together[place])


def test_what_was_pruned_is_the_same_model_when_unpruned_copied_or_saved():
    model = TIMM_CASES["dinov2_registers"].build(depth=1)
    images = varied()
    keys, cls, dense = list(model.state_dict()), type(model), model(images)
    papr.prune(papr.prune(model, 0.5, detail), AUTO)
    answer = model(images)
    assert papr.is_pruned(model)
    assert list(model.state_dict()) == keys
    assert isinstance(model, cls)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin(images).equal(answer)
        assert papr.unprune(twin)(images).equal(dense)
    assert model(images).equal(answer)
    assert papr.prune(model, AUTO)(images).equal(answer)  # pruned anew
    assert papr.unprune(model)(images).equal(dense)
    assert type(model) is cls


def test_the_proposal_looks_once_and_gradients_are_those_of_each_image_alone():
    case, images = TIMM_CASES["augreg"], varied()
    model = case.build(depth=1)
    reference = copy.deepcopy(model)
    looks = []

    def scores(pixels: Tensor) -> Tensor:
        looks.append(len(pixels))
        return detail(pixels)

    config = papr.PruneConfig(keep=0.5, proposal=scores, share=SHARE)
    papr.prune(model, config)(images).square().sum().backward()
    assert looks == [6]
    alone(reference, case, images, papr.selection(model).counts).square().sum().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_threads_do_not_see_each_others_budgets():
    model = papr.prune(TIMM_CASES["augreg"].build(depth=1), AUTO)
    batches = [varied(6), varied(3).flip(0)]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    wrong: list[int] = []

    def work(which: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not model(batches[which]).equal(expected[which]):
                    wrong.append(which)
        if len(papr.selection(model).counts) != len(batches[which]):
            wrong.append(which)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_empty_batch_answers():
    model = papr.prune(TIMM_CASES["augreg"].build(depth=1), AUTO)
    assert model(torch.empty(0, 3, 64, 64, device=DEVICE)).shape == (0, 10)


def test_what_runs_for_each_group_is_compiled():
    """The original forward is: as many graphs with attention as there are counts."""
    model = papr.prune(TIMM_CASES["augreg"].build(depth=1), AUTO)
    with_attention = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        nodes = [str(node.target) for node in graph.graph.nodes]
        with_attention.append(any("scaled_dot_product_attention" in node for node in nodes))
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        for images in (varied(4), varied(4).flip(0)):
            expected, chosen = model(images), papr.selection(model)
            assert compiled(images).equal(expected)
            found = papr.selection(model)
            assert found.counts.equal(chosen.counts)
            assert found.mask().equal(chosen.mask())
    assert sum(with_attention) == len(chosen.groups) > 1


@pytest.mark.parametrize("name", ["augreg", "hf_vit", "torchvision"])
def test_the_forward_shows_the_signature_that_it_had(name):
    """What is not in it, transformers' Trainer drops from a data set."""
    model = DROPPING[name].build(depth=1)
    before = inspect.signature(model.forward)
    papr.prune(model, AUTO)
    assert inspect.signature(model.forward) == before
    assert inspect.signature(copy.deepcopy(model).forward) == before
    assert "args" not in before.parameters


def test_less_work_is_done_for_smaller_budgets():
    model = TIMM_CASES["augreg"].build(depth=2)
    few, many = (papr.PruneConfig(keep=0.5, proposal=detail, share=s) for s in (0.05, 0.95))
    macs = [count_macs(papr.prune(model, config), varied()) for config in (few, many)]
    assert macs[0].total < 0.75 * macs[1].total


def test_what_cannot_have_budgets_is_refused_before_anything_is_changed(tmp_path):
    for cases, why in ((PYRAMID_CASES, "grid dense"), (VIDEO_CASES, "takes clips")):
        model = next(iter(cases.values())).build(depth=1)
        with pytest.raises(papr.ConfigError, match=why):
            papr.prune(model, AUTO)
        assert not papr.is_pruned(model)
    model = TIMM_CASES["augreg"].build(depth=1)
    for options, why in (
        ({"keep": "auto", "proposal": detail}, "papr.calibrate"),
        ({"keep": "auto", "target": 0.1}, "papr.calibrate"),
        ({"keep": "auto", "proposal_size": 96}, "papr.calibrate"),
        ({"keep": "auto", "score": "softcam"}, "papr.calibrate"),
        ({"keep": 0.5, "target": 0.4}, 'keep="auto"'),
        ({"keep": "auto", "share": 1.0}, "0 < share < 1"),
        ({"keep": "auto", "share": 0.5, "reference": True}, "reference"),
        ({"keep": "auto", "target": 1.0, "share": 0.5}, "below 1"),
        ({"keep": "auto", "share": 0.5, "merge": papr.Merge(2)}, "neither merge, pool nor recut"),
        ({"keep": "some"}, "0 < keep"),
    ):
        with pytest.raises(papr.ConfigError, match=why):
            papr.prune(model, **options)
        assert not papr.is_pruned(model)
    papr.prune(model, AUTO)
    with pytest.raises(papr.ExportError, match="fixed keep"):
        papr.export(model, tmp_path / "host.onnx")
    with pytest.raises(papr.PrunedModelError, match="fixed keep"):
        torch.export.export(model, (varied(),), strict=False)
    with pytest.raises(papr.PrunedModelError, match="fixed keep"):
        torch.jit.trace(model, varied(), check_trace=False)
    with pytest.raises(papr.PrunedModelError, match="whole model"):
        model.forward_features(varied())


def test_the_configuration_goes_through_json_and_has_a_share_of_its_own():
    config = papr.PruneConfig(keep=0.4, share=0.61)
    assert papr.PruneConfig.from_json(config.to_json()) == config
    assert default_share(0.5, "glance") == SHARES["glance"][0.5]
    assert default_share(0.5, "efficientnet_lite0") == SHARES["efficientnet_lite0"][0.5]
    between = default_share(0.55, "glance")
    assert between == pytest.approx((SHARES["glance"][0.5] + SHARES["glance"][0.6]) / 2)


@pytest.mark.parametrize("name", SHARES)
def test_the_shares_measured_keep_their_target_on_photographs(name, shared_data):
    from papr.images import fit as crop
    from papr.images import load_image, to_pixels

    files = sorted((shared_data / "imagenet-sample").glob("*/*.jpg"))[3::24]  # not measured on
    pixels = torch.cat([to_pixels(crop(load_image(f), 224, 16, square=True)) for f in files])
    proposal = papr.Proposal(name)
    scorer = proposal.scorer(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        scores = papr.significance.to_grid(scorer((pixels - 0.5) / 0.5), (14, 14))
    scores = from_zero(scores, proposal)
    for target, share in SHARES[name].items():
        assert abs(float(budgets(scores, share, target).float().mean()) / 196 - target) < 0.04
        assert abs(fit(scores, target) - share) < 0.05


@torch.no_grad()
def test_a_host_whose_part_was_unpruned_is_refused_in_one_line() -> None:
    case = DROPPING["hf_vit"]
    model, x = papr.prune(case.build(), AUTO), varied()
    case.logits(model, x)
    papr.unprune(model.vit)
    with pytest.raises(papr.PrunedModelError, match=r"as papr\.prune left it") as caught:
        case.logits(model, x)
    assert "\n" not in str(caught.value)
