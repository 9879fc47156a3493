"""Every supported family as a tiny random host, and the dense answer each must agree with."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import HybridEmbed
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

import papr
from conftest import DEVICE

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}


class TinyProposal(nn.Module):
    """Two convolutions with random weights: a feature map of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(pixels)).relu())


class TinyBackbone(nn.Sequential):
    """What a hybrid host has before its patch embedding."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU())


@dataclass(frozen=True)
class Case:
    """A host to build: its class, its arguments, and what the tests need to know of it."""

    cls: type[nn.Module]
    options: dict
    prefix: int
    dynamic: bool = False  # takes any image size as it is
    head_prefix: int | None = None  # prefix in the final tokens, where it differs from the cut's

    def build(self, **changes: object) -> nn.Module:
        """The host with random weights, the same ones at every call."""
        options = {"img_size": 64, **SMALL, **self.options, **changes}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            model = self.cls(**options).eval()
            for parameter in model.parameters():  # what is 0 or 1 when new would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.to(DEVICE)


def _hybrid(**kwargs: object) -> HybridEmbed:
    return HybridEmbed(backbone=TinyBackbone(), **{**kwargs, "patch_size": 2})


ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}
CASES = {
    "augreg": Case(VisionTransformer, {}, 1),
    "gap": Case(VisionTransformer, {"class_token": False, "global_pool": "avg"}, 0),
    "mae": Case(VisionTransformer, {"global_pool": "avg"}, 1),
    "deit3": Case(VisionTransformer, {"no_embed_class": True, "init_values": 0.1}, 1),
    "deit_distilled": Case(VisionTransformerDistilled, {}, 2),
    "clip": Case(VisionTransformer, {"pre_norm": True, "norm_layer": nn.LayerNorm}, 1),
    "siglip": Case(VisionTransformer, {"class_token": False, "global_pool": "map"}, 0),
    "dinov2": Case(VisionTransformer, {"init_values": 0.1, "dynamic_img_size": True}, 1, True),
    "dinov2_registers": Case(
        VisionTransformer,
        {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True},
        5,
        True,
    ),
    "dynamic_padded": Case(
        VisionTransformer, {"dynamic_img_size": True, "dynamic_img_pad": True}, 1, True
    ),
    "parallel": Case(VisionTransformer, {"block_fn": ParallelScalingBlock}, 1),
    "hybrid": Case(VisionTransformer, {"embed_layer": _hybrid}, 1),
    "eva": Case(Eva, {}, 1),
    "eva02": Case(
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
    "eva_mixed_rope": Case(Eva, {**ROPE, "rope_type": "mixed", "dynamic_img_size": True}, 1, True),
    "dinov3": Case(
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
    "perception_encoder": Case(
        Eva,
        {**ROPE, "use_pre_transformer_norm": True, "global_pool": "map", "no_embed_class": True},
        1,
    ),
    "cait": Case(Cait, {"init_values": 0.1}, 0, head_prefix=1),
    "beit": Case(Beit, {"use_abs_pos_emb": False, "use_rel_pos_bias": True}, 1),
    "beit_shared": Case(Beit, {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}, 1),
    "beit_both": Case(
        Beit, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "init_values": 0.1}, 1
    ),
    "beit_absolute": Case(Beit, {}, 1),
}


@functools.cache
def proposal() -> papr.Proposal:
    """One small proposal for all tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return papr.Proposal(TinyProposal().eval())


def prune(model: nn.Module, keep: float = 0.5, **options: object) -> nn.Module:
    """papr.prune with the small proposal and the statistics it wants."""
    return papr.prune(model, keep, proposal(), **options)


def dense_on_kept(case: Case, dense: nn.Module, images: Tensor, indices: Tensor) -> Tensor:
    """Final tokens of the dense host when only the kept patches exist, (B, P + K, C).

    Nothing is gathered before the last block: the dense host runs on all tokens, and attention is
    told to look at no pruned key. So positions, rotary tables and biases are the dense ones.
    """
    if case.cls is Cait:  # talking heads know no mask; without positions inside, a slice will do
        x = dense.pos_drop(dense.patch_embed(images) + dense.pos_embed)
        x = dense.blocks(torch.stack([t[i] for t, i in zip(x, indices, strict=True)]))
        class_token = dense.cls_token.expand(x.shape[0], -1, -1)
        for block in dense.blocks_token_only:
            class_token = block(x, class_token)
        return dense.norm(torch.cat([class_token, x], dim=1))
    with attention_to(indices, case.prefix):
        tokens = dense.forward_features(images)
    prefix = tokens[:, : case.prefix]
    kept = torch.stack([t[case.prefix :][i] for t, i in zip(tokens, indices, strict=True)])
    return torch.cat([prefix, kept], dim=1)


@contextlib.contextmanager
def attention_to(indices: Tensor, prefix: int) -> Iterator[None]:
    """Within, fused attention gives no weight to patch keys outside `indices`."""
    fused: Callable[..., Tensor] = F.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kw) -> Tensor:
        allowed = torch.full((k.shape[0], 1, 1, k.shape[2]), float("-inf"))
        allowed = allowed.to(q)
        allowed[..., :prefix] = 0
        for image, kept in enumerate(indices):
            allowed[image, ..., kept + prefix] = 0
        bias = allowed if attn_mask is None else attn_mask + allowed
        bias = bias.expand(-1, -1, q.shape[2], -1)
        return fused(q, k, v, attn_mask=bias, **kw)

    F.scaled_dot_product_attention = masked
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
