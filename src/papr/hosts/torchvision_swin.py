"""torchvision's Swin and Swin V2: MLPs skip what was not selected.

With attention="kept" window attention knows selected tokens only; see `kept_attention`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2, SwinTransformerBlockV2

from papr.hosts import Cut, Plan
from papr.hosts.grids import Halving, first_convolution
from papr.hosts.kept_attention import Kinds, OnKept, kept_blocks
from papr.hosts.pyramid import End, Whole, block_cuts
from papr.hosts.sites import StemEntry
from papr.hosts.state import HostFacts
from papr.reducers.windows import (
    Pair,
    attend_in_windows,
    cosine_factor,
    shift_mask,
    with_padding,
)
from papr.wrappers import inside


class AttentionOfKept(OnKept):
    """Shifted window attention, on kept tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, K, C) to the same."""
        if self._papr.dense:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        attn: Any = self
        grid = self._kept().grid
        window = (attn.window_size[0], attn.window_size[1])
        # as in torchvision: a grid that fits one window is not shifted
        shift = (
            0 if window[0] >= grid[0] else attn.shift_size[0],
            0 if window[1] >= grid[1] else attn.shift_size[1],
        )
        bias = attn.get_relative_position_bias()

        def apart(grid: Pair) -> Tensor | None:
            return shift_mask(grid, window, shift, x.device) if any(shift) else None

        windows = self._windows(window, shift, bias, apart)
        cosine, qkv_bias = None, attn.qkv.bias
        if isinstance(self, ShiftedWindowAttentionV2):
            cosine = cosine_factor(attn.logit_scale)
            qkv_bias = _without_keys(qkv_bias)
        rows = with_padding(x.flatten(0, -2), windows)
        out = attend_in_windows(
            [nn.functional.linear(rows, attn.qkv.weight, qkv_bias)],
            bias,
            windows,
            heads=attn.num_heads,
            cosine=cosine,
            dropout=attn.attention_dropout if attn.training else 0.0,
        )
        return nn.functional.dropout(attn.proj(out.view(x.shape)), attn.dropout, attn.training)


def _without_keys(bias: Tensor | None) -> Tensor | None:
    """V2 gives keys no bias."""
    if bias is None:
        return None
    queries, keys, values = bias.chunk(3)
    return torch.cat([queries, torch.zeros_like(keys), values])


def plan(model: nn.Module) -> Plan:
    """Cut a SwinTransformer of either version."""
    features: Any = model.features
    cuts, kept = [Cut("norm", End)], [Cut("norm", End)]
    stages: Any = [inside(stage) for stage in features[1::2]]  # between them stands patch merging
    for i, stage in enumerate(stages):
        whole = Cut(f"features.{2 * i + 1}", Whole, i)
        blocks = [f"features.{2 * i + 1}.{j}" for j in range(len(stage))]
        # V2 normalises after the MLP, and the norm of zeros is its bias: zeros come after it
        second = isinstance(inside(stage[0]), SwinTransformerBlockV2)
        first, last = ("mlp", "norm2") if second else ("norm2", "mlp")
        for path in blocks:
            cuts += block_cuts(i, path, first, last)
        cuts.append(whole)
        kept += [whole, *kept_blocks(i, blocks, Kinds())]
        kept += [Cut(f"{path}.attn", AttentionOfKept, i) for path in blocks]
    facts = HostFacts(
        channels=first_convolution(features[0]).in_channels,
        pyramid=Halving(len(stages)),
        stages=len(stages),
    )
    return Plan(
        "torchvision Swin",
        ("features.0", StemEntry),
        tuple(cuts),
        facts,
        lambda host, pixels: host.permute(host.norm(host.features(pixels))),
        kept_attention=tuple(kept),
    )
