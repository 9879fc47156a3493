"""torchvision's ConvNeXt: skip-and-zero.

A block adds its shortcut to its own answer in place; the block as a whole is what becomes zero
where nothing was selected.
"""

from typing import Any

from torch import nn

from papr.hosts import Cut, Plan
from papr.hosts.grids import Convolved, convolutions, first_convolution
from papr.hosts.pyramid import End, PutOnMap, Whole, ZeroingBlock, block_cuts
from papr.hosts.sites import StemEntry
from papr.hosts.state import HostFacts
from papr.wrappers import inside


def plan(model: nn.Module) -> Plan:
    """Cut a ConvNeXt."""
    features: Any = model.features
    stages: Any = [
        inside(stage) for stage in features[1::2]
    ]  # between them stand downsampling layers
    cuts = [Cut("avgpool", End)]
    for i, stage in enumerate(stages):
        cuts.append(Cut(f"features.{2 * i + 1}", Whole, i))
        for j in range(len(stage)):
            path = f"features.{2 * i + 1}.{j}"
            # inside `block`: 0 is the depthwise convolution, 2 the norm, 6 the last permutation;
            # not the linear layers between, which adapters (LoRA) measure and replace
            cuts += block_cuts(i, path, "block.2", "block.6", ZeroingBlock, PutOnMap)
    between = [[], *(convolutions(layer) for layer in features[2::2])]
    facts = HostFacts(
        channels=first_convolution(features[0]).in_channels,
        pyramid=Convolved(between),
        stages=len(stages),
    )
    return Plan(
        "torchvision ConvNeXt",
        ("features.0", StemEntry),
        tuple(cuts),
        facts,
        lambda host, pixels: host.features(pixels),
        empties=True,
    )
