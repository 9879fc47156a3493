"""glance, the proposal that papr ships: a small ConvNet trained to say where something is.

It answers in one pass with the significance map that larger classifiers give; `training/glance`
says how it was made. Dense convolutions only, few of them, and no padding kernels, resizes or norms
in between: on a GPU each operation costs its launch, and depthwise convolutions cost memory.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.config import Triple
from papr.significance import in_transform

#: Pixels between two cells of the map.
STRIDE = 16
#: What the pixels it takes are normalised with, for pixels in [0, 1].
MEAN: Triple = (0.5, 0.5, 0.5)
STD: Triple = (0.5, 0.5, 0.5)

WIDTHS = (32, 64, 96)
DEPTHS = (0, 1, 4)


class Glance(nn.Module):
    """Pixels (B, 3, H, W) to a significance map (B, H // 16, W // 16).

    Three stages of strides 4, 8 and 16. Each begins with a convolution whose kernel is its stride,
    which needs no padding; 3 x 3 convolutions follow; a ReLU stands behind each. The map is a
    weighted sum of the last channels, and the weights come from the channels' means over the
    picture, so that the scene as a whole counts: a class activation map (Zhou et al., CVPR 2016,
    arXiv 1512.04150) whose class the picture chooses.

    Args:
        widths: channels of each stage, multiples of 8.
        depths: 3 x 3 convolutions of each stage.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, depths: Sequence[int] = DEPTHS) -> None:
        super().__init__()
        convs, before = [], 3
        for width, depth, step in zip(widths, depths, (4, 2, 2), strict=True):
            convs.append(nn.Conv2d(before, width, step, step))
            convs += [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
            before = width
        self.convs = nn.ModuleList(convs)
        self.weigh = nn.Linear(before, before)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), normalised by mean and std 0.5, to (B, H // 16, W // 16)."""
        x = pixels
        for conv in self.convs:
            x = conv_relu(conv, x)
        weights = self.weigh(x.mean((2, 3)))
        scores = torch.bmm(weights.unsqueeze(1), x.flatten(2))
        return scores.view(x.shape[0], *x.shape[2:])


def conv_relu(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution and the ReLU behind it: one kernel where cuDNN has it, in eager code."""
    if isinstance(conv, nn.Conv2d) and _has_one_kernel(x):
        given = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return torch.ops.aten.cudnn_convolution_relu(x, conv.weight, conv.bias, *given)  # type: ignore[no-any-return]
    return F.relu(conv(x))


def _has_one_kernel(x: Tensor) -> bool:
    """Whether `cudnn_convolution_relu` can run, which has no gradient, and no rule anywhere else.

    Compilers fuse the two by themselves.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or type(x) is not Tensor:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or torch.version.hip:
        return False
    if torch._C._get_tracing_state() is not None or in_transform(x):
        return False
    # which chooses its algorithm without asking for one that is deterministic
    if torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
        return False
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False  # cuDNN has no such convolutions there; PyTorch has its own
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()


def folded(net: Glance, scale: Triple, shift: Triple) -> Glance:
    """A copy that takes pixels which are still to be scaled and shifted, channel by channel.

    Its first convolution does both: exactly, since its kernel is its stride and nothing is padded.

    Args:
        net: left as it is.
        scale: what pixels would be multiplied by.
        shift: what would be added then.
    """
    net = copy.deepcopy(net)
    first = net.convs[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    weight = first.weight.detach().double()
    moved = weight.new_tensor(shift).view(3, 1, 1) * weight
    scaled = weight.new_tensor(scale).view(3, 1, 1) * weight
    first.bias.data = (first.bias.detach() + moved.sum((1, 2, 3))).to(first.bias.dtype)
    first.weight.data = scaled.to(first.weight.dtype)
    return net
