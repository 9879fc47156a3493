"""Time stamps that run backwards, jump or vary: the right frames, and seconds that are true."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import clips
from papr.video import open_video
from papr.video.timeline import frame_at, timeline
from test_video_decoding import both, decode_all

av = pytest.importorskip("av", reason="needs the extra: video")

#: How two clips are joined: suffix, ticks by which the second is shifted, how they are muxed.
JOINED = {
    "ts": (".ts", 0, {}),  # the same stamps twice
    "ts-between": (".ts", 0.5, {}),  # stamps of the second lie between those of the first
    "ts-later": (".ts", 900, {}),  # a minute and a half later: they jump, but never back
    "mkv": (".mkv", 0, {}),
    "fragments": (".mp4", 0, {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
}


def part(path: Path, frames: np.ndarray, shift: float, options: dict[str, str]) -> Path:
    """One clip at 10 frames a second, its stamps moved by `shift` frames."""
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"bf": "2", "g": "8"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = int((number + shift) * 100), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def join(name: str, folder: Path) -> Path:
    """Thirty frames, and twenty of the same turned around, as `cat` joins files."""
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no libx264")
    suffix, shift, options = JOINED[name]
    frames = clips.pictures(30)
    one = part(folder / f"one{suffix}", frames, 0, options)
    two = part(folder / f"two{suffix}", frames[19::-1, :, ::-1], shift, options)
    path = folder / f"joined{suffix}"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    return path


@both
@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_read_as_a_player_shows_them(
    name: str, backend: str, tmp_path: Path
) -> None:
    path = join(name, tmp_path)
    expected = torch.from_numpy(decode_all(path)).int()
    assert 40 < len(expected) <= 50
    with open_video(path, backend) as video:
        assert video.frames == len(expected)
        for order in ([len(expected) - 1], [31, 2, 30, 29, 2], list(range(video.frames))):
            assert (video.read(order).int() - expected[order]).abs().max() <= 1
        assert video.fps == pytest.approx(10, rel=1e-3)
        assert video.seconds == pytest.approx([i / 10 for i in range(video.frames)], abs=0.011)
        assert video.duration == pytest.approx(video.frames / 10, abs=0.02)


@both
@pytest.mark.parametrize("suffix", [".ts", ".avi"])
def test_torchcodec_alone_counts_by_decoding(
    suffix: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PyAV nothing lists packets: frames tell whether their stamps are true."""
    codec, more = ("mpeg4", {"bf": "2", "g": "12"}) if suffix == ".avi" else ("libx264", {"g": "8"})
    path = clips.write(tmp_path / f"one{suffix}", clips.pictures(30), codec, **more)
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(path.read_bytes() * (2 if suffix == ".ts" else 1))
    monkeypatch.setattr("papr.video.with_torchcodec.missing", lambda name: "gone")
    for file in (path, joined):
        expected = torch.from_numpy(decode_all(file)).int()
        with open_video(file, backend) as video:
            assert video.frames == len(expected)
            order = [len(expected) - 1, 0, *range(len(expected))]
            assert (video.read(order).int() - expected[order]).abs().max() <= 1
            assert video.fps == pytest.approx(10)


@both
def test_seconds_are_those_of_the_stamps(backend: str, tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 4, 5, 10, 15, 40]
    path = clips.write(tmp_path / "a.mkv", clips.pictures(9), fps=10, stamps=stamps)
    with open_video(path, backend) as video:
        assert video.seconds == pytest.approx([s / 10 for s in stamps])
        assert video.duration == pytest.approx(4.0 + 2.5)
        assert [video.frame_at(s) for s in (0, 0.1, 0.5, 1.2, 3.0, 4.0, 6)] == [0, 1, 5, 6, 7, 8, 8]


@both
def test_the_fault_files(backend: str, shared_data: Path) -> None:
    for name, frames, fps in (("s12.ts", 240, 30), ("concat_diff.ts", 80, 25)):
        path = shared_data / "faults" / name
        expected = decode_all(path).astype(int)
        with open_video(path, backend) as video:
            assert (video.frames, video.fps) == (frames, fps)
            order = list(range(frames - 60, frames))
            assert np.abs(video.read(order).numpy() - expected[order]).max() <= 1
    with open_video(shared_data / "faults" / "vfr.mp4", backend) as video:
        assert video.frame_at(7) == 250 + 10
        assert video.seconds[260] == pytest.approx(7.0)


def test_a_timeline() -> None:
    assert timeline([5.0, 6.0, 7.0, 1.0, 2.0], 0) == (0, 1, 2, 3, 4)
    assert timeline([0.0, 1.0, 1.0, 4.0], 0) == (0, 1, 2, 5)
    assert timeline([0.0, 1.0, 61.0], 0) == (0, 1, 61)
    assert timeline([0.0, 1.0, 61.0], 0, gaps=False) == (0, 1, 2)
    assert timeline([None, None, None], 4) == (0, 0.25, 0.5)
    assert timeline([None], 0) == (0,)
    assert timeline([], 25) == ()
    assert frame_at([0.0, 1.0], 0.4, 1.0) == 0
    assert frame_at([0.0], 3.0, 0.0) == 0
