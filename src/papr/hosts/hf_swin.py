"""transformers' Swin and Swin V2: MLPs skip what was not selected; window attention stays dense.

With attention="kept" it knows selected tokens only. Layers hand it whole windows, so that the grid
stays dense around it; queries, keys, values and projection are of selected tokens all the same.
"""

from typing import Any

from torch import Tensor, nn

from papr.counts import ceiling
from papr.hosts import Cut, Plan
from papr.hosts.grids import Halving, first_convolution, on_grid
from papr.hosts.kept_attention import OnKept
from papr.hosts.pyramid import End, TakeAndPut, Whole, block_cuts
from papr.hosts.sites import Entry
from papr.hosts.state import HostFacts
from papr.reducers.windows import (
    attend_in_windows,
    continuous_bias,
    cosine_factor,
    with_padding,
)


class PaddingEntry(Entry):
    """Patch embeddings that pad pixels to whole patches."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        assert isinstance(self, nn.Module)
        height, width = first_convolution(self).stride
        rows, columns = _padded_grid(self, pixels)
        return (rows, columns), (rows * height, columns * width)


def _padded_grid(embeddings: nn.Module, pixels: Tensor) -> tuple[int, int]:
    height, width = first_convolution(embeddings).stride
    return ceiling(pixels.shape[-2], height), ceiling(pixels.shape[-1], width)


class WindowsOfKept(OnKept):
    """The attention of a layer: windows in, windows out, zero where nothing was selected."""

    def forward(
        self, windows: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """(B * windows, area, C) and the mask of a shifted grid, to the same and no weights."""
        if self._papr.dense:
            return super().forward(windows, attention_mask, *args, **kwargs)  # type: ignore[misc, no-any-return]
        self._check()
        window, bias = self._window(), self._bias()
        # a layer that shifts does so by half a window, and only then has a mask
        shift = (0, 0) if attention_mask is None else (window[0] // 2, window[1] // 2)
        where = self._windows(window, shift, bias, lambda grid: attention_mask)
        flat = windows.flatten(0, -2)
        rows = with_padding(flat.index_select(0, where.places), where)
        out = attend_in_windows(
            self._qkv(rows),
            bias,
            where,
            heads=self.num_attention_heads,  # type: ignore[attr-defined]
            cosine=self._cosine(),
            dropout=self._dropout() if self.training else 0.0,  # type: ignore[attr-defined]
        )
        out = self._project(out)
        return out.new_zeros(flat.shape).index_copy_(0, where.places, out).view(windows.shape), None

    def _window(self) -> tuple[int, int]:
        rows, columns = self.relative_position_bias.window_size  # type: ignore[attr-defined]
        return rows, columns

    def _qkv(self, rows: Tensor) -> list[Tensor]:
        attn: Any = self
        return [attn.q_proj(rows), attn.k_proj(rows), attn.v_proj(rows)]

    def _bias(self) -> Tensor:
        return self.relative_position_bias()  # type: ignore[attr-defined, no-any-return]

    def _cosine(self) -> Tensor | None:
        return None

    def _dropout(self) -> float:
        return self.attention_dropout  # type: ignore[attr-defined, no-any-return]

    def _project(self, out: Tensor) -> Tensor:
        return self.o_proj(out)  # type: ignore[attr-defined, no-any-return]


class WindowsOfKeptV2(WindowsOfKept):
    """Swin V2's, whose parts lie one module deeper."""

    apart = (("self", ""), ("self.dropout", ""))
    num_attention_heads = property(lambda self: self.self.num_attention_heads)

    def _window(self) -> tuple[int, int]:
        rows, columns = self.self.window_size  # type: ignore[attr-defined]
        return rows, columns

    def _qkv(self, rows: Tensor) -> list[Tensor]:
        attn: Any = self.self  # type: ignore[attr-defined]
        return [attn.query(rows), attn.key(rows), attn.value(rows)]

    def _bias(self) -> Tensor:
        attn: Any = self.self  # type: ignore[attr-defined]
        table = attn.continuous_position_bias_mlp(attn.relative_coords_table)
        return continuous_bias(table, attn.relative_position_index)

    def _cosine(self) -> Tensor:
        return cosine_factor(self.self.logit_scale)  # type: ignore[attr-defined]

    def _dropout(self) -> float:
        return self.self.dropout.p  # type: ignore[attr-defined, no-any-return]

    def _project(self, out: Tensor) -> Tensor:
        return self.output(out, out)  # type: ignore[attr-defined, no-any-return]


def plan(model: nn.Module) -> Plan:
    """Cut a SwinModel or Swinv2Model."""
    stages: Any = model.get_submodule("encoder.layers")
    second = "v2" in type(model).__name__
    cuts, attention = [Cut("layernorm", End)], []
    for i, stage in enumerate(stages):
        cuts.append(Cut(f"encoder.layers.{i}", Whole, i))
        for j, layer in enumerate(stage.blocks):
            path = f"encoder.layers.{i}.blocks.{j}"
            # V2 normalises after the MLP, and the norm of zeros is its bias: zeros come after it
            first, last = "layernorm_after", "mlp" if hasattr(layer, "mlp") else "output"
            if second:
                first, last = ("mlp" if hasattr(layer, "mlp") else "intermediate"), first
            cuts += block_cuts(i, path, first, last)
            kind = WindowsOfKeptV2 if second else WindowsOfKept
            attention.append(Cut(f"{path}.attention", kind, i))
            if second:  # here too the norm comes after
                attention.append(Cut(f"{path}.layernorm_before", TakeAndPut, i))
    patches, pyramid = first_convolution(model.get_submodule("embeddings")), Halving(len(stages))
    facts = HostFacts(channels=patches.in_channels, pyramid=pyramid, stages=len(stages))
    name = f"transformers {type(model).__name__}"
    # transformers 5.0 built Swin's attention as it still builds V2's
    known = second or hasattr(stages[0].blocks[0].attention, "q_proj")
    kept = (*cuts, *attention) if known else None

    def last_map(host: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
        first = _padded_grid(host.get_submodule("embeddings"), pixels)
        return on_grid(host(pixels, **options)[0], pyramid(first)[-1])

    return Plan(
        name, ("embeddings", PaddingEntry), tuple(cuts), facts, last_map, kept_attention=kept
    )
