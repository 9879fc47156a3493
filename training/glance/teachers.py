"""The maps that glance learns: what two larger classifiers find, channel means and softcams."""

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.baselines.cams import folded
from papr.proposals import wheels
from papr.proposals.heads import linear_head
from papr.significance import channel_mean, to_grid

GRID = 14
NETWORKS = (wheels.LITE0, wheels.LITE1)
#: What `Teachers.maps` stacks: of each network its channel mean, then its softcam.
MAPS = ("lite0 mean", "lite0 softcam", "lite1 mean", "lite1 softcam")
COMPONENTS = 64  # principal ones of Lite1's last feature map, which an auxiliary head learns
CELLS = 8  # of that map, a side


class Teachers:
    """EfficientNet-Lite0 and Lite1, batch norms folded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.networks = []
        for name in NETWORKS:
            classifier, side = wheels.classifier(name), wheels.WHEELS[name].side
            head = linear_head(classifier, name, torch.zeros(1, 3, side, side))
            net = folded(classifier).to(device, memory_format=torch.channels_last)
            self.networks.append((net, head.to(device), side))

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, 224, 224) in [0, 1] to the maps and to Lite1's features.

        Returns:
            Maps (B, 4, 14, 14), each with mean 0 and deviation 1; features (B, 1280, 8, 8).
        """
        seen = pixels.to(self.device) * 2 - 1
        maps = []
        for net, head, side in self.networks:
            x = F.interpolate(seen, size=(side, side), mode="bicubic", antialias=True)
            with torch.autocast(self.device.type, torch.bfloat16):
                features = net.forward_features(x.contiguous(memory_format=torch.channels_last))
            features = features.float()
            for found in (channel_mean(features), head(features)):
                maps.append(standardised(to_grid(found, (GRID, GRID))))
        return torch.stack(maps, 1), features


def standardised(maps: Tensor) -> Tensor:
    """Each map of (..., H, W) with mean 0 and deviation 1."""
    centred = maps - maps.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-6)
