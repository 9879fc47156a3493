"""glance as it is trained: with batch norms, and with a head that learns a teacher's features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from papr.proposals.glance import Glance
from teachers import COMPONENTS


class Trained(nn.Module):
    """`papr.proposals.glance.Glance` with a batch norm behind each convolution.

    Args:
        widths: see Glance.
        depths: see Glance.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.shape = widths, depths
        plain = Glance(widths, depths)
        self.convs = nn.ModuleList(
            nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, bias=False)
            for c in plain.convs
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in plain.convs)
        self.weigh = plain.weigh
        nn.init.ones_(self.weigh.bias)  # the channel mean, to begin with
        nn.init.zeros_(self.weigh.weight)
        self.features = nn.Conv2d(widths[-1], COMPONENTS, 1)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) to the map (B, h, w) and the features (B, 64, h, w)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        scores = torch.einsum("bc,bchw->bhw", self.weigh(x.mean((2, 3))), x)
        return scores, self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the map (B, h, w)."""
        return self.both(x)[0]


def folded(trained: Trained) -> Glance:
    """The same as a Glance: norms folded into the convolutions, the auxiliary head left out."""
    trained = trained.eval()
    plain = Glance(*trained.shape)
    for own, conv, norm in zip(plain.convs, trained.convs, trained.norms, strict=True):
        own.load_state_dict(fuse_conv_bn_eval(conv, norm).state_dict())
    plain.weigh.load_state_dict(trained.weigh.state_dict())
    return plain.eval()
