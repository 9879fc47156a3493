"""How patch grids follow from pixels and shrink from stage to stage, read off a host's layers.

Callables here are classes rather than closures, so that a pruned host pickles.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from papr.counts import ceiling
from papr.errors import MissingSiteError
from papr.wrappers import own_modules

Grid = tuple[int, ...]
AxisRule = tuple[int, int, int, int]  # kernel, stride, padding, dilation
Rule = tuple[AxisRule, AxisRule]


class Halving:
    """Grids of `stages` stages, each half of the one before, odd sides padded: Swin's merging."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def __call__(self, grid: Grid) -> tuple[Grid, ...]:
        """The first stage's grid to all stages' grids."""
        grids = [grid]
        for _ in range(self.stages - 1):
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        return tuple(grids)


class Convolved:
    """Grids of stages that are entered by convolutions.

    Args:
        entrances: for each stage, the convolutions before its blocks; the first stage's are none.
    """

    def __init__(self, entrances: Sequence[Sequence[nn.Conv2d]]) -> None:
        self.rules = [[conv_rule(conv) for conv in convs] for convs in entrances]

    def __call__(self, grid: Grid) -> tuple[Grid, ...]:
        """The first stage's grid to all stages' grids."""
        grids = []
        for rules in self.rules:
            grid = convolved(grid, rules)
            grids.append(grid)
        return tuple(grids)


def stem_layout(stem: nn.Module, size: Sequence[int]) -> tuple[Grid, tuple[int, int]]:
    """The grid that a stem of convolutions makes of pixels, and the (height, width) it covers."""
    convs = convolutions(stem)
    grid = convolved(tuple(size), [conv_rule(conv) for conv in convs])
    rows, columns = 1, 1
    for conv in convs:
        rows, columns = rows * conv.stride[0], columns * conv.stride[1]
    return grid, (grid[0] * rows, grid[1] * columns)


def conv_rule(conv: nn.Conv2d) -> Rule:
    """(kernel, stride, padding, dilation) on each axis; padding -1 where it is "same"."""
    return _axis_rule(conv, 0), _axis_rule(conv, 1)


def _axis_rule(conv: nn.Conv2d, axis: int) -> AxisRule:
    same = isinstance(conv.padding, str) or type(conv).__name__ == "Conv2dSame"
    padding = -1 if same else int(conv.padding[axis])
    return conv.kernel_size[axis], conv.stride[axis], padding, conv.dilation[axis]


def convolved(size: Grid, rules: Sequence[Rule]) -> Grid:
    """What convolutions make of a (height, width)."""
    for rule in rules:
        size = tuple(
            ceiling(side, s) if p < 0 else (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, (k, s, p, d) in zip(size, rule, strict=True)
        )
    return size


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions in a module, in order; none that an adapter (LoRA) adds to them."""
    return [m for m in own_modules(module) if isinstance(m, nn.Conv2d)]


def first_convolution(module: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """The convolution that sees the pixels. Raises MissingSiteError where there is none."""
    found = [m for m in own_modules(module) if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    if not found:
        raise MissingSiteError(
            f"expected a convolution that makes patches of pixels in {type(module).__name__}, "
            "got none"
        )
    return found[0]


def on_grid(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens of every patch, (B, H * W, C), as a map (B, C, H, W)."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, *grid)
