"""Deletion and insertion curves against a slow walk, patch by patch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from papr.measure import curves


def judge(classes: int = 3) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16 * 24, classes)
    ).eval()


def walk(net: nn.Module, image: Tensor, scores: Tensor, target: int, counts: list[int]) -> tuple:
    """One image: sort the patches, take them away or put them in, ask the network each time."""
    rows, columns = scores.shape
    height, width = image.shape[1] // rows, image.shape[2] // columns
    places = [(-float(scores[r, c]), r * columns + c) for r in range(rows) for c in range(columns)]
    order = [index for _, index in sorted(places)]
    mean = [float(channel.double().mean()) for channel in image]
    found: tuple[list, list] = ([], [])
    for count in counts:
        for which in (0, 1):
            shown = image.clone()
            for index in range(rows * columns):
                gone = (index in order[:count]) == (which == 0)
                if gone:
                    y, x = index // columns * height, index % columns * width
                    for channel in range(3):
                        shown[channel, y : y + height, x : x + width] = mean[channel]
            with torch.no_grad():
                logits = net(shown[None])[0].double().numpy()
            odds = np.exp(logits - logits.max())
            found[which].append(odds[target] / odds.sum())
    return found


def test_curves_are_those_of_the_slow_walk() -> None:
    net, pixels = judge(), torch.rand(2, 3, 16, 24) * 2
    scores = torch.randint(0, 4, (2, 4, 6)).float()  # many of them equal
    classes = torch.tensor([2, 0])
    found = curves(net, pixels, scores, classes, steps=5, batch=4)
    counts = [0, 5, 10, 14, 19, 24]
    assert torch.allclose(found.shares * 24, torch.tensor(counts, dtype=torch.float32))
    for i in range(2):
        deletion, insertion = walk(net, pixels[i], scores[i], int(classes[i]), counts)
        assert np.abs(found.deletion[i].numpy() - deletion).max() < 1e-5
        assert np.abs(found.insertion[i].numpy() - insertion).max() < 1e-5
        x = np.array(counts) / 24
        area = sum((x[k + 1] - x[k]) * (deletion[k + 1] + deletion[k]) / 2 for k in range(5))
        assert float(found.deletion_area[i]) == pytest.approx(area, abs=1e-5)
        area = sum((x[k + 1] - x[k]) * (insertion[k + 1] + insertion[k]) / 2 for k in range(5))
        assert float(found.insertion_area[i]) == pytest.approx(area, abs=1e-5)


def test_a_map_that_knows_wins_and_the_opposite_map_loses() -> None:
    """A judge that looks at one corner: it is best deleted, and inserted, first."""

    def corner(x: Tensor) -> Tensor:
        seen = 40 * x[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([seen, torch.full_like(seen, 5.0)], dim=1)

    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., :8, :8] = 0.5
    knows = torch.zeros(1, 4, 4)
    knows[0, 0, 0] = 1
    target = torch.tensor([0])
    good, bad = (curves(corner, pixels, scores, target, 16) for scores in (knows, -knows))
    assert float(good.deletion[0, 0]) > 0.99
    assert float(good.deletion[0, 1]) < 0.05
    assert float(good.insertion[0, 1]) > 0.99
    assert float(good.deletion_area) < 0.1 < 0.9 < float(bad.deletion_area)
    assert float(bad.insertion_area) < 0.1 < 0.9 < float(good.insertion_area)


@pytest.mark.parametrize(
    ("scores", "classes", "steps", "message"),
    [
        (torch.zeros(1, 4, 6), torch.zeros(2), 3, r"expected scores \(2, rows, columns\)"),
        (torch.zeros(2, 4, 6), torch.zeros(1), 3, r"expected scores .* and \(1,\)"),
        (torch.zeros(2, 5, 6), torch.zeros(2), 3, r"a grid that divides the picture \(16, 24\)"),
        (torch.zeros(2, 4, 6), torch.zeros(2), 25, "expected 1 to 24 steps, as many as patches"),
        (torch.zeros(2, 24), torch.zeros(2), 3, r"expected scores \(2, rows, columns\)"),
    ],
)
def test_what_does_not_fit(scores: Tensor, classes: Tensor, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curves(judge(), torch.zeros(2, 3, 16, 24), scores, classes.long(), steps)
