"""torchvision's VisionTransformer: tokens are cut at `encoder.dropout`, after the position."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.blocks import ReducingBlock
from papr.hosts.grids import first_convolution
from papr.hosts.sites import DropCut, StemEntry
from papr.hosts.state import HostFacts


class EncoderBlock(ReducingBlock):
    """torchvision's block, whose attention is PyTorch's own module."""

    ln_1: Any
    self_attention: Any
    dropout: Any
    ln_2: Any
    mlp: Any

    def _normalised(self, tokens: Tensor) -> Any:
        return self.ln_1(tokens)

    def _heads(self, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.self_attention
        three = F.linear(normalised, attention.in_proj_weight, attention.in_proj_bias)
        three = three.unflatten(-1, (3, attention.num_heads, attention.head_dim))
        queries, keys, values = three.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def _attention_dropout(self) -> Any:
        return self.self_attention.dropout

    def _attended(self, answers: Tensor, normalised: Tensor) -> Any:
        return self.dropout(self.self_attention.out_proj(answers))

    def _thought(self, tokens: Tensor) -> Any:
        return self.mlp(self.ln_2(tokens))


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer; torchvision knows its input statistics only beside its weights."""
    conv = first_convolution(model.get_submodule("conv_proj"))
    facts = HostFacts(prefix_tokens=1, class_token=True, channels=conv.in_channels)
    cuts = (Cut("encoder.dropout", DropCut),)
    entry = ("conv_proj", StemEntry)
    layers = model.get_submodule("encoder.layers")
    return Plan(
        "torchvision VisionTransformer",
        entry,
        cuts,
        facts,
        _last_tokens,
        1,
        blocks=tuple(f"encoder.layers.{name}" for name in layers._modules),
        block=EncoderBlock,
    )


def _last_tokens(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the encoder answers, (B, 1 + N, C): there is no method for that, so it is overheard."""
    seen: list[Tensor] = []
    handle = model.get_submodule("encoder").register_forward_hook(
        lambda module, args, tokens: seen.append(tokens)
    )
    try:
        model(pixels)
    finally:
        handle.remove()
    return seen[0]
