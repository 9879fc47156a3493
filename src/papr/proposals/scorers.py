"""Scorers: pixels (B, 3, H, W) in, scores (B, h, w) out; of clips in `clips.py`. No gradient.

They are modules only so that they can be compiled, counted and moved; they never enter the host's
module tree.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.config import ProposalSize, Size, Triple
from papr.errors import ProposalError
from papr.proposals.glance import STRIDE, Glance
from papr.significance import channel_mean, describe, in_transform

#: Pixels of the shorter side up to which glance takes images as they are, and to which others are
#: brought.
LARGEST, SIDE = 256, 224


class Scorer(nn.Module):
    """Base: whatever runs in here is the proposal's, also for those who count operations."""

    role = "proposal"
    at_once = 4  # frames of a clip; all at once would take more memory than a pruned host does


class NetScorer(Scorer):
    """A network's last feature map, averaged over channels or as `reduce` says.

    Args:
        net: the network, on its device, in eval mode.
        call: the method that returns the feature map.
        size: resolution to run at; see `resize`.
        shrink_only: leave images alone whose shorter side is at most `size`.
        affine: per-channel (scale, shift) from the host's normalisation to the proposal's, or
            None to pass pixels as they come.
        reduce: feature map to scores; by default the channel mean.
    """

    scale: Tensor | None
    shift: Tensor | None
    axes = 2  # of a feature map, beside batch and channels

    def __init__(
        self,
        net: nn.Module,
        call: str,
        size: ProposalSize,
        shrink_only: bool,
        affine: tuple[Triple, Triple] | None,
        reduce: Callable[[Tensor], Tensor] = channel_mean,
    ) -> None:
        super().__init__()
        self.net = net
        self.reduce = reduce
        self.call = call
        self.size = size
        self.shrink_only = shrink_only
        weight = floating_weight(net)
        weight = torch.empty(0) if weight is None else weight
        self.dtype = weight.dtype
        scale, shift = affine if affine is not None else (None, None)
        for name, values in (("scale", scale), ("shift", shift)):
            ones = (1,) * self.axes
            channels = None if values is None else weight.new_tensor(values).view(1, 3, *ones)
            self.register_buffer(name, channels, persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), normalised for the host, to scores (B, h, w), float32."""
        assert not isinstance(self.size, tuple) or len(self.size) == 2
        if torch.onnx.is_in_onnx_export():
            # the two commute, and OpenVINO cannot run a scale of channels right after a product
            x = resize(self._renormalise(pixels.to(self.dtype)), self.size, self.shrink_only)
        else:
            x = self._renormalise(resize(pixels, self.size, self.shrink_only).to(self.dtype))
        if not in_transform(x):  # vmap knows no memory formats
            x = x.contiguous(memory_format=torch.channels_last)
        return self._look(x, pixels)

    def _look(self, x: Tensor, pixels: Tensor) -> Tensor:
        """What the network finds in `x`, made of `pixels`: a score for each cell of its map."""
        scores = self.reduce(getattr(self.net, self.call)(x))
        if scores.shape[0] != pixels.shape[0]:
            raise ProposalError(
                f"expected the proposal to return a map for each of {pixels.shape[0]} inputs, "
                f"got {describe(scores)}"
            )
        return scores

    def _renormalise(self, pixels: Tensor) -> Tensor:
        """From the host's normalisation to the proposal's."""
        if self.scale is None or self.shift is None:
            return pixels
        return torch.addcmul(self.shift, pixels, self.scale)


class GlanceScorer(Scorer):
    """The network that papr ships: its map as it is, of pixels as they are.

    Nothing is done to the pixels of usual images: what renormalises them is folded into the
    network, whose first convolution asks for its memory format itself.

    Args:
        net: the network, on its device, in eval mode.
        size: resolution to run at, see `resize`; None for pixels as they come.
        shrinks: instead of `size`, whether large images are shrunk, see `shrunk`.
    """

    at_once = 16  # a frame takes 0.8 MB

    def __init__(self, net: Glance, size: ProposalSize, shrinks: bool) -> None:
        super().__init__()
        self.net = net
        self.size = size
        self.shrinks = shrinks
        self.dtype = net.weigh.weight.dtype

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), normalised for the host, to scores (B, h, w), float32.

        Raises:
            ProposalError: the pixels do not fill one cell.
        """
        assert not isinstance(self.size, tuple) or len(self.size) == 2
        x = shrunk(pixels) if self.shrinks else resize(pixels, self.size)
        height, width = sides(x)
        if height < STRIDE or width < STRIDE:
            raise ProposalError(
                f"expected images of at least {STRIDE} x {STRIDE} pixels for glance, got "
                f"{height} x {width}"
            )
        scores: Tensor = self.net(x.to(self.dtype))
        return scores.float()


