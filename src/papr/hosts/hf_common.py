"""What the transformers families have in common.

Their module `embeddings` sees the pixels and returns the tokens with their positions added, so it
is the entry and the cut at once.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from papr.errors import UnsupportedModelError
from papr.hosts import Cut, Plan, find_plan
from papr.hosts.grids import first_convolution
from papr.hosts.sites import Entry
from papr.hosts.state import HostFacts


class EmbeddingsEntry(Entry):
    """Where pixels come in."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        assert isinstance(self, nn.Module)
        conv = first_convolution(self)
        height, width = pixels.shape[-2] // conv.stride[0], pixels.shape[-1] // conv.stride[1]
        return (height, width), (height * conv.stride[0], width * conv.stride[1])


class EmbeddingsCut(EmbeddingsEntry):
    """Pixels in, the positioned tokens of the kept patches out; at keep = 1 all of them."""

    def forward(self, pixels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Pixels (B, C, H, W) to tokens (B, P + K, C)."""
        tokens: Tensor = super().forward(pixels, *args, **kwargs)
        if self._papr.dense:
            return tokens
        return self._reduced(tokens)


class EmbeddingsCutFirst(EmbeddingsCut):
    """Where rotary tables or position biases are gathered after the tokens."""

    asked_again = True


def read_facts(model: nn.Module) -> HostFacts:
    """The facts of a transformers vision tower, read off its `embeddings`.

    Input statistics are not among them: in transformers the image processor has those.
    """
    embeddings = model.get_submodule("embeddings")
    conv = first_convolution(embeddings)
    if conv.kernel_size != conv.stride or any(conv.padding if conv.padding != "valid" else ()):
        raise UnsupportedModelError(
            f"cannot prune {type(model).__name__}: expected patches side by side, got a patch "
            f"embedding with kernel {conv.kernel_size}, stride {conv.stride} and padding "
            f"{conv.padding}"
        )
    tubelet = conv.kernel_size[0] if isinstance(conv, nn.Conv3d) else 0
    tokens = {name: getattr(embeddings, name, None) for name in _PREFIX}
    class_token = tokens["cls_token"] is not None or tokens["class_embedding"] is not None
    registers = tokens["register_tokens"]
    prefix = (
        class_token
        + (tokens["distillation_token"] is not None)
        + (0 if registers is None else registers.shape[1])
    )
    # in video not even reference mode counts a class token
    return HostFacts(prefix, class_token and not tubelet, conv.in_channels, tubelet=tubelet)


def last_hidden(model: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
    """A vision tower's `last_hidden_state`, (B, P + N, C)."""
    hidden: Tensor = model(pixels, **options)[0]
    return hidden


_PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


def plan_inside(model: nn.Module, path: str) -> Plan:
    """The plan of the model at `path`, with its sites named from `model`."""
    plan = find_plan(model.get_submodule(path))

    def outside(cuts: tuple[Cut, ...]) -> tuple[Cut, ...]:
        return tuple(cut._replace(path=f"{path}.{cut.path}") for cut in cuts)

    return replace(
        plan,
        entry=(f"{path}.{plan.entry[0]}", plan.entry[1]),
        cuts=outside(plan.cuts),
        features=lambda host, *args, **kw: plan.features(host.get_submodule(path), *args, **kw),
        kept_attention=None if plan.kept_attention is None else outside(plan.kept_attention),
        blocks=tuple(f"{path}.{block}" for block in plan.blocks),
    )
