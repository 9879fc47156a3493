"""What an overlay shows, pixel by pixel, and that files play what was written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papr.draw import LOW, MIDDLE
from papr.errors import VideoError
from papr.video import open_video
from papr.video.overlay import durations, overlay, write_gif, write_mp4

CAPTION, GAP = 22, 6


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four frames of 24 x 32, two tubelets of 2 x 2 patches; one kept, then three."""
    torch.manual_seed(0)
    frames = torch.randint(256, (4, 24, 32, 3), dtype=torch.uint8)
    scores = torch.tensor([[[1.0, 0.2], [0.1, 0.0]], [[0.5, 0.2], [0.6, 0.7]]])
    return frames, scores > 0.4, scores


def test_kept_patches_are_as_they_were_and_the_rest_dimmed() -> None:
    frames, mask, scores = example()
    pictures = overlay(frames, mask, scores)
    assert len(pictures) == 4
    for i, picture in enumerate(pictures):
        shown = torch.from_numpy(np.array(picture))
        assert all(side % 2 == 0 for side in picture.size)
        assert picture.width == 32 + GAP + 32
        left = shown[CAPTION : CAPTION + 24, :32]
        for y in range(2):
            for x in range(2):
                cell = slice(12 * y, 12 * y + 12), slice(16 * x, 16 * x + 16)
                if mask[i // 2, y, x]:
                    assert torch.equal(left[cell], frames[i][cell])
                else:
                    grey = frames[i][cell].float() @ torch.tensor([0.299, 0.587, 0.114])
                    expected = 0.2 * grey.unsqueeze(-1) + 0.8 * torch.tensor(LOW)
                    assert (left[cell] - expected).abs().max() <= 1.5


def test_the_map_has_one_scale_over_the_whole_clip() -> None:
    frames, mask, scores = example()
    pictures = overlay(torch.zeros_like(frames), mask, scores)
    shown = [np.array(p)[CAPTION : CAPTION + 24, -32:].sum(-1) for p in pictures]
    assert shown[0].max() > 1.15 * shown[2].max()  # 1.0 and 0.7
    assert shown[0].min() < shown[2].min()


def test_the_strip_shows_the_kept_fraction_over_time() -> None:
    frames, mask, scores = example()
    first, *_, last = (np.array(picture) for picture in overlay(frames, mask, scores))
    red = [(picture == MIDDLE).all(-1) for picture in (first, last)]
    assert red[0][:, :30].any(1).sum() == 9 + 1  # a quarter of 36 pixels
    assert red[1][:, 40:].any(1).sum() == 27 + 1
    assert not red[0][:, 36:].any()
    assert not red[1][:, :34].any()


@pytest.mark.parametrize(
    ("frames", "mask", "scores", "message"),
    [
        ((4, 3, 8, 8), (2, 2, 2), (2, 2, 2), r"expected frames \(T, H, W, 3\)"),
        ((4, 8, 8, 3), (2, 2, 2), (2, 2, 1), r"got \(4, 8, 8, 3\), \(2, 2, 2\) and \(2, 2, 1\)"),
        ((5, 8, 8, 3), (2, 2, 2), (2, 2, 2), "got 5 frames for 2"),
        ((0, 8, 8, 3), (2, 2, 2), (2, 2, 2), "got 0 frames for 2"),
    ],
)
def test_shapes_that_do_not_fit(frames, mask, scores, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        overlay(
            torch.zeros(frames, dtype=torch.uint8),
            torch.zeros(mask, dtype=torch.bool),
            torch.zeros(scores),
        )


def plain(count: int = 12, size: tuple[int, int] = (51, 33)) -> list[Image.Image]:
    """Grey pictures, each lighter than the last."""
    return [Image.new("RGB", size, (20 * i,) * 3) for i in range(count)]


def test_mp4(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra: video")
    path = tmp_path / "deep" / "a.mp4"
    assert write_mp4(path, plain(), 29.97) in ("h264", "mpeg4")
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    with open_video(path) as video:
        assert (video.frames, video.height, video.width) == (12, 34, 52)
        assert video.fps == pytest.approx(29.97, abs=1e-3)
        levels = video.read(range(12))[:, :, 4:28, 4:44].float().mean((1, 2, 3))
    assert levels.tolist() == pytest.approx([20 * i for i in range(12)], abs=3)
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_mp4_without_an_h264_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="needs the extra: video")
    monkeypatch.setattr(av, "codecs_available", set(av.codecs_available) - {"libx264"})
    assert write_mp4(tmp_path / "a.mp4", plain(), 7) == "mpeg4"
    with open_video(tmp_path / "a.mp4", "pyav") as video:
        assert video.frames == 12


def test_gif(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.gif"
    write_gif(path, plain(size=(960, 60)), 7)
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (12, (480, 30))
        assert gif.info["loop"] == 0
        total = 0
        for i in range(12):
            gif.seek(i)
            total += gif.info["duration"]
            level = np.array(gif.convert("RGB"))[15, 240]
            assert np.abs(level.astype(int) - 20 * i).max() <= 4
    assert total == pytest.approx(12 / 7 * 1000, abs=10)


def test_durations() -> None:
    assert durations(4, 7) == [140, 150, 140, 140]
    assert durations(2, 10) == [100, 100]
    assert durations(2, 300) == [10, 10]


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_nothing_is_written_of_what_does_not_fit(write, tmp_path: Path) -> None:
    for pictures, fps, message in (
        ([], 7, "expected pictures of one size, got none"),
        ([*plain(2), *plain(1, (8, 8))], 7, r"got \[\(8, 8\), \(51, 33\)\]"),
        (plain(2), 0, "got 0"),
    ):
        with pytest.raises(VideoError, match=message):
            write(tmp_path / "a.out", pictures, fps)
    assert not list(tmp_path.iterdir())
