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
from papr.proposals import Proposal, as_proposal
from papr.selecting import kept_count
from papr.significance import to_grid

#: Budgets as fractions of the target's. Eighths of all patches are too coarse at a low target.
STEPS = (0.75, 0.875, 1.0, 1.125, 1.25)
#: Proposal -> share by target, at its own size on a grid of 14 x 14: what `fit` gives on ImageNet
#: photographs. Lite0's are of every second of 500 (benchmarks/adaptive.py stores them as "shares"),
#: glance's of half of the others: it was trained on those, where its maps are sharper.
#: None below 0.5: what budgets gain there is lost again to the time that small groups take.
SHARES: dict[str, dict[float, float]] = {
    "glance": {0.5: 0.7251, 0.6: 0.8138, 0.7: 0.8896},
    "efficientnet_lite0": {0.5: 0.7112, 0.6: 0.8000, 0.7: 0.8790},
}


def ladder(target: float, patches: int) -> list[int]:
    """The budgets there are, ascending: at most five.

    Args:
        target: the mean fraction of patches that stay, 0 < target <= 1.
        patches: patches on the grid.
    """
    return sorted({kept_count(min(1.0, target * step), patches) for step in STEPS})


def from_zero(scores: Tensor, proposal: Proposal) -> Tensor:
    """A significance map (B, *grid) whose zero says that nothing is there.

    glance learned where there is more than elsewhere, and no zero: the least of its map is taken.
    """
    if proposal.has_zero:
        return scores
    return scores - scores.flatten(1).amin(1).view(-1, *[1] * (scores.ndim - 1))


def budgets(scores: Tensor, share: float, target: float) -> Tensor:
    """How many patches each image keeps, whatever stands beside it in the batch.

    Args:
        scores: the significance map (B, *grid); what is below 0 carries nothing.
        share: of the map's sum that the kept patches carry, 0 < share < 1.
        target: which ladder the number is rounded to; of two counts equally near the lower.

    Returns:
        (B,) int64, on the CPU: how many groups there are is known only there. The target's, where
        a map has nothing above 0 to share out.
    """
    weights = scores.detach().flatten(1).cpu().double().clamp_min(0)
    ranked = weights.sort(1, descending=True).values
    carried = ranked.cumsum(1)
    wanted = (carried < share * carried[:, -1:]).sum(1) + 1
    wanted[carried[:, -1] == 0] = kept_count(target, weights.shape[1])
    steps = torch.tensor(ladder(target, weights.shape[1]), device="cpu")
    return steps[(wanted.unsqueeze(1) - steps).abs().argmin(1)]


def calibrate(
    images: Tensor | Iterable[Tensor],
    target: float = 0.5,
    proposal: object = DEFAULT_PROPOSAL,
    grid: tuple[int, int] = (14, 14),
    mean: Triple | None = None,
    std: Triple | None = None,
    score: str = "significance",
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
        score: "significance" or "softcam", as in `papr.prune`, which must be given the same.

    Returns:
        The share, 0 < share < 1, for `papr.prune(model, keep="auto", target=target, share=...)`.

    Raises:
        ConfigError: target or score out of range; or no share keeps the target in the mean, since
            too little of the maps is above 0.
        SelectionError: no images.
        ProposalError: the proposal returns no usable map.
    """
    target, maker = check_keep(target), as_proposal(proposal)
    if score not in ("significance", "softcam"):
        raise ConfigError(f'expected score="significance" or "softcam", got {score!r}')
    mean, std = check_statistics(mean, std)
    maps = []
    for pixels in [images] if isinstance(images, Tensor) else images:
        scorer = maker.scorer(pixels.device, torch.float32, None, mean, std, score=score)
        maps.append(from_zero(to_grid(scorer(pixels), grid), maker).cpu())
    if not maps or not sum(map(len, maps)):
        raise SelectionError("expected at least one image to calibrate on, got none")
    return fit(torch.cat(maps), target)


def fit(scores: Tensor, target: float) -> float:
    """The share whose mean budget on significance maps (N, *grid) is nearest the target's.

    Raises:
        ConfigError: that mean is further from the target than half a step of the ladder, or there
            is nothing above 0 to share out in any map.
    """
    patches = scores[0].numel()
    wanted = float(kept_count(target, patches))
    if not bool((scores > 0).any()):
        raise ConfigError(
            f"expected significance maps with something above 0 to share out, got {len(scores)} "
            "maps without: add a constant to the scores, or papr.prune with a fixed keep"
        )
    low, high = 0.0, 1.0

    def mean(share: float) -> float:
        return float(budgets(scores, share, target).double().mean())

    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < wanted else (low, middle)
    # 0 and 1 are no shares; where one of them is left, the other has been tried next to it
    best = min((s for s in (high, low) if 0 < s < 1), key=lambda s: abs(mean(s) - wanted))
    half_a_step = max(0.5, wanted * (STEPS[1] - STEPS[0]) / 2)
    if abs(mean(best) - wanted) > half_a_step:
        raise ConfigError(
            f"expected maps of which some share is carried by {wanted:g} of {patches} patches in "
            f"the mean, got {mean(best):.1f} at the best: too few patches score above 0, or one "
            "carries all; papr.prune with a fixed keep"
        )
    return best


def default_share(target: float, proposal: object) -> float:
    """The share measured for a proposal, between the targets measured linearly.

    Raises:
        ConfigError: another proposal, or a target outside those measured.
    """
    shares = SHARES.get(proposal, {}) if isinstance(proposal, str) else {}
    known = sorted(shares)
    if not known or not known[0] <= target <= known[-1]:
        least, most = min(SHARES[DEFAULT_PROPOSAL]), max(SHARES[DEFAULT_PROPOSAL])
        raise ConfigError(
            f"expected share=papr.calibrate(images, target), since one is known for "
            f'{" and ".join(SHARES)} at their own size, score="significance" and targets from '
            f"{least} to {most} only, got none for {target!r}"
        )
    above = next(t for t in known if t >= target)
    below = max((t for t in known if t <= target), default=above)
    part = 0.0 if above == below else (target - below) / (above - below)
    return shares[below] + part * (shares[above] - shares[below])
