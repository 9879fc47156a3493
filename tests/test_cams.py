"""Class activation maps: the library's against their definitions, and what is said of each."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.baselines import cams
from papr.baselines.cams import METHODS, cam
from papr.compare.cams import CamQuality, batch_gap, compared_with, time_cams, work
from papr.errors import ConfigError, PaprError, ProposalError
from papr.measure import spread

pytest.importorskip("pytorch_grad_cam", reason="needs the extra: cam")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small random classifier with few channels (Score-CAM runs it once for each)."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=7).eval()
    nn.init.normal_(net.fc.weight, std=2)
    return net


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 96, 96)


@pytest.fixture(scope="module")
def made(net: nn.Module) -> dict[str, cams.Cam]:
    return {name: cam(name, net) for name in METHODS}


def scaled(maps: Tensor) -> np.ndarray:
    """As the library leaves them: nothing below zero, then each from 0 to 1."""
    maps = maps.clamp(min=0)
    maps = maps - maps.amin((1, 2), True)
    return (maps / (1e-7 + maps.amax((1, 2), True))).numpy()


def score_cam(net: nn.Module, image: Tensor, features: Tensor, target: int) -> Tensor:
    """Channel by channel: show what it lights up, and weigh it by the target's logit then."""
    logits = []
    for channel in features:
        mask = F.interpolate(
            channel[None, None], image.shape[-2:], mode="bilinear", align_corners=True
        )
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
        logits.append(float(net(image[None] * mask)[0, target]))
    weights = torch.tensor(logits).softmax(0)
    return (weights[:, None, None] * features).sum(0)


@torch.no_grad()
def test_maps_are_those_of_their_definitions(net, made, pixels) -> None:
    """Before a linear classifier on the mean, Grad-CAM's gradient is the classifier's row."""
    features, targets = net.forward_features(pixels), net(pixels).argmax(1)
    rows = net.fc.weight[targets][:, :, None, None]
    wanted = {
        "papr": features.mean(1).numpy(),
        "gradcam": scaled((rows * features).sum(1)),
        "layercam": scaled((rows.clamp(min=0) * features).sum(1)),
        "scorecam": scaled(
            torch.stack(
                [
                    score_cam(net, *given)
                    for given in zip(pixels, features, targets.tolist(), strict=True)
                ]
            )
        ),
    }
    for name, expected in wanted.items():
        found = made[name](pixels)
        assert found.shape == features[:, 0].shape
        assert np.abs(found.numpy() - expected).max() < 2e-3, name
    for image, found in zip(features, made["eigencam"](pixels), strict=True):
        table = image.flatten(1).T.double()
        table = table - table.mean(0)
        first = (table @ torch.linalg.svd(table)[2][0]).view_as(found)
        either = [
            scaled(sign * first[None])[0] for sign in (1, -1)
        ]  # a singular vector has no sign
        assert min(np.abs(found.numpy() - one).max() for one in either) < 2e-3


def test_gradients_stopped_at_the_feature_map_change_no_map(net, made, pixels) -> None:
    for name in ("gradcam", "gradcam++", "layercam"):
        lean = cam(name, net, only_last=True)(pixels)
        assert torch.allclose(lean, made[name](pixels), atol=1e-5)