class CallableScorer(Scorer):
    """A user's own scores: depth, motion, a region of interest, a random baseline."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels as the host gets them to scores (B, h, w)."""
        scores = self.function(pixels)
        if (
            not isinstance(scores, Tensor)
            or scores.ndim != pixels.ndim - 1
            or scores.shape[0] != pixels.shape[0]
        ):
            axes = "h, w" if pixels.ndim == 4 else "t, h, w"
            raise ProposalError(
                f"expected the proposal to return scores ({pixels.shape[0]}, {axes}), "
                f"got {describe(scores)}"
            )
        return scores


def floating_weight(module: nn.Module) -> Tensor | None:
    """The weight that tells a module's device and dtype; None where it has none."""
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def resize(pixels: Tensor, size: Size, shrink_only: bool = False) -> Tensor:
    """Bring an image batch to a resolution, bilinear with antialiasing, in float32.

    Args:
        pixels: (B, 3, H, W).
        size: None or "input" for no change, an int for the shorter side in pixels with the aspect
            ratio kept, a pair for (height, width).
        shrink_only: never enlarge.
    """
    if size is None or isinstance(size, str):
        return pixels
    height, width = sides(pixels)
    target = scaled(height, width, size, shrink_only)
    if target == (height, width):
        return pixels
    if torch.onnx.is_in_onnx_export() and isinstance(height, int) and isinstance(width, int):
        return resize_by_matrices(pixels.float(), target)
    # float32 because the antialiased kernel knows no bfloat16 on a CPU
    return F.interpolate(pixels.float(), size=target, mode="bilinear", antialias=True)


def sides(pixels: Tensor) -> tuple[int, int]:
    """(height, width). torch.jit.trace counts in tensors; symbolic sizes must stay symbolic."""
    height, width = (int(n) if isinstance(n, Tensor) else n for n in pixels.shape[-2:])
    return height, width


def shrunk(pixels: Tensor) -> Tensor:
    """Images as glance takes them: those with a shorter side above 256 pixels brought to 224.

    By one or two cheap operations in the pixels' own dtype: the mean of whole blocks, as long as
    224 pixels are left; then, where that is still above 256, bilinear, to sides that cells fill.

    Args:
        pixels: (B, 3, H, W).
    """
    height, width = sides(pixels)
    if min(height, width) <= LARGEST:
        return pixels
    block = min(height, width) // SIDE
    if block > 1:
        pixels = F.avg_pool2d(pixels, block)
        height, width = height // block, width // block
    short = min(height, width)
    if short <= LARGEST:
        return pixels
    size = tuple(
        (side * SIDE + short * STRIDE // 2) // (short * STRIDE) * STRIDE for side in (height, width)
    )
    return F.interpolate(pixels, size=size, mode="bilinear")


def scaled(
    height: int, width: int, size: int | tuple[int, int], shrink_only: bool = False
) -> tuple[int, int]:
    """(height, width) of a picture brought to `size`; see `resize`."""
    if isinstance(size, int):
        short = min(height, width)
        size = (round(height * size / short), round(width * size / short))
    return (height, width) if shrink_only and size[0] * size[1] > height * width else size


def resize_by_matrices(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The antialiased bilinear resize as two products with constant matrices.

    For ONNX, whose Resize has an `antialias` that OpenVINO reads past: there the proposal would
    look at other pixels, and keep other patches, than here.

    Args:
        pixels: (B, C, H, W).
        size: (height, width) to resize to.
    """
    rows = pixels.new_tensor(triangle_filter(pixels.shape[-2], size[0]))
    columns = pixels.new_tensor(triangle_filter(pixels.shape[-1], size[1]))
    return rows @ (pixels @ columns.T)


def triangle_filter(before: int, after: int) -> list[list[float]]:
    """The weights (after, before) of a linear resize of one axis, antialiased when shrinking.

    Each output is the mean of the inputs around its centre, weighted by a triangle as wide as one
    output pixel to each side (one input pixel when enlarging).
    """
    step = before / after
    reach = max(step, 1.0)
    rows = []
    for index in range(after):
        centre = (index + 0.5) * step
        weights = [max(0.0, 1 - abs(j + 0.5 - centre) / reach) for j in range(before)]
        total = sum(weights)
        rows.append([weight / total for weight in weights])
    return rows
