"""Pool: what is dropped leaves a few means behind, a blurred idea of the rest.

Sources: Liang et al., "EViT", ICLR 2022, arXiv 2202.07800, Sec. 3.3, fuses what it drops into one
token; Marin et al., "Token Pooling in Vision Transformers", arXiv 2110.03860, represents many
tokens by few means. Here the pruned patches, in raster order, are cut into runs of one length, and
each run becomes its mean, position embedding included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.precision import full_precision
from papr.reducers.drop import drop
from papr.selecting import Selection, take_rows, top_indices


def drop_and_pool(
    tokens: Tensor, selection: Selection, prefix_tokens: int, count: int
) -> tuple[Tensor, Tensor]:
    """Keep what the selection keeps, and means of the rest.

    Args:
        tokens: (B, prefix_tokens + N, C).
        selection: the kept patches (B, K).
        prefix_tokens: leading tokens, left alone.
        count: how many means; at most one for each pruned patch.

    Returns:
        (B, prefix_tokens + K + count, C), means last; and for each patch which patch token of
        these it ended in, (B, N) int64.

    Raises:
        SelectionError: the tokens are not those of the selection's grid.
    """
    short = drop(tokens, selection, prefix_tokens)
    batch, kept = selection.indices.shape
    pruned = tokens.shape[1] - short.shape[1]
    count = min(count, pruned)
    if count == 0:
        return short, selection.places()
    places = selection.places()
    rest = top_indices((places < 0).float(), pruned)
    run = torch.arange(pruned, device=rest.device) * count // pruned
    precise = torch.promote_types(tokens.dtype, torch.float32)
    members = F.one_hot(run, count).T.to(precise)  # (count, N - K)
    gone = take_rows(tokens[:, prefix_tokens:], rest).to(precise)
    with full_precision(tokens.device.type):
        pooled = (members / members.sum(1, keepdim=True)) @ gone
    ended = places.scatter(1, rest, (run + kept).expand(batch, -1))
    return torch.cat([short, pooled.to(tokens.dtype)], dim=1), ended