def test_what_is_said_of_gradients_and_batches_is_so(made, pixels, monkeypatch) -> None:
    """Backward passes are counted; and convolutions and SVDs, which a batch must not multiply."""
    counts = {"backward": 0, "work": 0}

    def counting(what: str, original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            counts[what] += 1
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(Tensor, "backward", counting("backward", Tensor.backward))
    monkeypatch.setattr(F, "conv2d", counting("work", F.conv2d))
    monkeypatch.setattr(nn.Conv2d, "forward", counting("work", nn.Conv2d.forward))
    monkeypatch.setattr(np.linalg, "svd", counting("work", np.linalg.svd))
    for name, method in made.items():
        work = []
        for batch in (pixels[:1], pixels):
            counts.update(backward=0, work=0)
            method(batch)
            work.append(counts["work"])
            assert (counts["backward"] > 0) == method.needs_gradients, name
        assert work[0] > 0
        assert (work[1] == work[0]) == method.batches, name


def test_a_batch_gives_the_maps_of_its_images(made, pixels) -> None:
    for name, method in made.items():
        assert name == "scorecam" or batch_gap(method, pixels) < 1e-4
        assert not method(pixels[:1]).requires_grad


def test_network_and_gradient_mode_are_left_alone(net, pixels) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        assert cam("gradcam", net)(pixels + 0).isfinite().all()
        assert not torch.is_grad_enabled()
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_errors(net, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"a method among papr, .*, got 'fullgrad'"):
        cam("fullgrad", net)
    with pytest.raises(ProposalError, match="with forward_features, got a Sequential"):
        cam("gradcam", nn.Sequential(nn.Conv2d(3, 4, 3)))
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(PaprError, match=r"pip install 'papr-torch\[cam\]'"):
        cam("gradcam", net)
    assert cam("softcam", net).needs_gradients is False


@pytest.mark.parametrize(
    "names", [["papr", "eigencam", "scorecam"], ["scorecam"], ["scorecam", "papr"]]
)
def test_timing_counts_every_call_once(made, pixels, names: list[str]) -> None:
    chosen = {name: made[name] for name in names}
    counted: list[int] = []
    times = time_cams(chosen, pixels, rounds=2, warmup=1, each_turn=counted.append)
    assert sum(counted) == work(chosen, 3, rounds=2)
    assert list(times) == names
    for name, figures in times.items():
        assert set(figures.ms_per_image) == {1, 3}
        assert (figures.batch_gap is None) == (name == "scorecam")
    assert times[compared_with(names)].slower[3] == (1, 1, 1)
    if "scorecam" in names:
        assert times["scorecam"].ms_per_image[1] == times["scorecam"].ms_per_image[3]
        assert times["scorecam"].gain == (1, 1, 1)


@torch.inference_mode()
def test_quality_is_that_of_the_kept_patches(net) -> None:
    """A judge that wants the bright half: brightness serves it, darkness does not."""

    def judge(x: Tensor) -> Tensor:
        return torch.stack([4 * x.amax((1, 2, 3)), torch.full((len(x),), 3.0)], dim=1)

    pixels = torch.rand(4, 3, 96, 96) * 0.2
    pixels[:, :, :48] += 0.8  # seen as 1 of -1..1, its mean as less
    bright, dark = (lambda x, sign=sign: sign * x.mean(1)[:, ::16, ::16] for sign in (1, -1))
    maps = {"papr": bright, "scorecam": dark}
    quality = CamQuality(maps, net, judge, keep=0.5, steps=4)
    quality.add(pixels[:3], skip=["scorecam"])
    quality.add(pixels[3:], with_curves=False)
    rows = quality.summary()["all images"]
    assert {name: row["images"] for name, row in rows.items()} == {
        **{"papr": 4, "scorecam": 1, "random": 4, "centre": 4, "stride": 4}
    }
    assert (rows["papr"]["agrees"], rows["scorecam"]["agrees"]) == (1, 0)
    assert (rows["papr"]["curve_images"], rows["scorecam"]["curve_images"]) == (3, 0)
    assert rows["papr"]["insertion"] > rows["random"]["insertion"] - 1e-6
    assert rows["scorecam"]["insertion"] is None
    assert quality.summary()["with scorecam"]["papr"]["images"] == 1
    quality.records[0]["confidence"], quality.records[1]["confidence"] = 0.29, 0.3
    for record in quality.records[2:]:
        record["confidence"] = 0.9
    assert quality.summary()["confidence below 0.3"]["papr"]["images"] == 1


def test_a_part_of_the_images_is_spread_evenly() -> None:
    assert spread(3, 9) == [0, 3, 6]
    assert spread(20, 5) == list(range(5))
    assert spread(0, 5) == []
    assert len(spread(7, 500)) == 7
