"""The dense host on a smaller picture: the oldest way to have fewer tokens."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from papr.errors import PaprError, UnsupportedModelError, one_line
from papr.hosts import Plan, find_plan
from papr.hosts.overhear import Patches, patches, prepare_patches
from papr.proposals.scorers import resize
from papr.pruning import unprune
from papr.twins import twin
from papr.wrappers import unwrap


class LowerResolution(nn.Module):
    """A dense host behind a resize, as `lower_resolution` makes it.

    Attributes:
        host: the dense host, its positions resampled; shares its other weights with the original.
        size: what pixels are resized to, (height, width).
        grid: the patch grid of that size; of the first stage, where there are stages.
        count: patches on that grid.
        options: what the host's forward is given beside the pixels.
    """

    def __init__(
        self, host: nn.Module, size: tuple[int, int], grid: tuple[int, ...], options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.host = host
        self.size = size
        self.grid = grid
        self.count = grid[0] * grid[1]
        self.options = options

    def forward(self, pixels: Tensor) -> Any:
        """Pixels (B, 3, H, W) of any size, antialiased when shrunk, to what the host answers."""
        return self.host(resize(pixels, self.size).to(pixels.dtype), **self.options)


def lower_resolution(
    model: nn.Module, count: int, pixels: Tensor, **options: Any
) -> LowerResolution:
    """The dense host at the input resolution that has about as many patches as pruning keeps.

    The grid is the one of the picture's aspect ratio whose number of patches is nearest to
    `count`; of two equally near, the larger. `.count` and `.size` of the result say which. The
    position embedding is resampled as the host's library does it: timm's `set_input_size`,
    transformers' `interpolate_pos_encoding`, torchvision's `interpolate_embeddings`.

    Args:
        model: any image host; left as it is, and may be pruned.
        count: patches that pruning would keep; of Swin and ConvNeXt, on the first stage's grid.
        pixels: (B, 3, H, W) of the full resolution, for the aspect ratio; one image is run.
        **options: what else the host's forward takes.

    Returns:
        A module that takes pixels of the full resolution.

    Raises:
        UnsupportedModelError: papr does not know the host, or it cannot work at that resolution.
    """
    dense = unprune(twin(unwrap(model))).eval()
    plan, name = find_plan(dense), type(dense).__name__
    if plan.facts.tubelet:
        raise UnsupportedModelError(
            f"expected a host of images to run at a lower resolution, got a {plan.family}, whose "
            "positions are those of clips of one size"
        )
    example = pixels[:1]
    size, grid = _smaller(_patches(dense, plan, example, options), plan, count)
    failure: BaseException = AssertionError("no way was tried")
    with torch.inference_mode(False), torch.no_grad():
        for more in _ways(plan):
            try:
                lower = LowerResolution(_resampled(dense, size), size, grid, {**options, **more})
                lower(example)
                found = _patches(lower.host, plan, resize(example, size).to(example.dtype), more)
                if found.grid == grid:
                    return lower
                failure = ValueError(f"its grid is {found.grid}, expected {grid}")
            except Exception as error:  # a host refuses sizes in whatever way it likes
                failure = error
    raise UnsupportedModelError(
        f"cannot run {name} at {size[0]} x {size[1]} pixels: "
        f"{failure if isinstance(failure, PaprError) else one_line(failure)}"
    ) from failure


def nearest_grid(grid: tuple[int, ...], count: float) -> tuple[int, int]:
    """The grid (H, W) of the aspect ratio of `grid`, and no larger, with about `count` cells."""
    rows, columns = grid[-2:]
    shapes = {(r, max(1, round(r * columns / rows))) for r in range(1, rows + 1)}
    shapes |= {(max(1, round(c * rows / columns)), c) for c in range(1, columns + 1)}
    return min(shapes, key=lambda s: (abs(s[0] * s[1] - count), -s[0] * s[1], s))


def _smaller(full: Patches, plan: Plan, count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) in pixels and the patch grid; in steps of the last stage's cells."""
    last = full.grid if plan.facts.pyramid is None else plan.facts.pyramid(full.grid)[-1]
    rows, columns = nearest_grid(last, count / (full.grid[0] * full.grid[1]) * last[0] * last[1])
    down, across = full.grid[0] // last[0], full.grid[1] // last[1]
    grid = (rows * down, columns * across)
    return (grid[0] * full.cell[0], grid[1] * full.cell[1]), grid


def _patches(host: nn.Module, plan: Plan, pixels: Tensor, options: dict[str, Any]) -> Patches:
    probe = twin(host)
    prepare_patches(probe, plan)
    return patches(probe, plan, pixels, **options)


def _ways(plan: Plan) -> tuple[dict[str, Any], ...]:
    """What a host's forward may have to be told to take another size."""
    if plan.family.startswith("transformers"):
        return {"interpolate_pos_encoding": True}, {}
    return ({},)


def _resampled(dense: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A copy that takes pixels of another size; shares what it can with `dense`."""
    host = twin(dense)
    if hasattr(getattr(host, "timm_model", host), "set_input_size"):
        host = _with_own_buffers(host)  # they may be written to in place there
        inner: Any = getattr(host, "timm_model", host)
        inner.set_input_size(img_size=size)
    elif hasattr(host, "encoder") and hasattr(host.encoder, "pos_embedding"):
        _resample_torchvision(host, size)
    return host


def _with_own_buffers(host: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(p): p for p in host.parameters()}
    return copy.deepcopy(host, memo)


def _resample_torchvision(host: Any, size: tuple[int, int]) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    if size[0] != size[1]:
        raise UnsupportedModelError(f"expected a square for torchvision's ViT, got {size}")
    state = {"encoder.pos_embedding": host.encoder.pos_embedding.detach()}
    resampled = interpolate_embeddings(size[0], host.patch_size, state)["encoder.pos_embedding"]
    host.encoder.pos_embedding = nn.Parameter(resampled, requires_grad=False)
    host.image_size, host.seq_length = size[0], resampled.shape[1]
