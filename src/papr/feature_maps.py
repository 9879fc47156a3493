"""Dense features of a pruned host: a map of the whole grid, and which cells of it are real."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from papr.errors import PrunedModelError
from papr.graft import states
from papr.hosts import find_plan
from papr.hosts.state import HostState, as_selection
from papr.selecting import check_fill, fill_pruned
from papr.wrappers import unwrap


class Features(NamedTuple):
    """What `papr.features` returns.

    Attributes:
        map: (B, C, H, W), the host's last features on its whole grid.
        kept: (B, H, W) bool, True where the host computed them and nothing was filled in.
    """

    map: Tensor
    kept: Tensor


def features(model: nn.Module, images: Tensor, fill: str = "nearest", **options: Any) -> Features:
    """The last feature map of a pruned host, on its whole grid.

    Tokens that were dropped, and cells that skip-and-zero left empty, are filled in. Swin leaves
    pruned cells with what its shortcuts and its attention made of them; those stay as they are,
    and `kept` says which they are. Prefix tokens are left out. Runs the host once, with gradients
    where they are enabled.

    Args:
        model: a pruned host.
        images: (B, 3, H, W) as the host takes them.
        fill: "nearest", the kept cell nearest on the grid; "mean", that of the image's kept cells;
            or "zero", which a head that was trained on dense maps has never seen.
        **options: what else the host's forward takes, such as `interpolate_pos_encoding=True` of
            transformers.

    Returns:
        The map (B, C, H, W) and the mask of kept cells (B, H, W).

    Raises:
        SelectionError: unknown fill.
        PrunedModelError: the host is not pruned.
    """
    check_fill(fill)
    host = unwrap(model)
    found_states: list[HostState] = states(host)
    if not found_states:
        raise PrunedModelError(
            f"expected a pruned model, got a {type(host).__name__} that is not; "
            "papr.prune(model, keep=1) gives the dense features"
        )
    plan, state = find_plan(host), found_states[0]
    with state.passes.watched() as seen:
        found = plan.features(host, images, **options)
    record = seen[-1]
    if found.ndim == 3:
        chosen = as_selection(record, sources=True)
        kept = chosen.mask() & chosen.left()  # what was pooled is nobody's own
        return Features(chosen.restore(found[:, plan.feature_prefix :], fill), kept)
    last = plan.facts.stages - 1
    if not state.prunes(last):
        return Features(found, found.new_ones(found[:, 0].shape, dtype=torch.bool))
    chosen = as_selection(record, last)
    if plan.empties:
        found = fill_pruned(found, chosen, fill)
    return Features(found, chosen.mask())
