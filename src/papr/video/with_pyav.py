"""Decoding through PyAV, which brings its own FFmpeg."""

import bisect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papr.errors import VideoError
from papr.video.decoding import Video


class PyAVVideo(Video):
    """A video read by PyAV.

    The packets are listed once, without decoding: their time stamps in order number the frames.
    Where packets have none (raw streams), or none that can be trusted (AVI, which numbers packets
    in the order they are decoded in), the frames are decoded once to be counted, and read from the
    beginning.
    """

    backend = "pyav"
    _container: Any = None

    def _open(self) -> tuple[int, float]:
        self._reopen()
        packets = [p for p in self._container.demux(self._stream) if p.size]
        # a stream cut out of a longer one shows nothing until its first key frame
        first = next((i for i, p in enumerate(packets) if p.is_keyframe), 0)
        shown = [p for p in packets[first:] if not p.is_discard]
        stamps = [p.pts for p in shown]
        unlike = len(set(stamps)) == len(stamps) and None not in stamps
        self._stamped = unlike and "avi" not in self._container.format.name.split(",")
        if self._stamped:
            self._stamps = sorted(stamps)
            self._keys = sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
            self._check_length(packets)
        else:
            self._reopen()
            self._stamps = list(range(sum(1 for _ in self._container.decode(self._stream))))
            self._keys = []
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if self._stamped and len(self._stamps) > 1:
            seconds = (self._stamps[-1] - self._stamps[0]) * self._stream.time_base
            rate = float((len(self._stamps) - 1) / seconds)
        self._reopen()
        return len(self._stamps), rate

    def _check_length(self, packets: list[Any]) -> None:
        if not packets:
            return
        tick = float(self._stream.time_base)
        end = max(p.pts + (p.duration or 0) for p in packets if p.pts is not None) * tick
        duration = (self._stream.duration or 0) * tick
        self._check_complete(len(packets), self._stream.frames, end, duration)

    def _reopen(self) -> None:
        """Stand before the first frame."""
        import av

        self._close()
        self._container = av.open(str(self.path))
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise VideoError(f"cannot read the video {self.path}: expected a video stream, none")
        # Not by frames: threads that decode ahead may log, for which they need the interpreter's
        # lock, while closing the file waits for them and holds it (seen with PyAV 14.1).
        self._stream.thread_type = "SLICE"
        self._coming = self._numbered()
        self._last: int | None = None  # stamp of the last frame decoded

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Frames from where the container stands, with their stamps."""
        for number, frame in enumerate(self._container.decode(self._stream)):
            yield (frame.pts if self._stamped else number), frame

    def _decode(self, indices: list[int]) -> Tensor:
        pictures = [torch.from_numpy(self._picture(self._frame(i))) for i in indices]
        sizes = {tuple(p.shape[:2]) for p in pictures}
        if len(sizes) > 1:
            raise VideoError(f"expected frames of one size in {self.path}, got {sorted(sizes)}")
        return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()

    def _frame(self, index: int) -> Any:
        stamp = self._stamps[index]
        place = bisect.bisect_right(self._keys, stamp)
        key = self._keys[place - 1] if place else None
        onwards = self._last is not None and self._last < stamp
        if not onwards or (key is not None and self._last is not None and key > self._last):
            self._seek(key)
        frame = self._until(stamp)
        if frame is None:  # a seek may land too late: go through all that comes before
            self._reopen()
            frame = self._until(stamp)
        if frame is None:
            raise VideoError(f"cannot decode frame {index} of {self.path}: it is missing")
        return frame

    def _seek(self, key: int | None) -> None:
        if key is None or key <= self._stamps[0]:
            self._reopen()
            return
        self._container.seek(key, stream=self._stream, backward=True)
        self._coming, self._last = self._numbered(), None

    def _until(self, stamp: int) -> Any:
        """The frame with this stamp, or None where decoding has passed it or has ended."""
        for seen, frame in self._coming:
            self._last = seen
            if seen is None or seen >= stamp:
                return frame if seen == stamp else None
        self._last = None
        return None

    @staticmethod
    def _picture(frame: Any) -> np.ndarray:
        """RGB, upright, (H, W, 3) uint8."""
        picture = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))

    def _reason(self, error: Exception) -> str:
        """FFmpeg's own words, without the error's number and the path, which is said already."""
        return str(getattr(error, "strerror", None) or super()._reason(error))

    def _close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
        self._container = None
