"""A budget for each image: as many patches as carry a given share of its significance.

Beyond the paper, which keeps the same fraction of every image. The share is calibrated so that the
mean number of kept patches is that of a fixed keep, the target. Budgets are rounded to a ladder of
a few counts around the target's, so that images of one count make dense batches: no padding.
Measured beside a fixed keep in benchmarks/results/adaptive.json. Pure functions on plain tensors.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from papr.config import DEFAULT_PROPOSAL, Triple, check_keep, check_statistics
from papr.errors import ConfigError, SelectionError
from papr.proposals import as_proposal
from papr.selecting import kept_count
from papr.significance import to_grid

#: Budgets as fractions of the target's. Eighths of all patches are too coarse at a low target.
STEPS = (0.75, 0.875, 1.0, 1.125, 1.25)
#: Share by target, of the embedded proposal at its default size on a grid of 14 x 14: what every
#: second of 500 ImageNet photographs gave. See benchmarks/adaptive.py.
#: None below 0.5: what budgets gain there is lost again to the time that small groups take.
SHARES = {0.5: 0.7112, 0.6: 0.8000, 0.7: 0.8790}


def ladder(target: float, patches: int) -> list[int]:
    """The budgets there are, ascending: at most five.

    Args:
        target: the mean fraction of patches that stay, 0 < target <= 1.
        patches: patches on the grid.
    """
    # a hair more, since 0.875 * 0.8 is a hair less than 0.7
    return sorted({kept_count(min(1.0, target * step + 1e-9), patches) for step in STEPS})


def budgets(scores: Tensor, share: float, target: float) -> Tensor:
    """How many patches each image keeps, whatever stands beside it in the batch.

    Args:
        scores: the significance map (B, *grid); what is below 0 carries nothing.
        share: of the map's sum that the kept patches carry, 0 < share < 1.
        target: which ladder the number is rounded to; of two counts equally near the lower.

    Returns:
        (B,) int64, on the CPU: how many groups there are is known only there.
    """
    weights = scores.detach().flatten(1).cpu().double().clamp_min(0)
    ranked = weights.sort(1, descending=True).values
    carried = ranked.cumsum(1)
    wanted = (carried < share * carried[:, -1:]).sum(1) + 1
    steps = torch.tensor(ladder(target, weights.shape[1]))
    return steps[(wanted.unsqueeze(1) - steps).abs().argmin(1)]


def calibrate(
    images: Tensor | Iterable[Tensor],
    target: float = 0.5,
    proposal: object = DEFAULT_PROPOSAL,
    grid: tuple[int, int] = (14, 14),
    mean: Triple | None = None,
    std: Triple | None = None,
) -> float:
    """The share at which images keep `target` of their patches in the mean.

    Args:
        images: pixels (B, 3, H, W), or batches of such: a few hundred images like those to come.
        target: mean fraction of patches that stay, 0 < target <= 1.
        proposal: who looks; see `papr.Proposal`.
        grid: the host's patch grid, (rows, columns).
        mean: what the pixels were normalised with, for pixels in [0, 1]; None for the proposal's
            own. A callable gets pixels as they are.
        std: likewise.

    Returns:
        The share, for `papr.prune(model, keep="auto", target=target, share=...)`.

    Raises:
        ConfigError: target out of range.
        SelectionError: no images.
        ProposalError: the proposal returns no usable map.
    """
    target, maker = check_keep(target), as_proposal(proposal)
    mean, std = check_statistics(mean, std)
    maps = []
    for pixels in [images] if isinstance(images, Tensor) else images:
        scorer = maker.scorer(pixels.device, torch.float32, None, mean, std)
        maps.append(to_grid(scorer(pixels), grid).cpu())
    if not maps or not sum(map(len, maps)):
        raise SelectionError("expected at least one image to calibrate on, got none")
    return fit(torch.cat(maps), target)


def fit(scores: Tensor, target: float) -> float:
    """The share whose mean budget on significance maps (N, *grid) is nearest the target's."""
    patches = scores[0].numel()
    wanted = float(kept_count(target, patches))
    low, high = 0.0, 1.0

    def miss(share: float) -> float:
        return float(budgets(scores, share, target).double().mean()) - wanted

    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if miss(middle) < 0 else (low, middle)
    return min((high, low), key=lambda share: abs(miss(share)))


def default_share(target: float, proposal: object) -> float:
    """The share measured for the embedded proposal, between the targets measured linearly.

    Raises:
        ConfigError: another proposal, or a target outside those measured.
    """
    known = sorted(SHARES)
    if proposal != DEFAULT_PROPOSAL or not known[0] <= target <= known[-1]:
        raise ConfigError(
            f"expected share=papr.calibrate(images, target), since one is known for "
            f"{DEFAULT_PROPOSAL} at its own size and targets from {known[0]} to {known[-1]} only, "
            f"got none for {target!r}"
        )
    above = next(t for t in known if t >= target)
    below = max((t for t in known if t <= target), default=above)
    part = 0.0 if above == below else (target - below) / (above - below)
    return SHARES[below] + part * (SHARES[above] - SHARES[below])
