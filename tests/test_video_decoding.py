"""Frames by number: exact, in any order, the same through both libraries; bad files in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clips
from papr.errors import VideoError
from papr.video import open_video
from papr.video.decoding import BACKENDS, missing

av = pytest.importorskip("av", reason="needs the extra: video")

HERE = [
    pytest.param(b, marks=pytest.mark.skipif(bool(missing(b)), reason=missing(b) or b))
    for b in BACKENDS
]
both = pytest.mark.parametrize("backend", HERE)


def decode_all(path: Path) -> np.ndarray:
    """The slow reference: every frame in turn, from the beginning. (T, 3, H, W)."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return np.stack(frames).transpose(0, 3, 1, 2)


@both
def test_lossless_frames_come_back_bit_for_bit(backend: str, tmp_path: Path) -> None:
    frames = clips.pictures(12, 47, 65)
    with open_video(clips.write(tmp_path / "a.mkv", frames), backend) as video:
        assert (video.frames, video.height, video.width) == (12, 47, 65)
        assert video.backend == backend
        assert video.fps == pytest.approx(10)
        order = [11, 0, 5, 5, 3, 4, 10]
        read = video.read(order)
        assert read.dtype == torch.uint8
        assert torch.equal(read, torch.from_numpy(frames[order].transpose(0, 3, 1, 2).copy()))
        assert video.read([]).shape == (0, 3, 47, 65)
        assert torch.equal(video.read(np.array([7]))[0], video.read(range(8))[7])


CASES = {
    "mp4": ("a.mp4", "libx264", {"bf": "3", "g": "8"}),
    "webm": ("a.webm", "libvpx-vp9", {"g": "8", "deadline": "realtime"}),
    "gif": ("a.gif", "gif", {}),
    "avi": ("a.avi", "mpeg4", {"bf": "2", "g": "12"}),  # B-frames without time stamps
    "avi-h264": ("a.avi", "libx264", {"bf": "3", "g": "12"}),  # with stamps that are not true
    "ts": ("a.ts", "libx264", {"bf": "3", "g": "8"}),  # no frame count
    "raw": ("a.h264", "libx264", {"bf": "2", "g": "8"}),  # no time stamps at all
    "cut": ("a.mp4", "libx264", {"bf": "3", "g": "8"}),  # an edit list: shown from frame 5 on
}


def make(name: str, folder: Path) -> Path:
    file, codec, options = CASES[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    if codec == "gif":
        return gif(folder / file)
    path = clips.write(folder / file, clips.pictures(30), codec, **options)
    return clips.start_at(path, 0.5) if name == "cut" else path


def gif(path: Path) -> Path:
    from PIL import Image

    first, *rest = [Image.fromarray(p) for p in clips.pictures(30)]
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", [HERE[1], "auto"])
def test_any_order_equals_decoding_in_turn(name: str, backend: str, tmp_path: Path) -> None:
    path = make(name, tmp_path)
    expected = torch.from_numpy(decode_all(path))
    with open_video(path, backend) as video:
        assert video.frames == len(expected) == (25 if name == "cut" else 30)
        for order in ([24], [17, 3, 24, 0, 3, 16], [18, 19], list(range(video.frames))):
            assert torch.equal(video.read(order), expected[order])


@pytest.mark.parametrize("packets", [20, 40, 60])
def test_a_stream_cut_out_of_a_longer_one_begins_where_it_can_be_shown(
    packets: int, tmp_path: Path
) -> None:
    path = make("ts", tmp_path)
    path.write_bytes(path.read_bytes()[188 * packets :])
    expected = torch.from_numpy(decode_all(path))
    assert 0 < len(expected) < 30
    with open_video(path, "pyav") as video:
        assert video.frames == len(expected)
        order = [len(expected) - 1, 0, *range(len(expected))]
        assert torch.equal(video.read(order), expected[order])


@pytest.mark.skipif(bool(missing("torchcodec")), reason=missing("torchcodec") or "there")
@pytest.mark.parametrize("name", ["mp4", "webm", "gif", "cut"])
def test_both_libraries_give_the_same_frames(name: str, tmp_path: Path) -> None:
    """Bit-equal between FFmpeg 5.1 and 8; one level is left to other versions of swscale."""
    path = make(name, tmp_path)
    with open_video(path, "torchcodec") as one, open_video(path, "pyav") as other:
        assert (one.frames, one.height, one.width) == (other.frames, other.height, other.width)
        assert one.fps == pytest.approx(other.fps, rel=1e-6)
        order = [3, 24, 0, 13, 13]
        assert (one.read(order).int() - other.read(order).int()).abs().max() <= 1


@both
def test_variable_rate_and_start_are_counted_by_frames(backend: str, tmp_path: Path) -> None:
    stamps = [5, 6, 7, 11, 12, 20, 21, 35]
    path = clips.write(tmp_path / "a.mkv", clips.pictures(8), stamps=stamps)
    with open_video(path, backend) as video:
        assert video.frames == 8
        assert video.fps == pytest.approx(7 / 3.0)
        assert video.read([7, 3])[:, 2, 0, 0].tolist() == [42, 18]


@both
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_honoured(backend: str, degrees: int, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "a.mp4", clips.pictures(3), "mpeg4", **{"qscale": "2"})
    upright = torch.from_numpy(decode_all(path))
    turned = torch.rot90(upright, -degrees // 90, (2, 3))
    with open_video(clips.turn(path, degrees), backend) as video:
        assert (video.height, video.width) == tuple(turned.shape[2:])
        gap = (video.read([0, 1, 2]).int() - turned.int()).abs()
        assert gap.max() <= 1


@both
def test_real_clips(backend: str, shared_data: Path) -> None:
    path = shared_data / "kinetics-sample" / "arm_wrestling.mp4"
    expected = decode_all(path)
    with open_video(path, backend) as video:
        assert (video.frames, video.fps, video.height, video.width) == (280, 28.0, 256, 340)
        order = [279, 4, 188, 187, 186, 0]
        gap = np.abs(video.read(order).numpy().astype(int) - expected[order])
        assert gap.max() <= 1


def broken(name: str, folder: Path) -> Path:
    """A file that is no video, or no more."""
    path = folder / f"{name}.mp4"
    if name == "empty":
        path.touch()
    elif name == "junk":
        path.write_bytes(b"no video" * 500)
    elif name == "folder":
        path.mkdir()
    elif name == "sound":
        clips.write_sound(path)
    elif name in ("headless", "truncated"):
        noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
        clips.write(path, noise, "mpeg4")
        if name == "truncated":  # the index first, as in files for streaming
            path = start_with_index(path, folder / "streamed.mp4")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def start_with_index(path: Path, to: Path) -> Path:
    with av.open(str(path)) as source:
        file = av.open(str(to), "w", options={"movflags": "+faststart"})
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
        file.close()
    return to


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "expected a video file"),
        ("empty", "is empty"),
        ("junk", "Invalid data"),
        ("sound", "expected a video stream, none"),
        ("headless", "Invalid data"),
        ("truncated", "truncated, its header names 20 frames"),
    ],
)
@pytest.mark.parametrize("backend", [*HERE, "auto"])
def test_bad_files_in_one_line(name: str, message: str, backend: str, tmp_path: Path) -> None:
    path = broken(name, tmp_path)
    with pytest.raises(VideoError, match=message) as caught:
        open_video(path, backend)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@both
