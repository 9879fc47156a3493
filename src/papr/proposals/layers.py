"""What the clip networks are built of."""

from collections import OrderedDict

from torch import nn

Sizes = tuple[int, int, int]


def conv_norm(
    inputs: int, outputs: int, kernel: Sizes, stride: int = 1, groups: int = 1, norm: bool = True
) -> nn.Sequential:
    """A convolution without bias and its batch norm, named `conv` and `norm`.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: (t, h, w), odd; padded by half of it, so that only the stride shrinks a clip.
        stride: in space; in time it is 1, always.
        groups: of the convolution.
        norm: False leaves the batch norm out.
    """
    time, height, width = kernel
    conv = nn.Conv3d(
        inputs,
        outputs,
        kernel,
        (1, stride, stride),
        padding=(time // 2, height // 2, width // 2),
        groups=groups,
        bias=False,
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm:
        layers["norm"] = nn.BatchNorm3d(outputs)
    return nn.Sequential(layers)
