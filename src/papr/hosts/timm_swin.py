"""timm's Swin and Swin V2: MLPs skip what was not selected; window attention stays dense.

With attention="kept" it knows selected tokens only; see `kept_attention`.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.counts import ceiling
from papr.hosts import Cut, Plan
from papr.hosts.grids import Halving
from papr.hosts.kept_attention import (
    Closing,
    KeptBlock,
    Kinds,
    OnKept,
    OnlyBlock,
    Opening,
    kept_blocks,
)
from papr.hosts.pyramid import End, Whole, block_cuts
from papr.hosts.sites import TimmEntry
from papr.hosts.timm_common import last_tokens, read_facts
from papr.reducers.windows import (
    Pair,
    attend_in_windows,
    continuous_bias,
    cosine_factor,
    with_padding,
)
from papr.wrappers import inside


class WindowsOfKept(OnKept):
    """Window attention of a block, on kept tokens."""

    apart = (("attn", ""), ("attn.softmax", ""), ("attn.attn_drop", ""))

    padded_first = False

    def _attn(self, x: Tensor) -> Tensor:
        """(B, 1, K, C) to the same, normalised beforehand in Swin, not in V2."""
        if self._papr.dense:
            answer: Tensor = super()._attn(x)  # type: ignore[misc]
            return answer
        self._check()
        attn: Any = self.attn  # type: ignore[attr-defined]
        bias = self._position_bias()
        window, shift = self.window_size, self.shift_size  # type: ignore[attr-defined]
        windows = self._windows(tuple(window), tuple(shift), bias, self._apart)
        out = attend_in_windows(
            [self._qkv(with_padding(x.flatten(0, -2), windows))],
            bias,
            windows,
            heads=attn.num_heads,
            cosine=self._cosine(),
            dropout=getattr(attn.attn_drop, "p", 0.0) if attn.training else 0.0,
        )
        return attn.proj_drop(attn.proj(out.view(x.shape)))  # type: ignore[no-any-return]

    def _qkv(self, tokens: Tensor) -> Tensor:
        return self.attn.qkv(tokens)  # type: ignore[attr-defined, no-any-return]

    def _cosine(self) -> Tensor | None:
        return None

    def _position_bias(self) -> Tensor:
        return self.attn._get_rel_pos_bias()  # type: ignore[attr-defined, no-any-return]

    def _apart(self, grid: Pair) -> Tensor | None:
        """What is added to the logits of a shifted grid: (windows, area, area)."""
        mask: Tensor | None = self.attn_mask  # type: ignore[attr-defined]
        if getattr(self, "dynamic_mask", False):
            window = self.window_size  # type: ignore[attr-defined]
            padded = [ceiling(side, w) * w for side, w in zip(grid, window, strict=True)]
            like: Tensor = self.attn.qkv.weight  # type: ignore[attr-defined]
            mask = self.get_attn_mask(like.new_empty(1, *padded, 1))  # type: ignore[attr-defined]
        return mask


class WindowsOfKeptV2(WindowsOfKept):
    """The cosine attention of Swin V2."""

    def _qkv(self, tokens: Tensor) -> Tensor:
        attn: Any = self.attn  # type: ignore[attr-defined]
        if attn.q_bias is None:
            return attn.qkv(tokens)  # type: ignore[no-any-return]
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        return F.linear(tokens, attn.qkv.weight, bias)

    def _cosine(self) -> Tensor:
        return cosine_factor(self.attn.logit_scale)  # type: ignore[attr-defined]

    def _position_bias(self) -> Tensor:
        attn: Any = self.attn  # type: ignore[attr-defined]
        return continuous_bias(
            attn.cpb_mlp(attn.relative_coords_table), attn.relative_position_index
        )


# fmt: off
class _Opening(WindowsOfKept, Opening): ...
class _Inner(WindowsOfKept, KeptBlock): ...
class _Closing(WindowsOfKept, Closing): ...
class _Only(WindowsOfKept, OnlyBlock): ...
class _OpeningV2(WindowsOfKeptV2, Opening): ...
class _InnerV2(WindowsOfKeptV2, KeptBlock): ...
class _ClosingV2(WindowsOfKeptV2, Closing): ...
class _OnlyV2(WindowsOfKeptV2, OnlyBlock): ...
# fmt: on


KINDS = Kinds(_Opening, _Inner, _Closing, _Only)
KINDS_V2 = Kinds(_OpeningV2, _InnerV2, _ClosingV2, _OnlyV2)


def plan(model: nn.Module) -> Plan:
    """Cut a SwinTransformer or SwinTransformerV2."""
    layers: Any = model.layers
    second = type(inside(layers[0])).__name__ == "SwinTransformerV2Stage"
    # V2 normalises after the MLP, and the norm of zeros is its bias: zeros come after it
    first, last = ("mlp", "norm2") if second else ("norm2", "mlp")
    cuts = [Cut("norm", End)]
    kept = [Cut("norm", End)]
    for i, layer in enumerate(layers):
        whole = Cut(f"layers.{i}", Whole, i)
        blocks = [f"layers.{i}.blocks.{j}" for j in range(len(inside(layer.blocks)._modules))]
        for path in blocks:
            cuts += block_cuts(i, path, first, last)
        cuts.append(whole)
        kept += [whole, *kept_blocks(i, blocks, KINDS_V2 if second else KINDS)]
    facts = read_facts(model, prefix_tokens=0, class_token=False)
    facts = replace(facts, pyramid=Halving(len(layers)), stages=len(layers))
    name = "timm Swin V2" if second else "timm Swin"
    return Plan(
        name,
        ("patch_embed", TimmEntry),
        tuple(cuts),
        facts,
        lambda host, pixels: last_tokens(host, pixels).permute(0, 3, 1, 2),
        kept_attention=tuple(kept),
    )
