"""transformers' Swin and Swin V2: MLPs skip what was not selected; window attention stays dense."""

from typing import Any

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.grids import Halving, first_convolution, on_grid
from papr.hosts.pyramid import Block, End, Put, Take
from papr.hosts.sites import Entry
from papr.hosts.state import HostFacts


class PaddingEntry(Entry):
    """Patch embeddings that pad pixels to whole patches."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        assert isinstance(self, nn.Module)
        height, width = first_convolution(self).stride
        rows, columns = -(-pixels.shape[-2] // height), -(-pixels.shape[-1] // width)
        return (rows, columns), (rows * height, columns * width)


def plan(model: nn.Module) -> Plan:
    """Cut a SwinModel or Swinv2Model."""
    stages: Any = model.get_submodule("encoder.layers")
    second = "v2" in type(model).__name__
    cuts = [Cut("layernorm", End)]
    for i, stage in enumerate(stages):
        cuts.append(Cut(f"encoder.layers.{i}", Block, i))  # checkpoints stand around stages too
        for j, layer in enumerate(stage.blocks):
            path = f"encoder.layers.{i}.blocks.{j}"
            # V2 normalises after the MLP, and the norm of zeros is its bias: zeros come after it
            first, last = "layernorm_after", "mlp" if hasattr(layer, "mlp") else "output"
            if second:
                first, last = ("mlp" if hasattr(layer, "mlp") else "intermediate"), first
            cuts += [Cut(path, Block, i), Cut(f"{path}.{first}", Take, i)]
            cuts.append(Cut(f"{path}.{last}", Put, i))
    facts = HostFacts(
        prefix_tokens=0,
        class_token=False,
        channels=first_convolution(model.get_submodule("embeddings")).in_channels,
        pyramid=Halving(len(stages)),
        stages=len(stages),
    )
    name = f"transformers {type(model).__name__}"
    patch = first_convolution(model.get_submodule("embeddings")).stride
    pyramid = Halving(len(stages))

    def last_map(host: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
        first = tuple(-(-n // p) for n, p in zip(pixels.shape[-2:], patch, strict=True))
        return on_grid(host(pixels, **options)[0], pyramid(first)[-1])

    return Plan(name, ("embeddings", PaddingEntry), tuple(cuts), facts, last_map)
