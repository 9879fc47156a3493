"""Small video files for tests, written with PyAV."""

import struct
from pathlib import Path

import numpy as np


def pictures(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3) uint8: a smooth picture that moves to the right, each frame brighter."""
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([(x * 3 + 5 * t) % 256, y * 2 + 2 * t, np.full_like(x, 6 * t)], -1).clip(0, 255)
        for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "ffv1",
    fps: int = 10,
    stamps: list[int] | None = None,
    **options: str,
) -> Path:
    """Frames (T, H, W, 3) as a video; ffv1 loses nothing. `stamps` in units of 1/fps."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.options = options
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with sound and no picture."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    return path


def turn(path: Path, degrees: int) -> Path:
    """Tell players of an MP4 to turn its picture clockwise, in its track header's matrix."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    matrix = [a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def start_at(path: Path, seconds: float) -> Path:
    """Let an MP4 start later, by its edit list: the frames before are in the file but not shown."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 8  # one entry: duration (movie's ticks), start (track's ticks)
    movie = struct.unpack(">I", data[(m := data.index(b"mvhd") + 4 + 12) : m + 4])[0]
    track = struct.unpack(">I", data[(m := data.index(b"mdhd") + 4 + 12) : m + 4])[0]
    duration, start = struct.unpack(">Ii", data[at : at + 8])
    entry = (duration - round(seconds * movie), start + round(seconds * track))
    data[at : at + 8] = struct.pack(">Ii", *entry)
    path.write_bytes(data)
    return path