@pytest.mark.parametrize("index", [-1, 4])
def test_a_frame_that_is_not_there(backend: str, index: int, tmp_path: Path) -> None:
    path = clips.write(tmp_path / "a.mkv", clips.pictures(4))
    with (
        open_video(path, backend) as video,
        pytest.raises(VideoError, match=rf"expected frames 0 to 3 of .*, got {index}"),
    ):
        video.read([0, index])


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(
        VideoError, match="expected a backend among auto, torchcodec, pyav, got 'd'"
    ):
        open_video(tmp_path, "d")


ABSENT = {
    "torchcodec is not installed": "raise ImportError('no')",
    "torchcodec finds no FFmpeg": "ffmpeg_major_version = None",
    "torchcodec cannot be loaded": "raise RuntimeError('Could not load libtorchcodec')",
}
PROBE = """
import sys
from papr.video import decoding
def attempt(name, backend):
    try:
        print(decoding.open_video(name, backend).backend)
    except ValueError as error:
        print(error)
clip, *folders = sys.argv[1:]
for folder in folders:
    sys.path.insert(0, folder)
    for name in ("av", "torchcodec"):
        sys.modules.pop(name, None)
    decoding.missing.cache_clear()
    attempt(clip, "auto")
    attempt(clip, "torchcodec")
    attempt(clip, "pyav")
"""


def test_auto_takes_what_is_there(tmp_path: Path) -> None:
    """As torchcodec behaves where it is absent or finds no FFmpeg; then with neither library."""
    path = clips.write(tmp_path / "a.mkv", clips.pictures(4))
    folders = []
    for code in [*ABSENT.values(), "raise ImportError('no')"]:
        folders.append(tmp_path / str(len(folders)))
        (folders[-1] / "torchcodec").mkdir(parents=True)
        (folders[-1] / "torchcodec" / "__init__.py").write_text(code)
    (folders[-1] / "av").mkdir()
    (folders[-1] / "av" / "__init__.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path), *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    lines = done.stdout.splitlines()
    for i, reason in enumerate(ABSENT):
        assert lines[3 * i] == lines[3 * i + 2] == "pyav"
        assert f"cannot use the backend 'torchcodec': {reason}" in lines[3 * i + 1]
    assert len(lines) == 12
    assert "found neither: pip install" in lines[9]
    assert 'PyAV is not installed: pip install "papr-torch[video]"' in lines[11]
