"""Views as literal numbers, a slow reference for their pixels, and the mean over views."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import clips
from papr.errors import ConfigError
from papr.video import POLICIES, Policy, View, average_views, open_video, read_views, views
from papr.video.sampling import normalise, read_crops, resize, window


def starts(found: Sequence[View]) -> list[int]:
    return [view.frames[0] for view in found]


def test_videomae() -> None:
    """A Kinetics clip: 280 frames of 256 x 340 make 70 at stride 4, windows start 13.5 apart."""
    found = views("videomae", 280, 256, 340)
    assert len(found) == 15
    assert starts(found)[::3] == [0, 52, 108, 160, 216]
    assert found[3].frames == (
        *(52, 56, 60, 64, 68, 72, 76, 80),
        *(84, 88, 92, 96, 100, 104, 108, 112),
    )
    assert found[-1].frames[-1] == 276
    assert {view.resized for view in found} == {(224, 297)}
    assert [(view.top, view.left, view.size) for view in found[:3]] == [
        (0, 0, 224),
        (0, 36, 224),
        (0, 73, 224),
    ]


def test_videomae_upright_and_odd() -> None:
    found = views("videomae", 301, 640, 360)
    assert starts(found)[::3] == [0, 60, 120, 180, 240]
    assert found[12].frames[-1] == 300
    assert found[0].resized == (398, 224)
    assert [(view.top, view.left) for view in found[:3]] == [(0, 0), (87, 0), (174, 0)]


def test_videomae_repeats_the_last_frame_of_short_videos() -> None:
    found = views("videomae", 42, 224, 224)
    expected = (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 40, 40, 40, 40, 40)
    assert [view.frames for view in found] == [expected] * 15
    assert views("videomae", 1, 224, 224)[0].frames == (0,) * 16
    assert {(view.top, view.left) for view in found} == {(0, 0)}


def test_mmaction2() -> None:
    """Windows start round(i * (280 - 61) / 4): 54.75, 109.5, 164.25; halves go to even."""
    found = views("mmaction2", 280, 256, 340)
    assert starts(found)[::3] == [0, 55, 110, 164, 219]
    assert found[-1].frames[-1] == 279
    assert found[0].resized == (224, 298)
    assert [view.left for view in found[:3]] == [0, 74, 37]


def test_mmaction2_slowonly() -> None:
    found = views("mmaction2-slowonly", 300, 360, 640)
    assert starts(found)[::3] == [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]
    assert found[0].frames == (0, 8, 16, 24, 32, 40, 48, 56)
    assert found[0].resized == (256, 455)
    assert [view.left for view in found[:3]] == [0, 198, 99]


def test_mmaction2_starts_short_videos_again() -> None:
    found = views("mmaction2", 30, 224, 224)
    expected = (0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 0)
    assert [view.frames for view in found] == [expected] * 15
    single = replace(POLICIES["mmaction2"], windows=1, crops=1)
    assert views(single, 280, 300, 224)[0] == View(
        tuple(range(109, 170, 4)), (300, 224), 38, 0, 224
    )


def test_uniform() -> None:
    (found,) = views("uniform", 160, 256, 340)
    assert found.frames == tuple(range(5, 160, 10))
    assert (found.resized, found.top, found.left) == ((224, 297), 0, 36)
    (short,) = views("uniform", 3, 256, 340)
    assert short.frames == (0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2)


def test_consecutive() -> None:
    found = views("consecutive", 280, 256, 340)
    assert starts(found) == [0, 64, 128, 192]  # 24 frames are left, less than half a window
    assert found[3].frames[-1] == 252
    assert starts(views("consecutive", 290, 256, 340)) == [0, 64, 128, 192, 256]
    assert views("consecutive", 290, 256, 340)[4].frames[6:] == (280, 284, 288) + (289,) * 7
    assert starts(views(Policy("consecutive", windows=2), 280, 9, 9))[::3] == [0, 64]
    assert starts(views("consecutive", 5, 256, 340)) == [0]


def test_window() -> None:
    assert window(20, 3, 4, 5) == (3, 8, 13, 18)
    assert window(12, 3, 4, 5) == (3, 8, 11, 11)
    with pytest.raises(ConfigError, match="starts in frames 0 to 11, got 12"):
        window(12, 12, 4, 5)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 5, 900), (37, 300, 300), (999, 7, 3)])
def test_every_view_lies_in_the_video(name: str, frames: int, height: int, width: int) -> None:
    policy = POLICIES[name]
    for view in views(name, frames, height, width):
        assert len(view.frames) == policy.clip
        assert all(0 <= i < frames for i in view.frames)
        assert min(view.resized) == view.size == policy.size
        assert 0 <= view.top <= view.resized[0] - view.size
        assert 0 <= view.left <= view.resized[1] - view.size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: views("videomae", 0, 5, 5), "expected frames of at least 1, got 0"),
        (lambda: views("videomae", 9, 5, -5), "expected width of at least 1, got -5"),
        (lambda: views("x", 9, 5, 5), "expected a policy among videomae, .*, got 'x'"),
        (lambda: Policy("x"), "expected a style among videomae, .*, got 'x'"),
        (lambda: Policy("videomae", stride=0), "expected stride of at least 1, got 0"),
        (lambda: Policy("videomae", clip=2.5), "expected clip of at least 1, got 2.5"),  # type: ignore[arg-type]
        (lambda: Policy("mmaction2", crops=2), "expected 1 or 3 crops .*, got 2"),
        (
            lambda: average_views(torch.ones(3)),
            r"expected logits \(views, classes\) of two .*, got \(3,\)",
        ),
        (lambda: average_views(torch.ones(0, 3)), r"got \(0, 3\)"),
    ],
)
def test_nonsense_is_refused_with_its_numbers(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def slow_resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centres, one output pixel at a time. (C, H, W) in and out."""
    out = np.zeros((picture.shape[0], height, width))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * picture.shape[1] / height - 0.5, 0)
            x = max((j + 0.5) * picture.shape[2] / width - 0.5, 0)
            top, left = int(y), int(x)
            for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
                    r, c = min(row, picture.shape[1] - 1), min(column, picture.shape[2] - 1)
                    out[:, i, j] += down * across * picture[:, r, c]
    return out


