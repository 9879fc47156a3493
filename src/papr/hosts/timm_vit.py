"""timm's plain vision transformers: AugReg, DeiT, DeiT-3, MAE, CLIP, SigLIP, DINOv2, hybrids.

Tokens are cut at `patch_drop`, which stands between the position embedding and the first block.
"""

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.sites import Site, TimmDropEntry
from papr.hosts.timm_common import last_tokens, read_facts
from papr.reducers.drop import drop


class PatchDropCut(Site):
    """In place of timm's random PatchDropout (or the identity): the selection drops instead."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to (B, P + K, C)."""
        return drop(tokens, self._papr.take(), self._papr.facts.prefix_tokens)


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer or VisionTransformerDistilled."""
    prefix_tokens: int = model.num_prefix_tokens  # type: ignore[assignment]
    has_class_token = getattr(model, "cls_token", None) is not None
    facts = read_facts(model, prefix_tokens, has_class_token)
    cuts = (Cut("patch_drop", PatchDropCut),)
    return Plan(
        "timm VisionTransformer",
        ("patch_embed", TimmDropEntry),
        cuts,
        facts,
        last_tokens,
        prefix_tokens,
    )
