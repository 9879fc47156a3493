"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder and other hosts with rotary positions.

The slot `patch_drop` (None by default) may return the kept indices; Eva then gathers its rotary
tables itself, those that differ by depth too.
"""

from dataclasses import replace

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.sites import Site
from papr.hosts.timm_vit import plan as plan_vit


class IndexedCut(Site):
    """A patch dropout that says which patches it kept."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, P + N, C) to (B, P + K, C) and the kept indices (B, K)."""
        indices = self._papr.take(again=True).indices
        return self._reduced(tokens), indices


def plan(model: nn.Module) -> Plan:
    """Cut an Eva."""
    return replace(plan_vit(model), family="timm Eva", cuts=(Cut("patch_drop", IndexedCut),))