def test_pixels_equal_a_slow_reference(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra: video")
    frames = clips.pictures(45, 30, 50)
    policy = Policy("videomae", clip=3, stride=2, windows=2, crops=2, size=20)
    with open_video(clips.write(tmp_path / "a.mkv", frames)) as video:
        chosen = views(policy, video.frames, video.height, video.width)
        pixels = read_views(video, chosen, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        again = read_crops(video, chosen[::-1])
    assert pixels.shape == (4, 3, 3, 20, 20)
    assert pixels.dtype == torch.float32
    middle, spread = np.array([[[0.1]], [[0.2]], [[0.3]]]), np.array([[[0.5]], [[0.6]], [[0.7]]])
    for v, (first, left) in enumerate([(0, 0), (0, 13), (40, 0), (40, 13)]):
        for t in range(3):
            picture = frames[first + 2 * t].transpose(2, 0, 1)
            expected = slow_resize(picture, 20, 33)[:, :, left : left + 20]
            gap = pixels[v, t].numpy() * spread + middle - expected / 255
            assert np.abs(gap).max() < 0.51 / 255  # rounded to whole levels
    assert torch.equal(normalise(again.flip(0), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), pixels)


def test_views_of_several_lengths_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra: video")
    with open_video(clips.write(tmp_path / "a.mkv", clips.pictures(4))) as video:
        chosen = [View((0,), (48, 64), 0, 0, 48), View((0, 1), (48, 64), 0, 0, 48)]
        with pytest.raises(ConfigError, match=r"expected views of one length"):
            read_crops(video, chosen)


def test_resize_leaves_frames_of_that_size_alone() -> None:
    frames = torch.randint(256, (2, 3, 6, 8), dtype=torch.uint8)
    assert resize(frames, (6, 8)) is frames


def test_average_of_probabilities() -> None:
    """Two sure views against one that is surer: the mean of softmax, not of logits, decides."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 9.0]], dtype=torch.bfloat16)
    expected = np.exp(logits.double().numpy())
    expected = (expected / expected.sum(1, keepdims=True)).mean(0)
    average = average_views(logits)
    assert average.dtype == torch.float32
    assert np.abs(average.numpy() - expected).max() < 1e-6
    assert average.argmax() == 0
    assert logits.float().mean(0).argmax() == 1
