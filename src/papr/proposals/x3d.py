"""X3D: Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR 2020.

arXiv 2004.04730, table 1 and section 4. X3D-S and X3D-M are one network (3.8 M parameters); they
differ in what they are shown: 13 frames of 160 x 160 px against 16 frames of 224 x 224 px.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from papr.proposals.layers import conv_norm

#: Blocks in each of the four stages of X3D-S and X3D-M.
DEPTHS = (3, 5, 11, 7)
WIDTHS = (24, 48, 96, 192)
#: Channels of the hidden layer between the pooling and the classes.
HIDDEN = 2048


class SqueezeExcite(nn.Module):
    """Scales each channel by what the whole clip holds (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = squeezed(channels)
        self.down = nn.Conv3d(channels, inner, 1)
        self.up = nn.Conv3d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) to the same shape."""
        mean = x.mean((2, 3, 4), keepdim=True)
        scale: Tensor = self.up(F.relu(self.down(mean))).sigmoid()
        return x * scale


class Block(nn.Module):
    """Widen, look at 3 x 3 x 3 positions channel by channel, narrow, add."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, squeeze: bool, shortcut: nn.Module
    ) -> None:
        super().__init__()
        inner = outputs * 9 // 4
        self.conv1 = conv_norm(inputs, inner, (1, 1, 1))
        self.conv2 = conv_norm(inner, inner, (3, 3, 3), stride, groups=inner)
        self.squeeze = SqueezeExcite(inner) if squeeze else nn.Identity()
        self.conv3 = conv_norm(inner, outputs, (1, 1, 1))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) to (B, outputs, t, ceil(h / stride), ceil(w / stride))."""
        inner = F.relu(self.conv1(x), inplace=True)
        inner = F.silu(self.squeeze(self.conv2(inner)))
        return F.relu(self.conv3(inner) + self.shortcut(x), inplace=True)


class X3D(nn.Module):
    """X3D-S or X3D-M.

    Args:
        classes: of the head.
        depths: blocks in each of the four stages.
        first_norm: whether a batch norm follows the shortcut's convolution in the first stage. It
            does in the paper's code and in mmaction2, it does not in PyTorchVideo, whose rule is
            that it comes with a change of channels.
    """

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self,
        classes: int = 400,
        depths: tuple[int, int, int, int] = DEPTHS,
        first_norm: bool = True,
    ) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.stem = nn.Sequential(
            OrderedDict(
                space=nn.Conv3d(3, width, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
                time=nn.Conv3d(width, width, (5, 1, 1), 1, (2, 0, 0), groups=width, bias=False),
                norm=nn.BatchNorm3d(width),
                relu=nn.ReLU(inplace=True),
            )
        )
        for number, (depth, outputs) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
            shortcut = conv_norm(width, outputs, (1, 1, 1), 2, norm=first_norm or number > 1)
            blocks = [
                Block(
                    inputs=outputs if index else width,
                    outputs=outputs,
                    stride=1 if index else 2,
                    squeeze=index % 2 == 0,
                    shortcut=nn.Identity() if index else shortcut,
                )
                for index in range(depth)
            ]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            width = outputs
        self.num_features = width * 9 // 4
        self.conv5 = conv_norm(width, self.num_features, (1, 1, 1))
        self.head = nn.ModuleDict(
            {
                "hidden": nn.Linear(self.num_features, HIDDEN, bias=False),
                "classes": nn.Linear(HIDDEN, classes),
            }
        )

    def forward_features(self, clip: Tensor) -> Tensor:
        """The last convolutional feature map: conv5's, after its norm and ReLU.

        conv5 (1 x 1 x 1, 192 to 432 channels) is the last convolution before the pooling; where
        PyTorchVideo counts it to the head (`blocks.5.pool.pre_conv`), mmaction2 counts it to the
        backbone.

        Args:
            clip: (B, 3, T, H, W), any size; normalised as the weights were trained.

        Returns:
            (B, 432, T, ceil(H / 32), ceil(W / 32)); 8 x 160 x 160 gives 8 x 5 x 5.
        """
        x = self.stem(clip)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
        return F.relu(self.conv5(x), inplace=True)

    def forward(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) to logits (B, classes), the mean taken over the whole map."""
        pooled = self.forward_features(clip).mean((2, 3, 4))
        logits: Tensor = self.head["classes"](F.relu(self.head["hidden"](pooled)))
        return logits


def squeezed(channels: int) -> int:
    """A sixteenth of the channels, to the nearest multiple of 8 that is not 10 % too small."""
    wanted = channels / 16
    width = max(8, int(wanted + 4) // 8 * 8)
    return width + 8 if width < 0.9 * wanted else width
