"""timm's BEiT and BEiT v2, whose attention adds a relative position bias of all pairs of patches.

The bias must be gathered on both axes, for each image. What the blocks need for that travels with
the tokens, in the argument BEiT passes to every block for a bias shared by all of them: a
checkpointed block that is computed again in the backward pass then gets the same indices again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from papr.graft import Filler
from papr.hosts import Cut, Plan
from papr.hosts.sites import DropCut, Site, TimmDropEntry
from papr.hosts.timm_common import last_tokens, read_facts


class CutBeforeBias(DropCut):
    """Where tokens are cut; the bias is gathered after them."""

    asked_again = True


class SharedBias(Site):
    """The bias shared by all blocks of a host whose blocks have none of their own."""

    def forward(self) -> Tensor:
        """The dense bias (heads, 1 + N, 1 + N), both axes gathered: (B, heads, 1 + K, 1 + K)."""
        kept = with_class_token(self._papr.take().indices)
        return gather_bias(super().forward(), kept)  # type: ignore[misc]


class CarriedBias(Site):
    """In the slot of the shared bias, filled or empty: the bias, and what to gather others by."""

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Kept token indices (B, 1 + K) int64, and the gathered shared bias where there is one."""
        kept = with_class_token(self._papr.take().indices)
        if isinstance(self, Filler):
            return kept, None
        return kept, gather_bias(super().forward(), kept)  # type: ignore[misc]


class BiasedAttention(Site):
    """Attention with a bias of its own, gathered by the indices that come in the shared slot."""

    def forward(self, x: Tensor, shared_rel_pos_bias: tuple[Tensor, Tensor | None]) -> Any:
        """Tokens (B, 1 + K, C), and what `CarriedBias` returns, to tokens (B, 1 + K, C)."""
        kept, shared = shared_rel_pos_bias
        index: Tensor = self.relative_position_index  # type: ignore[attr-defined]
        table: Tensor = self.relative_position_bias_table  # type: ignore[attr-defined]
        pairs = index[kept.unsqueeze(2), kept.unsqueeze(1)]  # (B, 1 + K, 1 + K)
        # contiguous, or no fused attention kernel on a GPU takes it: (B, heads, 1 + K, 1 + K)
        bias = table[pairs].permute(0, 3, 1, 2).contiguous()
        bias = bias if shared is None else bias + shared
        return super().forward(x, shared_rel_pos_bias=bias)  # type: ignore[misc]

    def _get_rel_pos_bias(self) -> Tensor:
        """Nothing to add: the whole bias comes in gathered."""
        table: Tensor = self.relative_position_bias_table  # type: ignore[attr-defined]
        return table.new_zeros(())


def with_class_token(indices: Tensor) -> Tensor:
    """Patch indices (B, K) to token indices (B, 1 + K) of a host with one class token."""
    return torch.nn.functional.pad(indices + 1, (1, 0))


def gather_bias(bias: Tensor, kept: Tensor) -> Tensor:
    """A bias (heads, 1 + N, 1 + N), both axes by (B, 1 + K): to (B, heads, 1 + K, 1 + K)."""
    # contiguous, or no fused attention kernel on a GPU takes it
    return bias[:, kept.unsqueeze(2), kept.unsqueeze(1)].transpose(0, 1).contiguous()


def plan(model: nn.Module) -> Plan:
    """Cut a Beit: tokens after `pos_drop`, and every relative position bias."""
    own = [
        f"blocks.{i}.attn"
        for i, block in enumerate(model.blocks)  # type: ignore[arg-type]
        if block.attn.relative_position_bias_table is not None
    ]
    shared = getattr(model, "rel_pos_bias", None) is not None
    cuts = [Cut(path, BiasedAttention) for path in own]
    if own or shared:
        bias = CarriedBias if own else SharedBias
        cuts += [Cut("pos_drop", CutBeforeBias), Cut("rel_pos_bias", bias)]
    else:
        cuts.append(Cut("pos_drop", DropCut))
    facts = read_facts(model, prefix_tokens=1, class_token=True)
    return Plan(
        "timm Beit",
        ("patch_embed", TimmDropEntry),
        tuple(cuts),
        facts,
        last_tokens,
        feature_prefix=1,
    )
