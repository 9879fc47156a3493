"""Deletion and insertion curves: does a map rank the patches as a classifier needs them?

Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models",
BMVC 2018 (arXiv 1806.07421), Sec. 4.1. Patches are taken away from the picture in the order of the
map, the most significant first, and the classifier's probability of one class is followed: the
sooner it falls, the better the map (a small area under the deletion curve). Or they are put into
an empty picture: the sooner it rises, the better (a large area under the insertion curve). Unlike
there, an empty patch has the picture's mean colour in both curves, and patches go whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 14


@dataclass(frozen=True)
class Curves:
    """Probabilities of the judged class along both curves.

    Attributes:
        shares: (steps + 1,), the share of patches taken away or put in, from 0 to 1.
        deletion: (B, steps + 1), float32, from the whole picture to none of it.
        insertion: (B, steps + 1), float32, from none of it to the whole picture.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> Tensor:
        """(B,), 0 to 1; lower is better."""
        return torch.trapezoid(self.deletion, self.shares)

    @property
    def insertion_area(self) -> Tensor:
        """(B,), 0 to 1; higher is better."""
        return torch.trapezoid(self.insertion, self.shares)


@torch.no_grad()
def curves(
    judge: Callable[[Tensor], Tensor],
    pixels: Tensor,
    scores: Tensor,
    classes: Tensor,
    steps: int = STEPS,
    batch: int = 16,
) -> Curves:
    """Deletion and insertion curves of maps, judged by a classifier.

    Args:
        judge: pixels (N, C, H, W) to logits (N, classes).
        pixels: (B, C, H, W), normalised for the judge; an empty patch is the mean over (H, W) of
            each picture and channel, which is the mean colour under any such normalisation.
        scores: (B, rows, columns), on a grid that divides the picture; of equal scores the first,
            row by row, counts as the more significant.
        classes: (B,) the class index judged of each picture.
        steps: into how many parts the patches are divided, at most rows * columns. Where the
            division leaves a rest, parts differ by one patch.
        batch: pictures that the judge is given at once.

    Returns:
        Both curves, on the pixels' device.

    Raises:
        ValueError: shapes do not fit, or there are more steps than patches.
    """
    count = len(pixels)
    if scores.ndim != 3 or not len(scores) == len(classes) == count:
        raise ValueError(
            f"expected scores ({count}, rows, columns) and classes ({count},), got "
            f"{tuple(scores.shape)} and {tuple(classes.shape)}"
        )
    rows, columns = scores.shape[1:]
    patches = rows * columns
    if pixels.shape[-2] % rows or pixels.shape[-1] % columns:
        raise ValueError(
            f"expected a grid that divides the picture {tuple(pixels.shape[-2:])}, got "
            f"{(rows, columns)}"
        )
    if not 1 <= steps <= patches:
        raise ValueError(f"expected 1 to {patches} steps, as many as patches, got {steps}")
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).view_as(scores)
    taken = [round(patches * step / steps) for step in range(steps + 1)]
    found = [_judged(judge, pixels, ranks, classes, taken, batch, i) for i in (False, True)]
    parts = [n / patches for n in taken]
    shares = torch.tensor(parts, dtype=torch.float32, device=pixels.device)
    return Curves(shares, *found)


def _judged(
    judge: Callable[[Tensor], Tensor],
    pixels: Tensor,
    ranks: Tensor,
    classes: Tensor,
    taken: list[int],
    batch: int,
    insert: bool,
) -> Tensor:
    """The judged class's probability at each step of one curve, (B, steps + 1)."""
    cells = (pixels.shape[-2] // ranks.shape[1], pixels.shape[-1] // ranks.shape[2])
    empty = pixels.mean(dim=(2, 3), keepdim=True)
    places = torch.arange(len(pixels), device=pixels.device).repeat_interleave(len(taken))
    counts = torch.tensor(taken, device=pixels.device).repeat(len(pixels))
    parts = []
    for which, n in zip(places.split(batch), counts.split(batch), strict=True):
        first = ranks[which] < n[:, None, None]
        shown = (first if insert else ~first).repeat_interleave(cells[0], 1)
        shown = shown.repeat_interleave(cells[1], 2).unsqueeze(1)
        logits = judge(torch.where(shown, pixels[which], empty[which]))
        probabilities = logits.float().softmax(dim=1)
        parts.append(probabilities.gather(1, classes[which].unsqueeze(1)).squeeze(1))
    return torch.cat(parts).view(len(pixels), len(taken))
