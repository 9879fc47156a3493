"""Every supported family as a tiny random host; those of timm are defined here."""

from dataclasses import dataclass

import torch
from timm.layers import HybridEmbed
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from tiny_case import Case, TinyProposal, attention_to, no_fast_path, proposal, prune
from tiny_hf import HF_CASES
from tiny_merging import merging_cases
from tiny_pyramid import PYRAMID_CASES
from tiny_torchvision import TORCHVISION_CASES
from tiny_video import VIDEO_CASES

__all__ = [
    "CASES",
    "DROPPING",
    "KINDS",
    "Case",
    "TinyProposal",
    "attention_to",
    "no_fast_path",
    "proposal",
    "prune",
]

SMALL = {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "num_classes": 10}


class TinyBackbone(nn.Sequential):
    """What a hybrid host has before its patch embedding."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU())


@dataclass(frozen=True)
class TimmCase(Case):
    """A timm host: its class and its arguments."""

    cls: type[nn.Module]
    options: dict
    prefix: int
    dynamic: bool = False  # takes any image size as it is
    head_prefix: int | None = None
    intermediates = True

    def make(self, depth: int, size: tuple[int, int], **changes: object) -> nn.Module:
        size = {} if self.dynamic else {"img_size": size}
        return self.cls(
            **{"img_size": 64, **SMALL, **self.options, "depth": depth, **size, **changes}
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.blocks)

    def tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.forward_features(images)

    def head(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return model.forward_head(tokens)

    def checkpoint(self, model: nn.Module) -> None:
        model.set_grad_checkpointing(True)


@dataclass(frozen=True)
class CaitCase(TimmCase):
    """Talking heads know no mask; without positions inside, a slice will do."""

    def dense_on_kept(self, dense: nn.Module, images: Tensor, indices: Tensor) -> Tensor:
        x = dense.pos_drop(dense.patch_embed(images) + dense.pos_embed)
        x = dense.blocks(torch.stack([t[i] for t, i in zip(x, indices, strict=True)]))
        class_token = dense.cls_token.expand(x.shape[0], -1, -1)
        for block in dense.blocks_token_only:
            class_token = block(x, class_token)
        return dense.norm(torch.cat([class_token, x], dim=1))


def _hybrid(**kwargs: object) -> HybridEmbed:
    return HybridEmbed(backbone=TinyBackbone(), **{**kwargs, "patch_size": 2})


ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}
TIMM_CASES = {
    "augreg": TimmCase(VisionTransformer, {}, 1),
    "gap": TimmCase(VisionTransformer, {"class_token": False, "global_pool": "avg"}, 0),
    "mae": TimmCase(VisionTransformer, {"global_pool": "avg"}, 1),
    "deit3": TimmCase(VisionTransformer, {"no_embed_class": True, "init_values": 0.1}, 1),
    "deit_distilled": TimmCase(VisionTransformerDistilled, {}, 2),
    "clip": TimmCase(VisionTransformer, {"pre_norm": True, "norm_layer": nn.LayerNorm}, 1),
    "siglip": TimmCase(VisionTransformer, {"class_token": False, "global_pool": "map"}, 0),
    "dinov2": TimmCase(VisionTransformer, {"init_values": 0.1, "dynamic_img_size": True}, 1, True),
    "dinov2_registers": TimmCase(
        VisionTransformer,
        {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True},
        5,
        True,
    ),
    "dynamic_padded": TimmCase(
        VisionTransformer, {"dynamic_img_size": True, "dynamic_img_pad": True}, 1, True
    ),
    "parallel": TimmCase(VisionTransformer, {"block_fn": ParallelScalingBlock}, 1),
    "hybrid": TimmCase(VisionTransformer, {"embed_layer": _hybrid}, 1),
    "eva": TimmCase(Eva, {}, 1),
    "eva02": TimmCase(
        Eva,
        {
            **ROPE,
            "use_abs_pos_emb": True,
            "swiglu_mlp": True,
            "scale_mlp": True,
            "qkv_fused": False,
        },
        1,
    ),
    "eva_mixed_rope": TimmCase(
        Eva, {**ROPE, "rope_type": "mixed", "dynamic_img_size": True}, 1, True
    ),
    "dinov3": TimmCase(
        Eva,
        {
            **ROPE,
            "rope_type": "dinov3",
            "rope_rotate_half": True,
            "num_reg_tokens": 4,
            "no_embed_class": True,
            "init_values": 0.1,
            "dynamic_img_size": True,
            "global_pool": "token",
        },
        5,
        True,
    ),
    "perception_encoder": TimmCase(
        Eva,
        {**ROPE, "use_pre_transformer_norm": True, "global_pool": "map", "no_embed_class": True},
        1,
    ),
    "cait": CaitCase(Cait, {"init_values": 0.1}, 0, head_prefix=1),
    "beit": TimmCase(Beit, {"use_abs_pos_emb": False, "use_rel_pos_bias": True}, 1),
    "beit_shared": TimmCase(Beit, {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}, 1),
    "beit_both": TimmCase(
        Beit, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "init_values": 0.1}, 1
    ),
    "beit_absolute": TimmCase(Beit, {}, 1),
}

#: Hosts whose tokens are dropped, and all.
DROPPING = {**TIMM_CASES, **HF_CASES, **TORCHVISION_CASES, **VIDEO_CASES}
CASES = {**DROPPING, **merging_cases(DROPPING), **PYRAMID_CASES}

#: One host or more of each kind: of each library, each set of behaviours that is grafted.
KINDS = [
    name
    for name in (
        *("augreg", "siglip", "dinov2_registers", "dinov3", "cait", "beit", "beit_shared"),
        *("hf_vit", "hf_dinov3", "hf_beit", "hf_beit_shared", "hf_timm", "torchvision"),
        *("hf_videomae", "hf_vivit", "hf_vjepa2"),
        *("dinov2_registers_recut", "hf_vit_pooled", "torchvision_merged"),
        *("swin_padded", "swin_v2", "swin_kept_dynamic", "swin_v2_kept"),
        *("convnext", "convnext_conv_mlp", "hf_convnext", "torchvision_convnext"),
        *("torchvision_swin", "torchvision_swin_kept"),
        *("hf_swin", "hf_swin_kept", "hf_swin_v2_kept"),
    )
    if name in CASES
]
