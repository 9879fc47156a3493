"""X3D and SlowOnly a second time: as functions of a checkpoint under its own project's names.

Written from the papers' tables and the two projects' module names, and independent of papr's
networks and of its tables of names. Norms are folded into a scale and a shift by hand.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Name = Callable[[int, int, str], str]  # stage, block, role -> key prefix

PYTORCHVIDEO_ROLES = {
    "conv1": "branch2.conv_a",
    "norm1": "branch2.norm_a",
    "conv2": "branch2.conv_b",
    "norm2": "branch2.norm_b",
    "conv3": "branch2.conv_c",
    "norm3": "branch2.norm_c",
    "shortcut": "branch1_conv",
    "shortcut_norm": "branch1_norm",
}
MMACTION2_ROLES = {
    "conv1": "conv1.conv",
    "norm1": "conv1.bn",
    "conv2": "conv2.conv",
    "norm2": "conv2.bn",
    "conv3": "conv3.conv",
    "norm3": "conv3.bn",
    "shortcut": "downsample.conv",
    "shortcut_norm": "downsample.bn",
    "down": "se_module.fc1",
    "up": "se_module.fc2",
}
X3D_PYTORCHVIDEO_ROLES = PYTORCHVIDEO_ROLES | {
    "norm2": "branch2.norm_b.0",
    "down": "branch2.norm_b.1.block.0",
    "up": "branch2.norm_b.1.block.2",
}


def normalise(weights: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.weight" not in weights:
        return x
    scale = weights[f"{name}.weight"] / (weights[f"{name}.running_var"] + 1e-5).sqrt()
    shift = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
    return x * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)


def convolve(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    same = tuple(size // 2 for size in weight.shape[2:])
    groups = x.shape[1] // weight.shape[1]
    return F.conv3d(
        x, weight, weights.get(f"{name}.bias"), (1, stride, stride), same, groups=groups
    )


def x3d(weights: Weights, clip: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Feature map and logits of X3D-S or X3D-M."""
    if layout == "pytorchvideo":
        space, time, norm = "blocks.0.conv.conv_t", "blocks.0.conv.conv_xy", "blocks.0.norm"
        prefix, roles = "blocks.{}.res_blocks.{}.", X3D_PYTORCHVIDEO_ROLES
        last = ("blocks.5.pool.pre_conv", "blocks.5.pool.pre_norm")
        hidden, classes = "blocks.5.pool.post_conv", "blocks.5.proj"
    else:
        space, time, norm = "backbone.conv1_s.conv", "backbone.conv1_t.conv", "backbone.conv1_t.bn"
        prefix, roles = "backbone.layer{}.{}.", MMACTION2_ROLES
        last = ("backbone.conv5.conv", "backbone.conv5.bn")
        hidden, classes = "cls_head.fc1", "cls_head.fc2"
    x = convolve(weights, time, convolve(weights, space, clip, stride=2))
    x = normalise(weights, norm, x).clamp(min=0)
    for stage, depth in enumerate((3, 5, 11, 7), start=1):
        for block in range(depth):
            name = {k: prefix.format(stage, block) + v for k, v in roles.items()}
            x = x3d_block(weights, name, x, stride=1 if block else 2, squeeze=block % 2 == 0)
    features = normalise(weights, last[1], convolve(weights, last[0], x)).clamp(min=0)
    pooled = features.mean((2, 3, 4))
    inner = (pooled @ weights[f"{hidden}.weight"].flatten(1).T).clamp(min=0)
    return features, inner @ weights[f"{classes}.weight"].T + weights[f"{classes}.bias"]


def x3d_block(
    weights: Weights, name: dict[str, str], x: Tensor, stride: int, squeeze: bool
) -> Tensor:
    y = normalise(weights, name["norm1"], convolve(weights, name["conv1"], x)).clamp(min=0)
    y = normalise(weights, name["norm2"], convolve(weights, name["conv2"], y, stride))
    if squeeze:
        z = convolve(weights, name["down"], y.mean((2, 3, 4), keepdim=True)).clamp(min=0)
        y = y * torch.sigmoid(convolve(weights, name["up"], z))
    y = normalise(weights, name["norm3"], convolve(weights, name["conv3"], y * torch.sigmoid(y)))
    return (y + shortcut(weights, name, x, stride)).clamp(min=0)


def slowonly(
    weights: Weights, clip: Tensor, layout: str, depths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Feature map and logits of a SlowOnly."""
    if layout == "pytorchvideo":
        stem, norm, classes = "blocks.0.conv", "blocks.0.norm", "blocks.5.proj"
        prefix, roles = "blocks.{}.res_blocks.{}.", PYTORCHVIDEO_ROLES
    else:
        stem, norm = "backbone.conv1.conv", "backbone.conv1.bn"
        classes = "cls_head.fc_cls"
        prefix, roles = "backbone.layer{}.{}.", MMACTION2_ROLES
    x = normalise(weights, norm, convolve(weights, stem, clip, stride=2)).clamp(min=0)
    x = torch.stack([F.max_pool2d(frame, 3, 2, 1) for frame in x.unbind(2)], dim=2)
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            name = {k: prefix.format(stage, block) + v for k, v in roles.items()}
            stride = 2 if stage > 1 and block == 0 else 1
            y = normalise(weights, name["norm1"], convolve(weights, name["conv1"], x)).clamp(min=0)
            y = convolve(weights, name["conv2"], y, stride)
            y = normalise(weights, name["norm2"], y).clamp(min=0)
            y = normalise(weights, name["norm3"], convolve(weights, name["conv3"], y))
            x = (y + shortcut(weights, name, x, stride)).clamp(min=0)
    logits = x.mean((2, 3, 4)) @ weights[f"{classes}.weight"].T + weights[f"{classes}.bias"]
    return x, logits


def shortcut(weights: Weights, name: dict[str, str], x: Tensor, stride: int) -> Tensor:
    if f"{name['shortcut']}.weight" not in weights:
        return x
    return normalise(weights, name["shortcut_norm"], convolve(weights, name["shortcut"], x, stride))


def convolve_slowly(x: np.ndarray, weight: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """A 3-D convolution position by position, (C, t, h, w), padded by half the kernel."""
    outputs, per_group = weight.shape[:2]
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), *((size // 2, size // 2) for size in kernel)])
    _, t, h, w = x.shape
    result = np.zeros((outputs, t, -(-h // stride), -(-w // stride)))
    for o, i, j, k in np.ndindex(*result.shape):
        first = o // (outputs // groups) * per_group
        window = padded[
            first : first + per_group,
            i : i + kernel[0],
            j * stride : j * stride + kernel[1],
            k * stride : k * stride + kernel[2],
        ]
        result[o, i, j, k] = (window * weight[o]).sum()
    return result
