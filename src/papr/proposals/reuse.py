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
    computed before. Each thread has streams of its own (and so each thread that DataParallel
    starts, which then reuses nothing); clips of another shape start anew. Whether a picture changed
    is read back from the device.

    Args:
        scorer: who looks.
        clips: for how many clips a map serves, the one it was made from included.
        threshold: the mean absolute difference between the 8 x 8 thumbnails of two clips (each
            the mean over its frames), in the host's pixel units, up to which a map serves. The
            mean over the whole picture, not the most changed cell: it tells better how far the
            selection has moved (benchmarks/results/video_people.json).
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
            ConfigError: this is a whole graph, compiled or exported, which has no memory. Where
                `torch.compile` may break graphs, this is where it does, and maps are reused.
        """
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            raise ConfigError("expected reuse=1 in compiled or exported code, got reuse > 1")
        if torch.is_grad_enabled():
            scores: Tensor = self.scorer(pixels)
            return scores
        return self._continued(pixels)

    def _continued(self, pixels: Tensor) -> Tensor:
        """The scores of a call that goes on with the streams of the last one, where it can."""
        picture, shape = thumbnail(pixels), tuple(pixels.shape)
        if getattr(self._streams, "shape", None) != shape:
            new: Tensor = self.scorer(pixels)
            served = torch.ones(len(picture), dtype=torch.long, device="cpu")
            self._streams.shape, self._streams.seen = shape, (picture, new, served)
            return new
        scores: Tensor
        pictures, scores, served = (part.clone() for part in self._streams.seen)
        changed = picture_change(picture, pictures) > self.threshold
        stale = (changed.cpu() | (served >= self.clips)).nonzero().squeeze(1)
        served += 1
        if len(stale):
            rows = stale.to(pixels.device)
            scores[rows] = self.scorer(pixels[rows])
            pictures[rows] = picture[rows]
            served[stale] = 1
        self._streams.seen = pictures, scores, served
        return scores


def picture_change(picture: Tensor, before: Tensor) -> Tensor:
    """How much each of two batches of thumbnails (B, C, 8, 8) differs from the other: (B,)."""
    return (picture - before).abs().mean((1, 2, 3))


def thumbnail(pixels: Tensor) -> Tensor:
    """A clip (B, C, T, H, W) to its picture (B, C, 8, 8), float32, mean over the frames."""
    return F.adaptive_avg_pool2d(pixels.mean(2, dtype=torch.float32), _CELLS)
