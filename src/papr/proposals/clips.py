"""Scorers of clips: pixels (B, 3, T, H, W) in, scores (B, t, h, w) out, no gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.counts import ceiling
from papr.errors import ProposalError
from papr.proposals.scorers import GlanceScorer, NetScorer, Scorer, scaled

#: Frames that the paper's 3-D proposals see of a clip (Mahmud et al., ECCV 2024, Sec. 4).
REFERENCE_FRAMES = 8


class FramesScorer(Scorer):
    """A network of images that looks at the first frame of each tubelet; maps stacked over time.

    Args:
        tubelet: how many frames a patch of the host spans.
        scorer: who looks at images.
    """

    def __init__(self, tubelet: int, scorer: NetScorer | GlanceScorer) -> None:
        super().__init__()
        self.tubelet = tubelet
        self.scorer = scorer

    @property
    def net(self) -> nn.Module:
        """The network that looks."""
        return self.scorer.net

    def forward(self, clip: Tensor) -> Tensor:
        """A clip (B, 3, T, H, W), normalised for the host, to scores (B, t, h, w), float32."""
        frames = clip[:, :, :: self.tubelet].transpose(1, 2)
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self._scores(frames)
        several = frames.split(self.scorer.at_once, dim=1)
        return torch.cat([self._scores(some) for some in several], dim=1)

    def _scores(self, frames: Tensor) -> Tensor:
        """Frames (B, t, 3, H, W) to scores (B, t, h, w)."""
        scores: Tensor = self.scorer(frames.flatten(0, 1))
        return scores.view(*frames.shape[:2], *scores.shape[1:])


class ClipScorer(NetScorer):
    """A 3-D network's last feature map, averaged over channels.

    Args:
        step: of how many frames it is to see one, where `size` does not say.
        least: the fewest frames it takes.
        net: the network, and further arguments, as for `NetScorer`.
    """

    axes = 3

    def __init__(self, step: int, least: int, net: nn.Module, *args: Any) -> None:
        super().__init__(net, *args)
        self.step = step
        self.least = least

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        """A clip (B, 3, T, H, W), normalised for the host, to scores (B, t, h, w), float32.

        Raises:
            ProposalError: the clip is too short for the network.
        """
        size = self._target(clip)
        if size[0] < self.least:
            raise ProposalError(
                f"expected at least {self.least} frames for the proposal, got {size[0]} of a clip "
                f"of {clip.shape[2]}"
            )
        x = self._renormalise(resize_clip(clip, size).to(self.dtype))
        return self._look(x, clip)

    def _target(self, clip: Tensor) -> tuple[int, int, int]:
        size, (frames, height, width) = self.size, clip.shape[2:]
        if size == "input":
            return frames, height, width
        if isinstance(size, tuple) and len(size) == 3:
            return size
        frames = ceiling(frames, self.step)
        if size is None or isinstance(size, str):
            return frames, height, width
        return frames, *scaled(height, width, size, self.shrink_only)


def resize_clip(clip: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Trilinear resize with aligned corners, in float32, as the paper's reference does.

    Args:
        clip: (B, 3, T, H, W).
        size: (frames, height, width).
    """
    if tuple(clip.shape[2:]) == size:
        return clip
    return F.interpolate(clip.float(), size=size, mode="trilinear", align_corners=True)
