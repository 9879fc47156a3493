"""Decoding through torchcodec, which loads the FFmpeg it finds on the machine."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from papr.errors import VideoError
from papr.video.decoding import Video, is_stream, missing
from papr.video.timeline import in_order, joined

_NONE = -1e9  # seconds; FFmpeg's mark of no stamp is far below
_TICK = 1e-4  # seconds; stamps closer than that are the same


class TorchCodecVideo(Video):
    """A video read by torchcodec in its exact mode: the file is scanned, no header is trusted.

    It numbers frames by sorting the stamps of packets and gives wrong ones silently where these are
    not true (0.17: AVI, joined files), so they are looked at first: by listing packets where PyAV
    is there, else by decoding once. Where they cannot be trusted, frames are read in turn; also
    where a seek went astray (MPEG-TS), which the stamp of a frame shows.
    """

    backend = "torchcodec"
    _decoder: Any = None
    _turn: Iterator[tuple[int, Any]] | None = None

    def _open(self) -> tuple[Sequence[float | None], float]:
        from torchcodec.decoders import VideoDecoder

        try:
            self._decoder = VideoDecoder(str(self.path), seek_mode="exact", num_ffmpeg_threads=0)
        except ValueError:  # it found no best video stream
            raise VideoError(
                f"cannot read the video {self.path}: expected a video stream, none"
            ) from None
        facts = self._decoder.metadata
        counted = facts.num_frames_from_content or 0
        rate = float(facts.average_fps_from_header or 0.0)
        self._stamps, trusted = self._look(counted)
        if trusted:
            self._check_complete(
                counted,
                facts.num_frames_from_header or 0,
                facts.end_stream_seconds_from_content or 0.0,
                facts.duration_seconds_from_header or 0.0,
            )
        else:
            self._decoder = None
        self._at = -1  # the last frame read in turn
        return self._stamps, rate

    def _look(self, counted: int) -> tuple[Sequence[float | None], bool]:
        """The frames' stamps in the order they are shown in; whether torchcodec numbers them so."""
        if not missing("pyav"):
            from papr.video.with_pyav import listed

            found = listed(self.path)
            if found.stamps is not None and len(found.stamps) == counted:
                return [float(stamp * found.tick) for stamp in found.stamps], True
            truthful = found.truthful
        else:
            truthful = not self._is_avi()
        shown = [frame.pts_seconds for frame in self._frames()]
        stamps = [stamp if stamp > _NONE else None for stamp in shown]
        if not truthful:
            stamps = in_order(stamps)
        fits = truthful and None not in stamps and len(set(stamps)) == len(stamps) == counted
        return stamps, fits and not joined(stamps, gaps=not is_stream(self.path))

    def _is_avi(self) -> bool:
        """B-frames in AVI have no time stamps of their own."""
        with self.path.open("rb") as file:
            head = file.read(12)
        return head[:4] == b"RIFF" and head[8:] == b"AVI "

    def _frames(self) -> Iterator[Any]:
        """All frames in turn, as the decoder makes them."""
        from torchcodec.decoders import Demuxer

        demuxer = Demuxer(str(self.path))
        decoder = demuxer.streams[0].make_decoder("cpu", num_ffmpeg_threads=0)
        for packet in demuxer:
            yield from decoder.decode(packet)
        yield from decoder.drain()

    def _decode(self, indices: list[int]) -> Tensor:
        if self._decoder is not None:
            found = self._by_number(indices)
            if found is not None:
                return found
            self._decoder = None
        return self._in_turn(indices)

    def _by_number(self, indices: list[int]) -> Tensor | None:
        """Frames at their numbers, or None where others came."""
        try:
            batch = self._decoder.get_frames_at(indices)
        except RuntimeError:  # no frame came
            return None
        wanted = torch.tensor([self._stamps[i] for i in indices], dtype=torch.float64)
        right = bool((batch.pts_seconds - wanted).abs().max() < _TICK)
        return batch.data if right else None

    def _in_turn(self, indices: list[int]) -> Tensor:
        from torchcodec.decoders import ColorConverter

        if self._turn is None or indices[0] <= self._at:
            self._turn = enumerate(self._frames())
        convert, wanted, found = ColorConverter("cpu").convert, set(indices), []
        for number, frame in self._turn:
            self._at = number
            if number in wanted:
                found.append(convert(frame).data)
            if number >= indices[-1]:
                break
        if len(found) < len(indices):
            raise VideoError(f"cannot decode frame {indices[len(found)]} of {self.path}")
        sizes = {tuple(picture.shape[1:]) for picture in found}
        if len(sizes) > 1:
            raise VideoError(f"expected frames of one size in {self.path}, got {sorted(sizes)}")
        return torch.stack(found).contiguous()

    def _reason(self, error: Exception) -> str:
        """Its messages start with the function and the line of its own source."""
        return re.sub(r"^\w+, \S+:\d+, ", "", super()._reason(error))

    def _close(self) -> None:
        """Let go of the file."""
        self._decoder = self._turn = None
