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
from papr.selecting import split_top, take_rows


class Matching(NamedTuple):
    """Which patch tokens merge into which; numbers count patch tokens, prefix tokens not counted.

    Attributes:
        stay: (B, R - r) int64, ascending, tokens of the first set that stay as they are.
        go: (B, r) int64, ascending, tokens of the first set that merge into another.
        into: (B, r) int64, positions in `receive` that they merge into.
        receive: (S,) int64, tokens of the second set, which all stay.
    """

    stay: Tensor
    go: Tensor
    into: Tensor
    receive: Tensor


def match(keys: Tensor, count: int, prefix_tokens: int = 0) -> Matching:
    """Bipartite soft matching: every second token finds the one of the others it is most like.

    The `count` most alike pairs merge. Prefix tokens count when tokens are dealt to the two sets,
    and belong to neither.

    Args:
        keys: (B, M, D), what likeness is measured on (cosine), one row a patch token.
        count: r, tokens to merge away, at most M // 2.
        prefix_tokens: how many tokens stand before the patches.
    """
    patches = keys.shape[1]
    first = torch.arange(prefix_tokens % 2, patches, 2, device=keys.device)
    second = torch.arange(1 - prefix_tokens % 2, patches, 2, device=keys.device)
    with torch.no_grad(), full_precision(keys.device.type):
        directions = F.normalize(keys.float(), dim=-1)
        alike = directions[:, first] @ directions[:, second].transpose(1, 2)
        best, partner = alike.max(dim=2)
        go, stay = split_top(best, count)
    return Matching(first[stay], first[go], partner.gather(1, go), second)


def merge_tokens(
    tokens: Tensor, sizes: Tensor, matching: Matching, prefix_tokens: int = 0
) -> tuple[Tensor, Tensor]:
    """Merge what a matching says.

    Args:
        tokens: (B, P + M, C), P prefix tokens first.
        sizes: (B, M), how many patches each patch token holds, float32.
        matching: of the M patch tokens.
        prefix_tokens: P.

    Returns:
        tokens (B, P + M - r, C): prefix tokens, those of the first set that stay, the second set;
        and the sizes of the patch tokens (B, M - r).
    """
    prefix, patches = tokens[:, :prefix_tokens], tokens[:, prefix_tokens:]
    precise = torch.promote_types(tokens.dtype, torch.float32)
    own_sizes = sizes.to(precise)
    going = own_sizes.gather(1, matching.go)
    places = torch.arange(matching.receive.shape[0], device=tokens.device).unsqueeze(1)
    into = (matching.into.unsqueeze(1) == places).to(precise)  # (B, S, r)
    grown = own_sizes[:, matching.receive] + (into * going.unsqueeze(1)).sum(2)  # (B, S)
    share = into * (going.unsqueeze(1) / grown.unsqueeze(2))  # (B, S, r)
    own = (own_sizes[:, matching.receive] / grown).unsqueeze(2)
    # a product, not a scattered sum: the same on every device, and in every exported graph
    with full_precision(tokens.device.type):
        added = share @ take_rows(patches, matching.go).to(precise)
    means = patches[:, matching.receive] * own + added
    stay = take_rows(patches, matching.stay)
    merged = torch.cat([prefix, stay, means.to(tokens.dtype)], dim=1)
    return merged, torch.cat([sizes.gather(1, matching.stay), grown.to(sizes.dtype)], dim=1)


def moved(matching: Matching) -> Tensor:
    """Where each patch token is after the merge: (B, M) int64, positions among patch tokens."""
    batch, stayed = matching.stay.shape
    device, received = matching.into.device, matching.receive.shape[0]
    total = stayed + matching.go.shape[1] + received
    behind = torch.arange(received, device=device).expand(batch, -1) + stayed
    positions = matching.into.new_zeros(batch, total)
    positions = positions.scatter(
        1, matching.stay, torch.arange(stayed, device=device).expand(batch, -1)
    )
    positions = positions.scatter(1, matching.go, matching.into + stayed)
    return positions.scatter(1, matching.receive.expand(batch, -1), behind)
