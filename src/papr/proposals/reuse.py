"""Looking once for several clips of a stream, as long as the picture stays.

Under a static camera the significance map of one clip serves the next ones too. Each row of a batch
is a stream of its own: the same row of the next call continues it.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.errors import ConfigError
from papr.proposals.scorers import Scorer

_CELLS = 8  # on each side of the thumbnail that tells whether the picture changed


class ReusingScorer(Scorer):
    """A scorer that looks anew only at streams whose map is old or whose picture changed.

    With gradients enabled every clip is looked at, so that checkpoints compute again what they
    computed before. Each thread has streams of its own. Whether a picture changed is read back
    from the device.

    Args:
        scorer: who looks.
        clips: for how many clips a map serves, the one it was made from included.
        threshold: the largest change of a cell of an 8 x 8 thumbnail of the clip (mean over its
            frames, mean absolute difference over channels), in the host's pixel units, up to which
            a map serves.
    """

    def __init__(self, scorer: Scorer, clips: int, threshold: float) -> None:
        super().__init__()
        self.scorer = scorer
        self.clips = clips
        self.threshold = threshold
        self._streams = threading.local()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) to scores (B, t, h, w), some of them those of an earlier clip.

        Raises:
            ConfigError: this is compiled or exported code, which has no memory.
        """
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            raise ConfigError("expected reuse=1 in compiled or exported code, got reuse > 1")
        if torch.is_grad_enabled():
            scores: Tensor = self.scorer(pixels)
            return scores
        return self._continued(pixels)

    def _continued(self, pixels: Tensor) -> Tensor:
        """The scores of a call that goes on with the streams of the last one, where it can."""
        picture = _thumbnail(pixels)
        seen: tuple[Tensor, Tensor, Tensor] | None = getattr(self._streams, "seen", None)
        if seen is None or seen[0].shape != picture.shape or seen[0].dtype != picture.dtype:
            new: Tensor = self.scorer(pixels)
            self._streams.seen = picture, new, torch.ones(len(picture), dtype=torch.long)
            return new
        pictures, scores, served = (part.clone() for part in seen)
        changed = (picture - pictures).abs().mean(1).flatten(1).amax(1) > self.threshold
        stale = (changed.cpu() | (served >= self.clips)).nonzero().squeeze(1)
        served += 1
        if len(stale):
            rows = stale.to(pixels.device)
            scores[rows] = self.scorer(pixels[rows])
            pictures[rows] = picture[rows]
            served[stale] = 1
        self._streams.seen = pictures, scores, served
        return scores


def _thumbnail(pixels: Tensor) -> Tensor:
    """A clip (B, C, T, H, W) to its picture (B, C, 8, 8), float32, mean over the frames."""
    return F.adaptive_avg_pool2d(pixels.mean(2, dtype=torch.float32), _CELLS)
