"""transformers' video transformers: VideoMAE (versions 1 and 2) and ViViT.

Their clips are (B, T, C, H, W) and their tokens lie frame by frame: (t, h, w).
"""

import math
from typing import Any

from torch import Tensor, nn

from papr.errors import SelectionError, UnsupportedModelError
from papr.hosts import Plan
from papr.hosts.grids import first_convolution
from papr.hosts.hf_common import EmbeddingsCut, last_hidden, plan_inside, read_facts
from papr.hosts.sites import is_pixels, unfit
from papr.significance import describe


class ClipCut(EmbeddingsCut):
    """A clip in, the positioned tokens of the kept patches out."""

    def seen(self, pixels: Tensor, **options: Any) -> tuple[Tensor, tuple[int, ...]]:
        """A clip (B, T, C, H, W) as proposals take it, (B, C, T, H, W), cut to the patches' area.

        A clip shorter than one tubelet makes one patch in time: V-JEPA 2 repeats its frames. What
        `interpolate_pos_encoding` asks of ViViT it cannot do: transformers takes its positions for
        a square.
        """
        channels = self._papr.facts.channels
        if not is_pixels(pixels, 5) or pixels.shape[2] != channels:
            raise unfit(pixels, f"a floating clip (B, T, {channels}, H, W)")
        assert isinstance(self, nn.Module)
        sides = pixels.shape[1], pixels.shape[3], pixels.shape[4]
        patch = first_convolution(self).stride
        t, h, w = (side // length for side, length in zip(sides, patch, strict=True))
        grid = (max(t, 1), h, w)
        _check_positions(self, grid, sides, self._papr.facts.prefix_tokens)
        clip = pixels.transpose(1, 2)
        return clip[:, :, : grid[0] * patch[0], : h * patch[1], : w * patch[2]], grid


class MaskableCut(ClipCut):
    """VideoMAE's embeddings, which can leave tokens out themselves."""

    def forward(self, pixels: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:
        """A clip (B, T, C, H, W) to tokens (B, K, C); at keep = 1 masks are the host's own affair.

        Raises SelectionError where a pruned host is given a mask too.
        """
        if bool_masked_pos is not None and not self._papr.dense:
            raise SelectionError(
                "expected bool_masked_pos=None, since a pruned host selects patches itself, got "
                f"{describe(bool_masked_pos)}"
            )
        return super().forward(pixels, bool_masked_pos)


def _check_positions(
    embeddings: nn.Module, grid: tuple[int, ...], sides: tuple[int, ...], prefix: int
) -> None:
    """Refuse clips of another length or size than the host has positions for."""
    positions = getattr(embeddings, "position_embeddings", None)
    if not isinstance(positions, Tensor):
        return
    expected = positions.shape[1] - prefix
    if math.prod(grid) != expected:
        raise SelectionError(
            f"expected a clip that makes {expected} patches, which the host has positions for, "
            f"got {sides[0]} frames of {sides[1]} x {sides[2]} pixels, which make "
            f"{' x '.join(map(str, grid))} = {math.prod(grid)}"
        )


def plan(model: nn.Module) -> Plan:
    """Cut a VideoMAE or a ViViT at its embeddings."""
    if hasattr(model, "videomae"):
        if model.fc_norm is None:
            raise UnsupportedModelError(
                f"cannot prune {type(model).__name__}: with use_mean_pooling=False it classifies "
                "by its first patch, which pruning may drop"
            )
        return plan_inside(model, "videomae")
    facts, name = read_facts(model), f"transformers {type(model).__name__}"
    behaviour = ClipCut if facts.prefix_tokens else MaskableCut
    return Plan(name, ("embeddings", behaviour), (), facts, last_hidden, facts.prefix_tokens)
