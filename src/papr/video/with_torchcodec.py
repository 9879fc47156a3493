"""Decoding through torchcodec, which loads the FFmpeg it finds on the machine."""

import re
from typing import Any

from torch import Tensor

from papr.errors import VideoError
from papr.video.decoding import Video


class TorchCodecVideo(Video):
    """A video read by torchcodec in its exact mode: the file is scanned, no header is trusted."""

    backend = "torchcodec"
    _decoder: Any = None

    def _open(self) -> tuple[int, float]:
        from torchcodec.decoders import VideoDecoder

        self._check_container()
        try:
            self._decoder = VideoDecoder(str(self.path), seek_mode="exact", num_ffmpeg_threads=0)
        except ValueError:  # it found no best video stream
            raise VideoError(
                f"cannot read the video {self.path}: expected a video stream, none"
            ) from None
        facts = self._decoder.metadata
        counted = facts.num_frames_from_content or 0
        self._check_complete(
            counted,
            facts.num_frames_from_header or 0,
            facts.end_stream_seconds_from_content or 0.0,
            facts.duration_seconds_from_header or 0.0,
        )
        if counted < 2:
            return counted, float(facts.average_fps_from_header or 0.0)
        return counted, (counted - 1) / self._seconds(counted)

    def _check_container(self) -> None:
        """B-frames in AVI have no time stamps; torchcodec 0.17 then gives wrong frames silently."""
        with self.path.open("rb") as file:
            head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            raise VideoError(
                f"cannot read the video {self.path}: torchcodec numbers the frames of AVI files "
                'wrongly; take the backend "pyav"'
            )

    def _seconds(self, counted: int) -> float:
        """From the first frame to the last."""
        first, last = (self._decoder.get_frame_at(i).pts_seconds for i in (0, counted - 1))
        if first >= last:
            raise VideoError(
                f"cannot read the video {self.path}: torchcodec finds no time stamps in it"
            )
        return float(last - first)

    def _decode(self, indices: list[int]) -> Tensor:
        frames: Tensor = self._decoder.get_frames_at(indices).data
        return frames

    def _reason(self, error: Exception) -> str:
        """Its messages start with the function and the line of its own source."""
        return re.sub(r"^\w+, \S+:\d+, ", "", super()._reason(error))

    def _close(self) -> None:
        """Let go of the file."""
        self._decoder = None
