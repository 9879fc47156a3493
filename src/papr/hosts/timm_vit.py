"""timm's plain vision transformers: AugReg, DeiT, DeiT-3, MAE, CLIP, SigLIP, DINOv2, hybrids.

Tokens are cut at `patch_drop`, which stands between the position embedding and the first block.
"""

from torch import Tensor, nn

from papr.hosts import Plan
from papr.hosts.sites import Site, TimmEntry
from papr.hosts.state import HostFacts
from papr.hosts.timm_common import check_patch_embed, input_channels, input_statistics
from papr.reducers.drop import drop


class PatchDropCut(Site):
    """In place of timm's random PatchDropout (or the identity): the selection drops instead."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to (B, P + K, C)."""
        return drop(tokens, self._papr.current(), self._papr.facts.prefix_tokens)


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer or VisionTransformerDistilled."""
    check_patch_embed(model)
    mean, std = input_statistics(model)
    facts = HostFacts(
        prefix_tokens=int(model.num_prefix_tokens),  # type: ignore[arg-type]
        class_token=getattr(model, "cls_token", None) is not None,
        channels=input_channels(model),
        mean=mean,
        std=std,
    )
    return Plan(
        family="timm VisionTransformer",
        entry=("patch_embed", TimmEntry),
        cuts=(("patch_drop", PatchDropCut),),
        facts=facts,
    )
