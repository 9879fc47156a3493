"""transformers' ConvNeXt, ConvNeXt V2 and DINOv3's ConvNeXt: skip-and-zero.

V2's response normalisation takes its statistics over kept positions.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.grids import Convolved, convolutions, first_convolution, on_grid, stem_layout
from papr.hosts.pyramid import End, PutOnMap, Whole, ZeroingBlock, block_cuts
from papr.hosts.sites import StemEntry
from papr.hosts.state import HostFacts
from papr.wrappers import inside


@dataclass(frozen=True)
class _Names:
    """What one family calls its parts.

    Attributes:
        stages: dotted path of the stages.
        entry: where pixels come in.
        between: what a stage begins with, to make the grid smaller.
        norm: a layer's norm, the first part that positions go through one by one. The last is
            its drop path: the linear layers between are what adapters (LoRA) measure and replace.
        end: the first module after all stages.
    """

    stages: str
    entry: str
    between: str
    norm: str
    end: str


_CONVNEXT = _Names("encoder.stages", "embeddings", "downsampling_layer", "layernorm", "layernorm")


def plan(model: nn.Module) -> Plan:
    """Cut a ConvNextModel, ConvNextV2Model or DINOv3ConvNextModel."""
    names = _names(model)
    stages: Any = model.get_submodule(names.stages)
    cuts = [Cut(names.end, End)]
    for i, stage in enumerate(stages):
        cuts.append(Cut(f"{names.stages}.{i}", Whole, i))
        for j in range(len(inside(stage.layers)._modules)):
            path = f"{names.stages}.{i}.layers.{j}"
            cuts += block_cuts(i, path, names.norm, "drop_path", ZeroingBlock, PutOnMap)
    pyramid = Convolved([[], *(convolutions(getattr(s, names.between)) for s in stages[1:])])
    facts = HostFacts(
        channels=first_convolution(model.get_submodule(names.entry)).in_channels,
        pyramid=pyramid,
        stages=len(stages),
    )

    def last_map(host: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
        hidden = host(pixels, **options)[0]
        if hidden.ndim == 4:
            return hidden  # type: ignore[no-any-return]
        first, _ = stem_layout(host.get_submodule(names.entry), pixels.shape[-2:])
        return on_grid(hidden[:, 1:], pyramid(first)[-1])  # DINOv3's puts the mean first

    name = f"transformers {type(model).__name__}"
    return Plan(name, (names.entry, StemEntry), tuple(cuts), facts, last_map, empties=True)


def _names(model: nn.Module) -> _Names:
    if type(model).__name__ != "DINOv3ConvNextModel":
        return _CONVNEXT
    stages = "model.stages" if hasattr(model, "model") else "stages"  # transformers 5.0 has these
    return _Names(
        stages,
        entry=f"{stages}.0.downsample_layers.0",
        between="downsample_layers",
        norm="layer_norm",
        end="layer_norm",
    )
