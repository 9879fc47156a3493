"""Gradients of each sample by torch.func, as Opacus's functorch mode takes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from conftest import DEVICE
from tiny import CASES


@pytest.mark.parametrize("name", ["augreg", "torchvision", "swin", "convnext"])
def test_gradients_of_each_sample_are_those_of_it_alone(name: str) -> None:
    case = CASES[name]
    model = case.prune(case.build(depth=2), 0.5)
    weights = {key: value.detach() for key, value in model.named_parameters()}
    images, classes = case.pixels(3), torch.tensor([1, 2, 3], device=DEVICE)

    def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, weights, (image[None],))
        return F.cross_entropy(logits, target[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, classes)
    for row in range(3):
        model.zero_grad()
        F.cross_entropy(model(images[row : row + 1]), classes[row : row + 1]).backward()
        for key, weight in model.named_parameters():
            expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
            assert (found[key][row] - expected).abs().max() < 1e-4
