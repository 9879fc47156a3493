"""Decoding through PyAV, which brings its own FFmpeg."""

import bisect
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from papr.errors import VideoError
from papr.video.decoding import Video, is_stream
from papr.video.timeline import in_order, joined


class Listed(NamedTuple):
    """What the packets of a video say about its frames, without decoding.

    Attributes:
        stamps: of the frames in the order they are shown in, in ticks; None where packets have
            none (raw streams) or none that can be trusted: in AVI, which numbers packets in the
            order they are decoded in, and in joined files, whose stamps jump.
        keys: stamps of the key frames, ascending.
        tick: the unit of stamps, in seconds.
        rate: frames per second that the header names, 0 where it does not.
        packets: how many there are.
        header: frames that the header names, 0 where it does not.
        end: when the last frame ends, in seconds.
        duration: seconds that the header names, 0 where it does not.
        truthful: whether the stamps of decoded frames are their own, if not those of packets.
    """

    stamps: list[int] | None
    keys: list[int]
    tick: Fraction
    rate: float
    packets: int
    header: int
    end: float
    duration: float
    truthful: bool


def listed(path: Path) -> Listed:
    """List the packets of a video.

    Raises:
        VideoError: there is no video stream.
        Exception: whatever PyAV raises of a broken file.
    """
    container, stream = _opened(path)
    with container:
        packets = [p for p in container.demux(stream) if p.size]
        # a stream cut out of a longer one shows nothing until its first key frame
        first = next((i for i, p in enumerate(packets) if p.is_keyframe), 0)
        stamps = [p.pts for p in packets[first:] if not p.is_discard]
        unlike = len(set(stamps)) == len(stamps) and None not in stamps
        truthful = "avi" not in container.format.name.split(",")
        times = [None if p.dts is None else float(p.dts * stream.time_base) for p in packets]
        one = not joined(times, gaps=not is_stream(path))
        ends = [p.pts + (p.duration or 0) for p in packets if p.pts is not None]
        return Listed(
            stamps=sorted(stamps) if unlike and truthful and one else None,
            keys=sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None),
            tick=stream.time_base,
            rate=float(stream.average_rate or stream.guessed_rate or 0),
            packets=len(packets),
            header=stream.frames,
            end=float(max(ends, default=0) * stream.time_base),
            duration=float((stream.duration or 0) * stream.time_base),
            truthful=truthful,
        )


def _opened(path: Path) -> tuple[Any, Any]:
    """The container and its video stream."""
    import av

    container = av.open(str(path))
    stream = container.streams.best("video")
    if stream is None:
        container.close()
        raise VideoError(f"cannot read the video {path}: expected a video stream, none")
    # Not by frames: threads that decode ahead may log, for which they need the interpreter's
    # lock, while closing the file waits for them and holds it (seen with PyAV 14.1).
    stream.thread_type = "SLICE"
    return container, stream


class PyAVVideo(Video):
    """A video read by PyAV.

    The packets are listed once, without decoding: their time stamps in order number the frames.
    Where they cannot (see `Listed`), the frames are decoded once to be counted, and read from the
    beginning.
    """

    backend = "pyav"
    _container: Any = None

    def _open(self) -> tuple[list[float | None], float]:
        found = listed(self.path)
        self._stamped = found.stamps is not None
        if found.stamps is not None:
            self._check_complete(found.packets, found.header, found.end, found.duration)
            self._stamps, self._keys = found.stamps, found.keys
            shown: list[int | None] = [*found.stamps]
        else:
            self._reopen()
            shown = [frame.pts for frame in self._container.decode(self._stream)]
            self._stamps, self._keys = list(range(len(shown))), []
        self._reopen()
        stamps = [None if s is None else float(s * found.tick) for s in shown]
        return stamps if found.truthful else in_order(stamps), found.rate

    def _reopen(self) -> None:
        """Stand before the first frame."""
        self._close()
        self._container, self._stream = _opened(self.path)
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
