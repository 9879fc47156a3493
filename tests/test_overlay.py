"""What was kept, drawn on the user's picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import papr
from papr.errors import SelectionError
from tiny import CASES


@pytest.fixture
def chosen() -> papr.Selection:
    case = CASES["augreg"]
    model = case.prune(case.build(), 0.5)
    model(case.pixels(2))
    return papr.selection(model)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(1))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def test_kept_patches_stay_as_they_are_and_the_others_fade(chosen) -> None:
    photo = picture()
    drawn = chosen.overlay(photo, index=1)
    assert drawn.size == photo.size
    kept = chosen.mask()[1].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    same = (np.array(drawn) == np.array(photo)).all(-1)
    assert same[kept].all()
    assert same[~kept].mean() < 0.01
    assert np.array(drawn)[~kept].mean() > 200  # towards white
    assert not np.array_equal(np.array(drawn), np.array(chosen.overlay(photo)))


def test_every_kind_of_photograph_gives_one_picture(chosen, tmp_path: Path) -> None:
    photo = picture()
    photo.save(tmp_path / "photo.png")
    array = np.array(photo)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = np.array(chosen.overlay(photo))
    for given in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        array,
        array / 255,
        tensor,
        tensor / 255,
    ):
        assert np.array_equal(np.array(chosen.overlay(given)), expected)


def test_a_photograph_of_another_size_is_drawn_at_its_own(chosen) -> None:
    assert chosen.overlay(picture(640, 640)).size == (640, 640)
    assert chosen.overlay(picture(70, 64)).size == (70, 64)  # within one patch of the grid


@pytest.mark.parametrize(
    ("photo", "index", "message"),
    [
        (picture(96, 64), 0, "aspect ratio of 8 x 8 patches, got 64 x 96 pixels"),
        (picture(), 2, "an image among 2 of the batch, got 2"),
        (torch.randn(3, 64, 64), 0, "from 0 to 1, before they are normalised"),
        (torch.rand(1, 64, 64), 0, r"a tensor \(3, H, W\), got Tensor \(1, 64, 64\)"),
        (5, 0, "expected a path, a PIL image, an array"),
    ],
)
def test_what_cannot_be_drawn_is_refused(chosen, photo, index: int, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        chosen.overlay(photo, index)


def test_clips_are_refused() -> None:
    clip = papr.Selection(torch.zeros(1, 1, dtype=torch.long), (2, 8, 8))
    with pytest.raises(SelectionError, match="papr video draws those"):
        clip.overlay(picture())
