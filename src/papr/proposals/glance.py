"""glance, the proposal that papr ships: a small ConvNet trained to say where something is.

It answers in one pass with the significance map that larger classifiers give; `training/glance`
says how it was made. Dense convolutions only, few of them, and no padding kernels, resizes or norms
in between: on a GPU each operation costs its launch, and depthwise convolutions cost memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Pixels between two cells of the map.
STRIDE = 16

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
            x = F.relu(conv(x))
        weights = self.weigh(x.mean((2, 3)))
        scores = torch.bmm(weights.unsqueeze(1), x.flatten(2))
        return scores.view(x.shape[0], *x.shape[2:])
