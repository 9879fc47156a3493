"""transformers' BEiT, whose attention adds a relative position bias of all pairs of patches.

The bias is gathered on both axes, for each image. A layer that has a bias of its own makes it anew
when gradient checkpointing computes the layer again in the backward pass; what to gather it by must
then be what it was. So it travels with the arguments of the layer, in `interpolate_pos_encoding`,
which layers hand to their biases untouched.

Two layouts are known: that of transformers 5.0, with an encoder between model and layers, and the
later one without.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from papr.graft import Filler
from papr.hosts import Cut, Plan
from papr.hosts.hf_common import (
    EmbeddingsCut,
    EmbeddingsCutFirst,
    EmbeddingsEntry,
    last_hidden,
    read_facts,
)
from papr.hosts.sites import Site
from papr.hosts.timm_beit import gather_bias, with_class_token
from papr.reducers.drop import drop


class Carried(NamedTuple):
    """What travels with a layer's arguments.

    Attributes:
        kept: token indices (B, 1 + K) int64.
        rest: what the argument was: the shared bias, gathered, or `interpolate_pos_encoding`.
    """

    kept: Tensor
    rest: Any

    def __add__(self, mask: Tensor) -> "Carried":  # type: ignore[override]
        """With an attention mask (all True when exporting), which BEiT adds to the shared bias."""
        return Carried(self.kept, mask if self.rest is None else self.rest + mask)


class SharedBias(Site):
    """The bias shared by all layers of a host whose layers have none of their own."""

    def forward(self, window_size: Any, **kwargs: Any) -> Tensor:
        """The dense bias gathered on both axes: (B, heads, 1 + K, 1 + K)."""
        kept = with_class_token(self._papr.take().indices)
        return _gathered(super().forward(window_size, **_dense(window_size, kwargs)), kept)  # type: ignore[misc]


class CarriedBias(Site):
    """In the slot of the shared bias, filled or empty; it goes to each layer as attention mask."""

    def forward(self, window_size: Any, **kwargs: Any) -> Carried:
        """Kept token indices, and the gathered shared bias where there is one."""
        kept = with_class_token(self._papr.take().indices)
        if isinstance(self, Filler):
            return Carried(kept, None)
        dense = super().forward(window_size, **_dense(window_size, kwargs))  # type: ignore[misc]
        return Carried(kept, _gathered(dense, kept))


class BiasedLayer(Site):
    """A layer with a bias of its own: hands on to it what it is gathered by."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Carried,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Tokens (B, 1 + K, C), and what `CarriedBias` returns, to tokens (B, 1 + K, C)."""
        kept, shared = attention_mask
        carried = Carried(kept, interpolate_pos_encoding)
        return super().forward(  # type: ignore[misc]
            hidden_states, attention_mask=shared, interpolate_pos_encoding=carried, **kwargs
        )


class EncoderCut(Site):
    """The encoder of the older layout: tokens are cut before it, all biases lie within."""

    def forward(
        self, tokens: Tensor, *args: Any, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> Any:
        """Tokens (B, 1 + N, C) to what the encoder makes of (B, 1 + K, C)."""
        selection = self._papr.take()
        tokens = drop(tokens, selection, self._papr.facts.prefix_tokens)
        carried = Carried(with_class_token(selection.indices), interpolate_pos_encoding)
        return super().forward(  # type: ignore[misc]
            tokens, *args, interpolate_pos_encoding=carried, **kwargs
        )


class OwnBias(Site):
    """A bias that is told what to gather by: one layer's, or in the older layout any."""

    def forward(
        self, window_size: Any, interpolate_pos_encoding: Carried, dim_size: int | None = None
    ) -> Tensor:
        """The dense bias (1, heads, 1 + N, 1 + N) to (B, heads, 1 + K, 1 + K)."""
        kept, interpolate = interpolate_pos_encoding
        arguments = _dense(window_size, {"interpolate_pos_encoding": interpolate})
        return _gathered(super().forward(window_size, **arguments), kept)  # type: ignore[misc]


def _dense(window_size: tuple[int, int], arguments: dict[str, Any]) -> dict[str, Any]:
    """The bias module's arguments as they would be with all patches there."""
    return {**arguments, "dim_size": window_size[0] * window_size[1] + 1}


def _gathered(bias: Tensor, kept: Tensor) -> Tensor:
    """A bias (1, heads, 1 + N, 1 + N), both axes by (B, 1 + K): to (B, heads, 1 + K, 1 + K)."""
    return gather_bias(bias[0], kept)


def plan(model: nn.Module) -> Plan:
    """Cut a BeitModel: tokens at its embeddings, and every relative position bias."""
    name, facts = "transformers BeitModel", read_facts(model)
    if hasattr(model, "encoder"):
        biases = [
            path for path, _ in model.named_modules() if path.endswith(".relative_position_bias")
        ]
        cuts = [Cut("encoder", EncoderCut), *(Cut(path, OwnBias) for path in biases)]
        return Plan(name, ("embeddings", EmbeddingsEntry), tuple(cuts), facts, last_hidden, 1)
    own = [
        f"layers.{i}"
        for i, layer in enumerate(model.layers)  # type: ignore[arg-type]
        if layer.relative_position_bias is not None
    ]
    shared = model.shared_position_bias is not None
    if not own and not shared:
        return Plan(name, ("embeddings", EmbeddingsCut), (), facts, last_hidden, 1)
    cuts = [Cut("shared_position_bias", SharedBias)]
    if own:
        cuts = [Cut("shared_position_bias", CarriedBias)]
        cuts += [Cut(path, BiasedLayer) for path in own]
        cuts += [Cut(f"{path}.relative_position_bias", OwnBias) for path in own]
    return Plan(name, ("embeddings", EmbeddingsCutFirst), tuple(cuts), facts, last_hidden, 1)
