"""The host's own opinion before its first block: the length of its patch embeddings."""

from typing import Any

import torch
from torch import Tensor, nn

from papr.baselines.scores import Scores
from papr.hosts import find_plan
from papr.hosts.overhear import patches, prepare_patches, prepare_tokens, tokens
from papr.pruning import unprune
from papr.twins import twin
from papr.wrappers import unwrap


def norm_scores(host: nn.Module, **options: Any) -> Scores:
    """The L2 norm of the host's positioned patch embeddings, as they stand at the cut.

    A selection that needs no proposal, at the price of the embedding (which runs a second time).
    It is made for the host as it is now: on its device, in its dtype.

    Args:
        host: any host whose tokens are dropped; left as it is, and may be pruned.
        **options: what else its forward takes, such as `interpolate_pos_encoding=True` of
            transformers.

    Returns:
        pixels (B, 3, H, W) to scores (B, H', W') on the host's patch grid; of a video host clips
        (B, 3, T, H, W) to (B, T', H', W'). For eager code.

    Raises:
        UnsupportedModelError: papr does not know the host, or it keeps its grid (Swin, ConvNeXt).
    """
    dense = unprune(twin(unwrap(host))).eval()
    plan = find_plan(dense)
    listening = twin(dense)
    prepare_tokens(listening, plan)
    prepare_patches(dense, plan)

    @torch.no_grad()
    def scores(pixels: Tensor) -> Tensor:
        taken = pixels.transpose(1, 2) if plan.facts.tubelet else pixels
        grid = patches(dense, plan, taken[:1], **options).grid
        found = tokens(listening, plan, taken, **options)[:, plan.facts.prefix_tokens :]
        norms: Tensor = torch.linalg.vector_norm(found.float(), dim=-1)
        return norms.view(len(norms), *grid)

    return scores
