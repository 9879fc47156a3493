"""torchvision's VisionTransformer: its attention has a fast path in eval mode."""

import copy

import pytest
import torch
import torchvision
from torchvision.models.vision_transformer import VisionTransformer

import papr
from conftest import DEVICE, TOLERANCE
from papr.errors import UnsupportedModelError
from tiny import CASES, no_fast_path, prune


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, device=DEVICE)


def test_fast_path_slow_path_and_training_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = prune(CASES["torchvision"].build(), 0.4), images()
    native, lengths = torch._native_multi_head_attention, []

    def counted(query, *args, **kwargs):
        lengths.append(query.shape[1])
        return native(query, *args, **kwargs)

    monkeypatch.setattr(torch, "_native_multi_head_attention", counted)
    with torch.no_grad():
        fast = model(x)
        assert lengths == [1 + int(0.4 * 64)] * 3
        with no_fast_path():
            slow = model(x)
    trained = model.train()(x)  # without dropout, the same answer
    assert len(lengths) == 3
    assert trained.requires_grad
    assert (fast - slow).abs().max() < TOLERANCE[torch.float32]
    assert (trained - slow).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_other_sizes_are_refused_as_by_the_dense_host() -> None:
    model = prune(CASES["torchvision"].build(), 0.5)
    with pytest.raises(AssertionError, match="Wrong image height"):
        model(images(72))


@torch.no_grad()
def test_a_model_of_the_zoo() -> None:
    model = torchvision.models.vit_b_32(image_size=128).eval().to(DEVICE)
    model.encoder.layers = model.encoder.layers[:1]
    with pytest.warns(papr.PaprWarning, match=r"mean=weights\.transforms\(\)\.mean, std=weights"):
        papr.prune(model, 0.5, papr.Proposal())
    model(torch.randn(1, 3, 128, 128, device=DEVICE))
    assert papr.selection(model).grid == (4, 4)
    assert papr.selection(model).indices.shape == (1, 8)


def test_refusals_say_whose_vision_transformer() -> None:
    class Own(VisionTransformer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(self._process_input(x)).mean(1)

    options = {"image_size": 64, "patch_size": 8, "num_layers": 1, "num_heads": 3}
    model = Own(**options, hidden_dim=48, mlp_dim=96)
    with pytest.raises(UnsupportedModelError, match=r"torchvision\.models\.vision_transformer\.V"):
        prune(model)
    broken = copy.deepcopy(CASES["torchvision"].build())
    del broken.encoder.dropout
    message = r"VisionTransformer has no encoder\.dropout to cut at"
    with pytest.raises(UnsupportedModelError, match=message):
        prune(broken)
    with pytest.raises(UnsupportedModelError, match=r"prune torchvision\.models\.resnet\.ResNet:"):
        prune(torchvision.models.resnet18())
