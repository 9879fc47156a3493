"""Selections that PaPr must beat, as scorers: pixels (B, 3, H, W) in, scores (B, h, w) out.

Of clips (B, 3, T, H, W) the scores are (B, T, h, w). Each is a `proposal=` for `papr.prune`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from papr.errors import ConfigError, SelectionError
from papr.significance import describe

Scores = Callable[[Tensor], Tensor]
#: Pixels that a score covers: along each side, or (height, width).
Cell = int | tuple[int, int]


def random_scores(seed: int | None = 0, cell: Cell = 8) -> Scores:
    """Uniform noise: every patch has the same chance. Another draw at each call.

    The noise is drawn where the pixels are, so that no copy makes the device wait. The same seed
    gives the same draws on the same kind of device, and others on another kind: a CPU and a GPU
    generate numbers each in their own way.

    Args:
        seed: of the generators, one for each device that pixels come from; None to draw from
            torch's own, so that whoever seeds those repeats the draws, whatever was drawn before.
        cell: pixels a score covers along each side, or (height, width).
    """
    generators: dict[torch.device, torch.Generator] = {}

    def scores(pixels: Tensor) -> Tensor:
        device = pixels.device
        if seed is None:
            return torch.rand(_cells(pixels, cell), dtype=torch.float32, device=device)
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        shape, own = _cells(pixels, cell), generators[device]
        return torch.rand(shape, generator=own, dtype=torch.float32, device=device)

    return scores


def centre_scores(cell: Cell = 8) -> Scores:
    """The nearer to the centre of the image or frame, the higher: what photographers do anyway.

    Args:
        cell: pixels a score covers along each side, or (height, width).
    """

    def scores(pixels: Tensor) -> Tensor:
        shape = _cells(pixels, cell)
        device = pixels.device
        y = torch.linspace(-1, 1, shape[-2], dtype=torch.float32, device=device)
        x = torch.linspace(-1, 1, shape[-1], dtype=torch.float32, device=device)
        return -(y[:, None] ** 2 + x[None, :] ** 2).expand(shape)

    return scores


def stride_scores(cell: Cell = 16, tubelet: int = 1) -> Scores:
    """Uniform stride: whatever share is kept lies evenly spread over the image.

    Patches are ranked by Bayer's dither matrix (Bayer, "An optimum method for two-level rendition
    of continuous-tone pictures", ICC 1973): on a grid of even sides a quarter is every second row
    and column, a half a checkerboard, and any share in between fills up evenly. Of a clip every
    frame of tubelets gets the same patches, as far as their number can be divided so.

    Args:
        cell: side of the host's patches in pixels, or their (height, width). It must be theirs:
            on another grid the order is blurred when the scores are resized. For the same reason
            this is no baseline for Swin and ConvNeXt, whose stages have a grid each.
        tubelet: frames that a patch of a video host spans.
    """
    made: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    def scores(pixels: Tensor) -> Tensor:
        batch, *grid = _cells(pixels, cell)
        if len(grid) == 3:
            grid[0] = max(1, grid[0] // tubelet)
        key = (pixels.device, tuple(grid))
        if key not in made:
            made[key] = _stride_order(grid, pixels.device)
        return made[key].expand(batch, *grid)

    return scores


def oracle_scores(scores: Tensor | Scores) -> Scores:
    """A user's own scores: a ground-truth mask, gaze, depth, another model's map.

    Args:
        scores: (N, h, w) of N images, or (N, t, h, w) of clips, floating. They are handed out in
            that order, as many as each call brings images, and from the first again after the
            last; so the images must come in that order too. Or a callable, which is taken as it is.

    Raises:
        ConfigError: `scores` is neither.
        SelectionError: at a call, the images are more than there are scores.
    """
    if not isinstance(scores, Tensor):
        if not callable(scores):
            raise ConfigError(
                "expected scores (N, h, w) or a callable pixels -> scores, "
                f"got {type(scores).__name__}"
            )
        return scores
    if scores.ndim not in (3, 4) or not scores.is_floating_point() or not len(scores):
        raise ConfigError(f"expected floating scores (N, h, w), got {describe(scores)}")
    table, given = scores, [0]

    def in_order(pixels: Tensor) -> Tensor:
        batch, total = pixels.shape[0], table.shape[0]
        if batch > total:
            raise SelectionError(
                f"expected at most the {total} images there are scores of, got {batch}"
            )
        rows = (torch.arange(batch, device=table.device) + given[0]) % total
        given[0] = (given[0] + batch) % total
        return table[rows].to(pixels.device)

    return in_order


def _stride_order(grid: list[int], device: torch.device) -> Tensor:
    """Minus the rank of each cell (*grid), float32 integers, by Bayer's matrix of its size.

    Recursively, of each square of four: upper left, lower right, upper right, lower left; the
    quarter that a cell lies in at the finest level counts most. In time the same by halves, and
    least, so that frames differ by one patch at most.
    """
    y = torch.arange(grid[-2], device=device).unsqueeze(1)
    x = torch.arange(grid[-1], device=device).unsqueeze(0)
    rank = y * 0 + x * 0
    for level in range(max(grid[-2:]).bit_length()):
        b = (y >> level) & 1
        a = ((x >> level) & 1) ^ b
        rank = rank * 4 + 2 * a + b
    if len(grid) == 3:
        t = torch.arange(grid[0], device=device)
        when = t * 0
        for level in range(grid[0].bit_length()):
            when = when * 2 + ((t >> level) & 1)
        rank = rank * 2 ** grid[0].bit_length() + when.view(-1, 1, 1)
    # dense ranks, which float32 holds exactly to 2 ** 24
    order = rank.flatten().argsort(stable=True)
    dense = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    return -dense.view(rank.shape).float()


def _cells(pixels: Tensor, cell: Cell) -> tuple[int, ...]:
    """The shape of the scores: (B, h, w), or (B, T, h, w) of clips."""
    batch, _, *frames, height, width = pixels.shape
    down, across = (cell, cell) if isinstance(cell, int) else cell
    return batch, *frames, height // down, width // across
