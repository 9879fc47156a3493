"""Merge: patch tokens that are alike become one, their mean, in which each patch counts the same.

Source: Bolya et al., "Token Merging: Your ViT But Faster" (ToMe), ICLR 2023, arXiv 2210.09461,
Sec. 3: bipartite soft matching on the attention keys averaged over heads, between attention and
MLP; proportional attention adds the log of a token's size to the attention logits.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.precision import full_precision
from papr.selecting import split_top


class Matching(NamedTuple):
    """Which patch tokens merge into which.

    They are dealt to two sets in turn, each numbered by itself: 0, 1, 2 ...

    Attributes:
        stay: (B, R - r) int64, ascending, of the first set those that stay as they are.
        go: (B, r) int64, ascending, of the first set those that merge into another.
        into: (B, r) int64, the ones of the second set that they merge into.
        receive: (S,) int64, the second set, which all stays.
        first: 0 where the first set begins with the first patch token, 1 where with the second.
    """

    stay: Tensor
    go: Tensor
    into: Tensor
    receive: Tensor
    first: int


def match(keys: Tensor, count: int, prefix_tokens: int = 0) -> Matching:
    """Bipartite soft matching: every second token finds the one of the others it is most like.

    The `count` most alike pairs merge. Prefix tokens count when tokens are dealt to the two sets,
    and belong to neither.

    Args:
        keys: (B, M, D), what likeness is measured on (cosine), one row a patch token.
        count: r, tokens to merge away, at most M // 2.
        prefix_tokens: how many tokens stand before the patches.
    """
    first = prefix_tokens % 2
    with torch.no_grad(), full_precision(keys.device.type):
        directions = F.normalize(keys.float(), dim=-1)
        alike = directions[:, first::2] @ directions[:, 1 - first :: 2].transpose(1, 2)
        best, partner = alike.max(dim=2)
        go, stay = split_top(best, count)
    receive = torch.arange(alike.shape[2], device=keys.device)
    return Matching(stay, go, partner.gather(1, go), receive, first)


def merge_tokens(
    tokens: Tensor, sizes: Tensor | None, matching: Matching, prefix_tokens: int = 0
) -> tuple[Tensor, Tensor]:
    """Merge what a matching says.

    Args:
        tokens: (B, P + M, C), P prefix tokens first.
        sizes: (B, P + M), how many patches each token holds, float32 or the tokens' own dtype if
            that is wider; 1 for prefix tokens. None where nothing merged so far.
        matching: of the M patch tokens.
        prefix_tokens: P.

    Returns:
        tokens (B, P + M - r, C): prefix tokens, those of the first set that stay, the second set;
        and their sizes (B, P + M - r).
    """
    first = tokens[:, prefix_tokens + matching.first :: 2]
    second = tokens[:, prefix_tokens + 1 - matching.first :: 2]
    precise = torch.promote_types(tokens.dtype, torch.float32)
    weights, grown, own = _weigh(sizes, matching, prefix_tokens, precise)
    share = weights / grown.unsqueeze(2)
    # a product, not a scattered sum: the same on every device, and in every exported graph
    with full_precision(tokens.device.type):
        going = _rows(first, matching.go).to(precise)
        means = torch.baddbmm(second * own.unsqueeze(2), share, going)
    prefix, stay = tokens[:, :prefix_tokens], _rows(first, matching.stay)
    merged = torch.cat([prefix, stay, means.to(tokens.dtype)], dim=1)
    if sizes is None:
        ones = prefix_tokens + matching.stay.shape[1]
        return merged, F.pad(grown, (ones, 0), value=1.0)
    kept = sizes[:, prefix_tokens + matching.first :: 2].gather(1, matching.stay)
    return merged, torch.cat([sizes[:, :prefix_tokens], kept, grown], dim=1)


def _weigh(
    sizes: Tensor | None, matching: Matching, prefix_tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What each of the second set receives, its size with that, and its own share in it.

    Returns:
        (B, S, r) the size of what merges into it, or 0; (B, S); and (B, S).
    """
    into = matching.into.unsqueeze(1) == matching.receive.unsqueeze(1)  # (B, S, r)
    if sizes is None:
        weights = into.to(dtype)
        grown = weights.sum(2) + 1
        return weights, grown, grown.reciprocal()
    going = sizes[:, prefix_tokens + matching.first :: 2].gather(1, matching.go)
    receiving = sizes[:, prefix_tokens + 1 - matching.first :: 2]
    weights = into * going.unsqueeze(1)
    grown = weights.sum(2) + receiving
    return weights, grown, receiving / grown


def _rows(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows of every second token: by one operation, since they are no matrix to take rows of."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def moved(matching: Matching) -> Tensor:
    """Where each patch token is after the merge: (B, M) int64, positions among patch tokens."""
    batch, stayed = matching.stay.shape
    going, received = matching.go.shape[1], matching.receive.shape[0]
    positions = matching.into.new_empty(batch, stayed + going + received)
    first = positions[:, matching.first :: 2]
    first.scatter_(1, matching.stay, torch.arange(stayed, device=first.device).expand(batch, -1))
    first.scatter_(1, matching.go, matching.into + stayed)
    positions[:, 1 - matching.first :: 2] = matching.receive + stayed
    return positions
