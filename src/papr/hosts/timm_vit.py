"""timm's plain vision transformers: AugReg, DeiT, DeiT-3, MAE, CLIP, SigLIP, DINOv2, hybrids.

Tokens are cut at `patch_drop`, which stands between the position embedding and the first block.
"""

from typing import Any

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.blocks import ReducingBlock
from papr.hosts.sites import Site, TimmDropEntry
from papr.hosts.timm_common import last_tokens, read_facts
from papr.wrappers import inside, is_a


class PatchDropCut(Site):
    """In place of timm's random PatchDropout (or the identity): the selection drops instead."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to (B, P + K, C)."""
        return self._reduced(tokens)


class TimmBlock(ReducingBlock):
    """timm's Block."""

    norm1: Any
    attn: Any
    ls1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    ls2: Any
    drop_path2: Any

    def _normalised(self, tokens: Tensor) -> Any:
        return self.norm1(tokens)

    def _heads(self, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        batch, count, _ = normalised.shape
        three = attn.qkv(normalised).view(batch, count, 3, attn.num_heads, attn.head_dim)
        queries, keys, values = three.permute(2, 0, 3, 1, 4).unbind(0)
        return attn.q_norm(queries), attn.k_norm(keys), values

    def _attention_dropout(self) -> Any:
        return getattr(self.attn.attn_drop, "p", 0.0)  # an Identity has none

    def _attended(self, answers: Tensor, normalised: Tensor) -> Any:
        attn = self.attn
        answers = attn.norm(answers)
        if getattr(attn, "gate", None) is not None:
            answers = answers * attn.gate(normalised).sigmoid()
        return self.drop_path1(self.ls1(attn.proj_drop(attn.proj(answers))))

    def _thought(self, tokens: Tensor) -> Any:
        return self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer or VisionTransformerDistilled."""
    prefix_tokens: int = model.num_prefix_tokens  # type: ignore[assignment]
    has_class_token = getattr(model, "cls_token", None) is not None
    facts = read_facts(model, prefix_tokens, has_class_token)
    cuts = (Cut("patch_drop", PatchDropCut),)
    blocks: dict[str, Any] = model.get_submodule("blocks")._modules
    plain = all(is_a(inside(block), "Block") for block in blocks.values())
    paths = tuple(f"blocks.{name}" for name in blocks) if plain else ()
    return Plan(
        "timm VisionTransformer",
        ("patch_embed", TimmDropEntry),
        cuts,
        facts,
        last_tokens,
        prefix_tokens,
        blocks=paths,
        block=TimmBlock,
    )
