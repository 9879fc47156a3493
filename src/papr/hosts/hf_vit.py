"""transformers' plain vision transformers, which share one graft.

ViT, DeiT, ViTMSN, I-JEPA, DINOv2 with and without registers, CLIP's and SigLIP's vision towers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from papr.hosts import Plan
from papr.hosts.blocks import ReducingBlock
from papr.hosts.hf_common import EmbeddingsCut, last_hidden, plan_inside, read_facts
from papr.wrappers import is_a

_LAYERS = ("ViTLayer", "DeiTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")


class VisionLayer(ReducingBlock):
    """The layer of ViT, DeiT and DINOv2, under the names it has had since transformers 5.0."""

    attention: Any
    dropout: Any
    drop_path: Any
    intermediate: Any
    mlp: Any
    output: Any
    _modules: dict[str, Any]

    def _masked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """While a graph is made transformers brings a mask of its own, which hides nothing."""
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        config = getattr(_core(self), "config", None)
        asked = self._papr is not None and getattr(config, "output_attentions", False)
        return asked or super()._masked(() if traced else args, {} if traced else kwargs)

    def _normalised(self, tokens: Tensor) -> Any:
        return _leaf(self, "layernorm_before", "norm1")(tokens)

    def _heads(self, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        core = _core(self)
        split = (*normalised.shape[:2], core.num_attention_heads, -1)
        names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
        queries, keys, values = (
            _leaf(core, *name)(normalised).view(split).transpose(1, 2) for name in names
        )
        return queries, keys, values

    def _attention_dropout(self) -> Any:
        core = _core(self)
        return core.attention_dropout if "q_proj" in core._modules else core.dropout_prob

    def _attended(self, answers: Tensor, normalised: Tensor) -> Any:
        if "o_proj" in self.attention._modules:
            return self._scaled(self.attention.o_proj(answers), "layer_scale1")
        output = self.attention.output
        return self._scaled(output.dropout(output.dense(answers)), "layer_scale1")

    def _thought(self, tokens: Tensor) -> Any:
        normalised = _leaf(self, "layernorm_after", "norm2")(tokens)
        if "mlp" in self._modules:
            return self._scaled(self.mlp(normalised), "layer_scale2")
        return self.output.dropout(self.output.dense(self.intermediate(normalised)))

    def _scaled(self, added: Tensor, scale: str) -> Any:
        """What stands between a branch and the sum: dropout, or layer scale and drop path."""
        if scale in self._modules:
            return self.drop_path(self._modules[scale](added))
        return self.dropout(added) if "dropout" in self._modules else added


def _leaf(module: Any, *names: str) -> Any:
    """The first of these that the module has."""
    return next(module._modules[name] for name in names if name in module._modules)


def _core(layer: Any) -> Any:
    """Where the projections are: before transformers 5.2x one level further down."""
    attention = layer.attention
    return attention if "q_proj" in attention._modules else attention.attention


def plan(model: nn.Module) -> Plan:
    """Cut a vision tower at its embeddings."""
    if not hasattr(model, "embeddings") and hasattr(model, "vision_model"):
        return plan_inside(model, "vision_model")  # CLIP and SigLIP before their towers were merged
    facts, name = read_facts(model), f"transformers {type(model).__name__}"
    entry = ("embeddings", EmbeddingsCut)
    blocks = tuple(n for n, layer in model.named_modules() if is_a(layer, *_LAYERS))
    return Plan(
        name,
        entry,
        (),
        facts,
        last_hidden,
        facts.prefix_tokens,
        blocks=blocks,
        block=VisionLayer,
    )
