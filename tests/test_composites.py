"""The benchmarks' pictures: which photographs judge, and how they are put off the centre."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import common
import composites

SIDE = 64


@pytest.fixture
def pixels() -> torch.Tensor:
    """Twelve pictures, each of one colour that no other has."""
    return torch.linspace(0.05, 0.95, 12).view(12, 1, 1, 1).expand(12, 3, SIDE, SIDE).contiguous()


def test_composites_are_the_same_for_a_seed(pixels: torch.Tensor) -> None:
    one, same, other = (composites.off_centre(pixels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.pixels, same.pixels)
    assert torch.equal(one.boxes, same.boxes)
    assert torch.equal(one.grounds, same.grounds)
    assert not torch.equal(one.pixels, other.pixels)


def test_the_photograph_stands_in_a_corner_and_another_one_around_it(pixels: torch.Tensor) -> None:
    made = composites.off_centre(pixels)
    corners = set()
    for i, (top, left, bottom, right) in enumerate(made.boxes.tolist()):
        assert bottom - top == right - left
        assert 0.5 * SIDE <= bottom - top <= 0.65 * SIDE + 0.5
        assert top == 0 or bottom == SIDE
        assert left == 0 or right == SIDE
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        torch.testing.assert_close(made.pixels[i][:, inside].amax(), pixels[i, 0, 0, 0])
        torch.testing.assert_close(made.pixels[i][:, inside].amin(), pixels[i, 0, 0, 0])
        around, ground = made.pixels[i][:, ~inside], pixels[made.grounds[i], 0, 0, 0]
        torch.testing.assert_close(around, ground.expand_as(around))
        corners.add((top == 0, left == 0))
    assert len(corners) == 4
    assert sorted(made.grounds.tolist()) == list(range(12))  # each serves once
    assert (made.grounds != torch.arange(12)).all()


def test_the_whole_photograph_is_shown_and_the_ground_is_blurred() -> None:
    """Of stripes of one pixel nothing is left in the ground; of halves both are in the corner."""
    stripes = torch.arange(SIDE).remainder(2).float().expand(1, 3, SIDE, SIDE)
    halves = torch.arange(SIDE).ge(SIDE // 2).float().expand(1, 3, SIDE, SIDE)
    made = composites.off_centre(torch.cat([stripes, halves]))
    top, left, bottom, right = made.boxes[1].tolist()
    shown = made.pixels[1, :, top:bottom, left:right]
    assert shown[..., 0].max() < 0.01
    assert shown[..., -1].min() > 0.99
    made.pixels[1, :, top:bottom, left:right] = 0.5
    assert (made.pixels[1, :, 2:-2, 2:-2] - 0.5).abs().max() < 0.01


def test_a_sharp_ground_keeps_colour_and_sharpness_and_no_object(pixels: torch.Tensor) -> None:
    disc = torch.linspace(-1, 1, SIDE).square()
    disc = (disc[:, None] + disc[None, :] < 0.3).float().mul(0.4).add(0.3).expand(1, 3, -1, -1)
    made = composites.scrambled(disc, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.mean((2, 3)), disc.mean((2, 3)), atol=1e-2, rtol=0)
    amplitudes = [torch.fft.rfft2(image).abs() for image in (made, disc)]
    assert (amplitudes[0] - amplitudes[1]).abs().mean() < 0.1 * amplitudes[1].mean()
    alike = torch.corrcoef(torch.stack([made[0, 0].flatten(), disc[0, 0].flatten()]))[0, 1]
    assert alike.abs() < 0.5
    blurred = composites.off_centre(pixels)
    sharp = composites.off_centre(pixels, composites.scrambled)
    assert torch.equal(blurred.boxes, sharp.boxes)
    assert torch.equal(blurred.grounds, sharp.grounds)


def test_one_photograph_has_no_ground() -> None:
    with pytest.raises(ValueError, match="expected two photographs or more, got 1"):
        composites.off_centre(torch.rand(1, 3, SIDE, SIDE))


def test_only_odd_photographs_are_read_for_judging(tmp_path: Path) -> None:
    """Those with an even index were trained on; what is no image there must not be opened."""
    folder = tmp_path / "sample"
    classes = {}
    for index in range(6):
        (folder / f"n{index}").mkdir(parents=True)
        file = folder / f"n{index}" / "a.jpg"
        if index % 2:
            Image.new("RGB", (40, 32), (40 * index,) * 3).save(file)
        else:
            file.write_bytes(b"trained on")
        classes[f"n{index}"] = [100 + index, "name"]
    (tmp_path / "imagenet-classes.json").write_text(json.dumps(classes))
    pixels, labels = common.photographs(folder, 32, kept_apart=True)
    assert labels.tolist() == [101, 103, 105]
    assert (pixels.mean((1, 2, 3)) * 255).round().tolist() == [40, 120, 200]
