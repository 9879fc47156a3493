"""SlowOnly: the slow pathway of SlowFast alone (Feichtenhofer et al., ICCV 2019).

arXiv 1812.03982, table 1: a ResNet-50 or -101 on few frames, with convolutions over time in its
last two stages only, and no stride in time anywhere.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from papr.proposals.layers import Sizes, conv_norm

#: Blocks in each of the four stages, by the ResNet's depth.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
#: What the first convolution of each block sees, (t, h, w), by stage.
KERNELS: tuple[Sizes, ...] = ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1))
STEM = 64


class Bottleneck(nn.Module):
    """Narrow, look at 3 x 3 pixels, widen fourfold, add."""

    def __init__(
        self, inputs: int, inner: int, kernel: Sizes, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, inner, kernel)
        self.conv2 = conv_norm(inner, inner, (1, 3, 3), stride)
        self.conv3 = conv_norm(inner, 4 * inner, (1, 1, 1))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) to (B, 4 * inner, t, ceil(h / stride), ceil(w / stride))."""
        inner = F.relu(self.conv1(x), inplace=True)
        inner = F.relu(self.conv2(inner), inplace=True)
        return F.relu(self.conv3(inner) + self.shortcut(x), inplace=True)


class SlowOnly(nn.Module):
    """SlowOnly R50 or R101.

    Args:
        classes: of the head.
        depths: blocks in each of the four stages; see `DEPTHS`.
    """

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, classes: int = 400, depths: tuple[int, int, int, int] = DEPTHS[50]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv3d(3, STEM, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
                norm=nn.BatchNorm3d(STEM),
                relu=nn.ReLU(inplace=True),
                pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            )
        )
        inputs = STEM
        for number, (depth, kernel) in enumerate(zip(depths, KERNELS, strict=True), start=1):
            inner, stride = STEM * 2 ** (number - 1), 1 if number == 1 else 2
            shortcut = conv_norm(inputs, 4 * inner, (1, 1, 1), stride)
            blocks = [Bottleneck(inputs, inner, kernel, stride, shortcut)]
            blocks += [
                Bottleneck(4 * inner, inner, kernel, 1, nn.Identity()) for _ in range(1, depth)
            ]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            inputs = 4 * inner
        self.num_features = inputs
        self.head = nn.ModuleDict({"classes": nn.Linear(inputs, classes)})

    def forward_features(self, clip: Tensor) -> Tensor:
        """The last convolutional feature map: the last stage's, after its ReLU.

        Args:
            clip: (B, 3, T, H, W), any size; normalised as the weights were trained.

        Returns:
            (B, 2048, T, ceil(H / 32), ceil(W / 32)); 8 x 224 x 224 gives 8 x 7 x 7.
        """
        x: Tensor = self.stem(clip)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
        return x

    def forward(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) to logits (B, classes), the mean taken over the whole map."""
        logits: Tensor = self.head["classes"](self.forward_features(clip).mean((2, 3, 4)))
        return logits
