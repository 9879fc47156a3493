"""timm's ConvNeXt and ConvNeXt-V2, with linear or convolutional MLPs: skip-and-zero.

The depthwise convolution runs densely; norm, MLP, layer scale and shortcut on selected positions;
the block's answer is zero elsewhere. V2's response normalisation takes its statistics over kept
positions.
"""

from typing import Any

from torch import nn

from papr.hosts import Cut, Plan
from papr.hosts.grids import Convolved, convolutions, first_convolution
from papr.hosts.pyramid import (
    End,
    PuttingBlock,
    Take,
    TakeFromMap,
    TakeOfAnswer,
    Whole,
)
from papr.hosts.sites import StemEntry
from papr.hosts.state import HostFacts
from papr.hosts.timm_common import input_statistics, last_tokens


def plan(model: nn.Module) -> Plan:
    """Cut a ConvNeXt."""
    cuts = [Cut("norm_pre", End)]
    stages: Any = model.stages
    for i, stage in enumerate(stages):
        cuts.append(Cut(f"stages.{i}", Whole, i))
        for j, block in enumerate(stage.blocks):
            path = f"stages.{i}.blocks.{j}"
            cuts += [
                Cut(path, PuttingBlock, i),
                Cut(f"{path}.norm", TakeFromMap if block.use_conv_mlp else Take, i),
                Cut(f"{path}.shortcut", TakeOfAnswer, i),
            ]
    mean, std = input_statistics(model)
    facts = HostFacts(
        channels=first_convolution(model.get_submodule("stem")).in_channels,
        mean=mean,
        std=std,
        pyramid=Convolved([convolutions(stage.downsample) for stage in stages]),
        stages=len(stages),
    )
    return Plan("timm ConvNeXt", ("stem", StemEntry), tuple(cuts), facts, last_tokens, empties=True)
