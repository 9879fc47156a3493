"""torchvision's Swin and Swin V2: MLPs skip what was not selected.

With attention="kept" window attention knows selected tokens only; see `kept_attention`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2, SwinTransformerBlockV2

from papr.hosts import Cut, Plan
from papr.hosts.grids import Halving, first_convolution
from papr.hosts.kept_attention import Kinds, kept_blocks
from papr.hosts.pyramid import End, StageSite, Whole, block_cuts
from papr.hosts.sites import StemEntry
from papr.hosts.state import HostFacts
from papr.reducers.windows import attend_in_windows, cosine_factor, shift_mask
from papr.wrappers import inside


class AttentionOfKept(StageSite):
    """Shifted window attention, on kept tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, K, C) to the same."""
        attn: Any = self
        chosen = self._chosen()
        grid = (chosen.grid[0], chosen.grid[1])
        window = (attn.window_size[0], attn.window_size[1])
        # as in torchvision: a grid that fits one window is not shifted
        shift = (
            0 if window[0] >= grid[0] else attn.shift_size[0],
            0 if window[1] >= grid[1] else attn.shift_size[1],
        )
        bias = attn.get_relative_position_bias()
        if any(shift):
            bias = bias + shift_mask(grid, window, shift, x.device).to(bias.dtype).unsqueeze(1)
        cosine, qkv_bias = None, attn.qkv.bias
        if isinstance(self, ShiftedWindowAttentionV2):
            cosine = cosine_factor(attn.logit_scale)
            qkv_bias = _without_keys(qkv_bias)
        tokens = x.squeeze(1)
        nothing = tokens.new_zeros(1, 1, tokens.shape[-1])
        out = attend_in_windows(
            nn.functional.linear(tokens, attn.qkv.weight, qkv_bias),
            chosen.indices,
            bias,
            heads=attn.num_heads,
            grid=grid,
            window=window,
            shift=shift,
            padded_first=True,
            padding=nn.functional.linear(nothing, attn.qkv.weight, qkv_bias).flatten(),
            cosine=cosine,
            dropout=attn.attention_dropout if attn.training else 0.0,
        )
        out = nn.functional.dropout(attn.proj(out), attn.dropout, attn.training)
        return out.unsqueeze(1)


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
