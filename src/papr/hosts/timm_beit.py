"""timm's BEiT and BEiT v2, whose attention adds a relative position bias of all pairs of patches.

The bias must be gathered on both axes, for each image. What the blocks need for that travels with
the tokens, in the argument BEiT passes to every block for a bias shared by all of them: a
checkpointed block that is computed again in the backward pass then gets the same indices again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from papr.hosts import Plan
from papr.hosts.sites import DropCut, Site, TimmEntry
from papr.hosts.state import HostFacts
from papr.hosts.timm_common import check_patch_embed, input_statistics


class SharedBias(Site):
    """The bias shared by all blocks, gathered: () to (B, heads, 1 + K, 1 + K)."""

    def forward(self) -> Tensor:
        """The dense bias (heads, 1 + N, 1 + N), both axes gathered for each image."""
        bias: Tensor = super().forward()  # type: ignore[misc]
        kept = with_class_token(self._papr.current().indices)
        return bias[:, kept.unsqueeze(2), kept.unsqueeze(1)].transpose(0, 1)


class KeptIndices(Site):
    """In the empty slot of a shared bias: what the blocks gather their own bias by."""

    def forward(self) -> Tensor:
        """The kept indices, class token counted, (B, 1 + K) int64."""
        return with_class_token(self._papr.current().indices)


class BiasedAttention(Site):
    """Attention with a bias of its own, gathered by the indices that come in the shared slot."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor) -> Any:
        """Tokens (B, 1 + K, C) and indices (B, 1 + K) to tokens (B, 1 + K, C)."""
        kept = shared_rel_pos_bias
        index: Tensor = self.relative_position_index  # type: ignore[attr-defined]
        table: Tensor = self.relative_position_bias_table  # type: ignore[attr-defined]
        pairs = index[kept.unsqueeze(2), kept.unsqueeze(1)]  # (B, 1 + K, 1 + K)
        bias = table[pairs].permute(0, 3, 1, 2)  # (B, heads, 1 + K, 1 + K)
        return super().forward(x, shared_rel_pos_bias=bias)  # type: ignore[misc]

    def _get_rel_pos_bias(self) -> Tensor:
        """Nothing to add: the whole bias comes in gathered."""
        table: Tensor = self.relative_position_bias_table  # type: ignore[attr-defined]
        return table.new_zeros(())


def with_class_token(indices: Tensor) -> Tensor:
    """Patch indices (B, K) to token indices (B, 1 + K) of a host with one class token."""
    return torch.nn.functional.pad(indices + 1, (1, 0))


def plan(model: nn.Module) -> Plan:
    """Cut a Beit: tokens after `pos_drop`, and every relative position bias."""
    check_patch_embed(model)
    own = [
        f"blocks.{i}.attn"
        for i, block in enumerate(model.blocks)  # type: ignore[arg-type]
        if block.attn.relative_position_bias_table is not None
    ]
    cuts: list[tuple[str, type[Site]]] = [("pos_drop", DropCut)]
    cuts += [(path, BiasedAttention) for path in own]
    if getattr(model, "rel_pos_bias", None) is not None:
        cuts.append(("rel_pos_bias", SharedBias))
    elif own:
        cuts.append(("rel_pos_bias", KeptIndices))
    mean, std = input_statistics(model)
    facts = HostFacts(prefix_tokens=1, class_token=True, mean=mean, std=std)
    return Plan("timm Beit", ("patch_embed", TimmEntry), tuple(cuts), facts)
