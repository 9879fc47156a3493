"""timm's ConvNeXt and ConvNeXt-V2, with linear or convolutional MLPs: skip-and-zero.

The depthwise convolution runs densely; norm and MLP run on selected positions; the block's answer
is zero elsewhere. V2's response normalisation takes its statistics over kept positions.
"""

import math
from typing import Any

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.pyramid import (
    Convolved,
    End,
    Put,
    PutOnMap,
    Take,
    TakeFromMap,
    ZeroingBlock,
    conv_rule,
    convolutions,
    convolved,
)
from papr.hosts.sites import Entry
from papr.hosts.state import HostFacts
from papr.hosts.timm_common import input_statistics


class StemEntry(Entry):
    """A stem of convolutions: patchify, or overlapping."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        convs = convolutions(self)  # type: ignore[arg-type]
        grid = convolved(tuple(pixels.shape[-2:]), [conv_rule(conv) for conv in convs])
        rows, columns = (math.prod(conv.stride[axis] for conv in convs) for axis in (0, 1))
        return grid, (grid[0] * rows, grid[1] * columns)


def plan(model: nn.Module) -> Plan:
    """Cut a ConvNeXt."""
    cuts = [Cut("norm_pre", End)]
    stages: Any = model.stages
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage.blocks):
            path = f"stages.{i}.blocks.{j}"
            take, put = (TakeFromMap, PutOnMap) if block.use_conv_mlp else (Take, Put)
            cuts += [
                Cut(path, ZeroingBlock, i),
                Cut(f"{path}.norm", take, i),
                Cut(f"{path}.mlp", put, i),
            ]
    mean, std = input_statistics(model)
    facts = HostFacts(
        prefix_tokens=0,
        class_token=False,
        channels=convolutions(model.get_submodule("stem"))[0].in_channels,
        mean=mean,
        std=std,
        pyramid=Convolved([convolutions(stage.downsample) for stage in stages]),
        stages=len(stages),
    )
    return Plan("timm ConvNeXt", ("stem", StemEntry), tuple(cuts), facts)
