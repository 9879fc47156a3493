"""Frames of a video by their number, through torchcodec or PyAV, whichever is there.

Both give the same frames for the same numbers: those a player would show, in presentation order,
counted from 0, turned upright as the container's rotation says. Seconds come from the time stamps;
where these jump, as in joined files, frames are counted by decoding them.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from papr.errors import VideoError
from papr.video.timeline import frame_at, timeline

#: In the order in which `open_video` tries them.
BACKENDS = ("torchcodec", "pyav")

_INSTALL = 'pip install "papr-torch[video]"'


class Video(ABC):
    """An opened video; a context manager. Made by `open_video`.

    Attributes:
        path: the file.
        backend: the library that decodes it, one of `BACKENDS`.
        frames: how many frames it has, counted, not taken from the container's header.
        seconds: when each frame is shown, from the first on, by their time stamps.
        fps: frames per second, the average over the whole video (the rate may vary).
        height: of an upright frame, in pixels.
        width: of an upright frame, in pixels.
    """

    backend: str
    closed = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained(f"cannot read the video {path}"):
            stamps, rate = self._open()
        self.frames = len(stamps)
        if self.frames < 1:
            raise VideoError(f"expected a video with frames, {path} has none")
        self.seconds = timeline(stamps, rate, gaps=not is_stream(path))
        self.fps = round((self.frames - 1) / self.seconds[-1] if self.seconds[-1] else rate, 6)
        # A file that was cut off shows it at its end.
        self.height, self.width = self.read([self.frames - 1]).shape[-2:]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames by number.

        Args:
            indices: T frame numbers from 0 to frames - 1, in any order, repeated at will.

        Returns:
            (T, 3, H, W) uint8, RGB, on the CPU.

        Raises:
            VideoError: a number has no frame, or a frame cannot be decoded.
        """
        if self.closed:
            raise VideoError(f"expected an open video to read frames of, {self.path} is closed")
        wanted = [operator.index(i) for i in indices]
        if not wanted:
            return torch.empty(0, 3, self.height, self.width, dtype=torch.uint8)
        for index in wanted:
            if not 0 <= index < self.frames:
                raise VideoError(
                    f"expected frames 0 to {self.frames - 1} of {self.path}, got {index}"
                )
        unique = sorted(set(wanted))
        with self._explained(f"cannot decode frames {unique[0]} to {unique[-1]} of {self.path}"):
            decoded = self._decode(unique)
        if wanted == unique:
            return decoded
        place = {index: i for i, index in enumerate(unique)}
        return decoded[torch.tensor([place[index] for index in wanted])]

    @property
    def duration(self) -> float:
        """Seconds to the end of the last frame, which lasts as long as the one before it."""
        if self.frames == 1:
            return 1 / self.fps if self.fps else 0.0
        return round(2 * self.seconds[-1] - self.seconds[-2], 6)

    def frame_at(self, moment: float) -> int:
        """The number of the frame on view at a moment.

        Args:
            moment: in seconds from the first frame, from 0 to `duration`.
        """
        return frame_at(self.seconds, moment, self.fps)

    @abstractmethod
    def _open(self) -> tuple[Sequence[float | None], float]:
        """Open `path`.

        Returns:
            The stamps of the frames in the order they are shown in, in seconds, None where they
            have none; and the frames per second that the header names, 0 where it does not.
        """

    @abstractmethod
    def _decode(self, indices: list[int]) -> Tensor:
        """Frames (T, 3, H, W) uint8 at ascending, unique, valid `indices`."""

    def close(self) -> None:
        """Let go of the file; nothing can be read from it any more."""
        self.closed = True
        self._close()

    @abstractmethod
    def _close(self) -> None:
        """Let the library let go of the file."""

    def _check_complete(self, counted: int, header: int, end: float, duration: float) -> None:
        """Refuse a file that stops before the end its header names.

        Args:
            counted: frames found.
            header: frames the header names, 0 where it does not.
            end: seconds at which the last frame found ends.
            duration: seconds the header names, 0 where it does not.
        """
        frame = duration / header if header else 0.0
        if header > counted and end < duration - 1.5 * frame:
            raise VideoError(
                f"cannot read the video {self.path}: it is truncated, its header names {header} "
                f"frames, {counted} are there"
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of the libraries, of whatever type, as one line."""
        try:
            yield
        except VideoError:
            raise
        except Exception as error:
            raise VideoError(f"{what}: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_video(path: str | Path, backend: str = "auto") -> Video:
    """Open a video, whatever container it lies in.

    Args:
        path: the file.
        backend: "torchcodec", "pyav", or "auto": torchcodec where it and its FFmpeg are there and
            can read this file, else PyAV.

    Raises:
        VideoError: there is no such file, it holds no video, it is broken or truncated, or the
            backend is unknown or not installed. Containers that name no number of frames (Matroska,
            MPEG-TS) do not show that they are truncated: they end where they stop.
    """
    path = Path(path)
    if backend not in ("auto", *BACKENDS):
        raise VideoError(
            f"expected a backend among auto, {', '.join(BACKENDS)}, got {str(backend)!r}"
        )
    names = usable(backend)
    if backend != "auto" and not names:
        raise VideoError(f"cannot use the backend {backend!r}: {missing(backend)}")
    if not names:
        raise VideoError(f"expected torchcodec or PyAV to decode videos, found neither: {_INSTALL}")
    _check_file(path)
    if names == BACKENDS:
        try:
            return _opened(path, "torchcodec")
        except VideoError:  # the FFmpeg it found may know less than PyAV's, whose word counts
            return _opened(path, "pyav")
    return _opened(path, names[0])


def usable(backend: str = "auto") -> tuple[str, ...]:
    """The backends that `open_video` tries here, in order; none where they are not installed."""
    return tuple(name for name in BACKENDS if backend in ("auto", name) and not missing(name))


@cache
def missing(backend: str) -> str:
    """Why a backend cannot be used here; an empty string where it can."""
    try:
        if backend == "pyav":
            import av  # noqa: F401
        else:
            import torchcodec

            # Older ones raise at import where there is no FFmpeg; this is None in newer ones.
            if getattr(torchcodec, "ffmpeg_major_version", 0) is None:
                return "torchcodec finds no FFmpeg to load: install FFmpeg's shared libraries"
            import torchcodec.decoders

            if not hasattr(torchcodec.decoders, "Demuxer"):
                return "torchcodec is older than 0.17, whose frames can be counted by decoding them"
    except ImportError:
        package = "torchcodec" if backend == "torchcodec" else "PyAV"
        advice = "pip install torchcodec" if backend == "torchcodec" else _INSTALL
        return f"{package} is not installed: {advice}"
    except (RuntimeError, OSError):
        return "torchcodec cannot be loaded: it needs FFmpeg's shared libraries and its own torch"
    return ""


def _opened(path: Path, backend: str) -> Video:
    if backend == "torchcodec":
        from papr.video.with_torchcodec import TorchCodecVideo

        return TorchCodecVideo(path)
    from papr.video.with_pyav import PyAVVideo

    return PyAVVideo(path)


def is_stream(path: Path) -> bool:
    """Whether a file is an MPEG transport or program stream, whose stamps jump where it was cut."""
    with path.open("rb") as file:
        head = file.read(197)
    packets = head[:1] == head[188:189] == b"G" or head[4:5] == head[196:197] == b"G"
    return packets or head.startswith(b"\0\0\1\xba")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"expected a video, {path} does not exist")
    if not path.is_file():
        raise VideoError(f"expected a video file, {path} is none")
    if path.stat().st_size == 0:
        raise VideoError(f"expected a video, {path} is empty (0 bytes)")
