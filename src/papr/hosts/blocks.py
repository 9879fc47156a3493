"""Blocks of a plain vision transformer that merge or drop tokens between attention and MLP.

No module of a block sees its tokens at that place, so the block is put together anew from its
leaves: normalisation, projections, MLP. `trying.check_blocks` runs both on the same tokens before a
host is pruned, so that a block that computes something else is refused, whatever its library makes
of it.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papr.errors import PrunedModelError
from papr.hosts.bypassed import hanging, refusal
from papr.hosts.sites import CarryingBlock, as_module
from papr.hosts.ways import Cut, Way
from papr.later import Step
from papr.precision import full_precision
from papr.reducers.merge import match, merge_tokens
from papr.selecting import gather, kept_count, top_indices


class Tokens(NamedTuple):
    """What a block has of the tokens.

    Attributes:
        tokens: (B, P + M, C).
        sizes: (B, P + M) what each token weighs, float32: 1, or the sum of what merged into it;
            None where none has merged. A pooled mean begins as one token, as EViT's does.
        way: what happened to the patch tokens since the first block, see `papr.hosts.ways`.
    """

    tokens: Tensor
    sizes: Tensor | None
    way: Way | None


class ReducingBlock(CarryingBlock):
    """A pre-norm block of attention and MLP; families say what its leaves are.

    Blocks hand on tokens, as ever; what else the next one must know lies with the pass.
    """

    _papr_stage: Any  # a Step

    def _normalised(self, tokens: Tensor) -> Any:
        """What attention sees of the tokens."""
        raise NotImplementedError

    def _heads(self, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, M, D)."""
        raise NotImplementedError

    def _attention_dropout(self) -> Any:
        """Its probability in training."""
        raise NotImplementedError

    def _attended(self, answers: Tensor, normalised: Tensor) -> Any:
        """What attention adds to the tokens, of its heads' answers (B, M, heads * D)."""
        raise NotImplementedError

    def _thought(self, tokens: Tensor) -> Any:
        """What the MLP adds to the tokens."""
        raise NotImplementedError

    def _masked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an attention mask came along, which the block would not heed."""
        return any(isinstance(a, Tensor) for a in (*args, *kwargs.values())) or any(
            kwargs.get(name) for name in ("is_causal", "output_attentions")
        )

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens (B, P + M, C) to fewer."""
        if self._masked(args, kwargs):
            raise PrunedModelError(
                "expected no attention mask, and no attentions asked for, of a host whose tokens "
                "merge or are cut in its blocks, got that: papr.unprune(model) first"
            )
        state, step = self._papr, self._papr_stage
        if state is None:
            return self._whole(x)
        assert isinstance(step, Step)
        thing = hanging(as_module(self), step.bypassed)
        if thing is not None:
            raise PrunedModelError(refusal(f"block {step.block}", thing, "merge and recut"))
        before = self._begin(x) if step.opens else Tokens(x, *state.met(step))
        now = self._reduce(before, step, state.facts.prefix_tokens)
        if step.closes:
            state.end(now.way, now.tokens.shape[1] - state.facts.prefix_tokens)
        else:
            state.hand_on(step, (now.sizes, now.way))
        return now.tokens

    def _begin(self, x: Tensor) -> Tokens:
        self._papr.check_taken()
        return Tokens(x, None, None)

    def _reduce(self, now: Tokens, step: Step, prefix: int) -> Tokens:
        bias = _log_sizes(now) if step.sized else None
        tokens, queries, keys = self._attend(now.tokens, bias)
        now = now._replace(tokens=tokens)
        likeness = keys[:, :, prefix:].mean(1, dtype=torch.promote_types(keys.dtype, torch.float32))
        if step.by == "attention" and step.keep != "1.0":
            looked = _class_attention(queries, keys, bias)[:, prefix:]
            now, kept = _cut(now, looked, step.keep, prefix)
            likeness = gather(likeness, kept)
        now = _merge(now, likeness, int(step.merge), prefix)
        added = self._thought(now.tokens)
        now = now._replace(tokens=now.tokens + added)
        if step.by == "shift" and step.keep != "1.0":
            way = torch.linalg.vector_norm(added[:, prefix:].detach().float(), dim=2)
            now, _ = _cut(now, way, step.keep, prefix)
        return now

    def _whole(self, tokens: Any) -> Tensor:
        """What the original forward computes."""
        half, _, _ = self._attend(tokens, None)
        whole: Tensor = half + self._thought(half)
        return whole

    def _attend(self, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of the block; queries and keys beside its tokens."""
        normalised = self._normalised(tokens)
        queries, keys, values = self._heads(normalised)
        drop = self._attention_dropout() if self.training else 0.0  # type: ignore[attr-defined]
        mask = None if bias is None else bias.to(queries.dtype)
        answers = F.scaled_dot_product_attention(queries, keys, values, mask, drop)
        together = answers.transpose(1, 2).flatten(2)
        return tokens + self._attended(together, normalised), queries, keys


def _log_sizes(now: Tokens) -> Tensor | None:
    """The bias of proportional attention, (B, 1, 1, P + M).

    None where all tokens are one patch: a mask of zeros would rule out kernels that know none.
    """
    return None if now.sizes is None else now.sizes.log()[:, None, None]


def _class_attention(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """How much the class token attends to each token, averaged over heads: (B, P + M)."""
    with torch.no_grad(), full_precision(queries.device.type):
        logits = queries[:, :, :1].float() @ keys.float().transpose(2, 3)
        logits = logits / math.sqrt(queries.shape[-1])
        shares = (logits if bias is None else logits + bias).softmax(-1)
        return shares.mean(1)[:, 0]


def _merge(now: Tokens, likeness: Tensor, count: int, prefix: int) -> Tokens:
    count = min(count, likeness.shape[1] // 2)
    if count == 0:
        return now
    matching = match(likeness, count, prefix)
    tokens, sizes = merge_tokens(now.tokens, now.sizes, matching, prefix)
    return Tokens(tokens, sizes, (matching, now.way))


def _cut(now: Tokens, scores: Tensor, keep: str, prefix: int) -> tuple[Tokens, Tensor]:
    """Keep the highest scores (B, M); also which those are, (B, K)."""
    kept = top_indices(scores, kept_count(float(keep), scores.shape[1]))
    sizes = now.sizes
    if sizes is not None:
        sizes = torch.cat([sizes[:, :prefix], sizes[:, prefix:].gather(1, kept)], dim=1)
    cut = Cut(kept, scores.shape[1])
    return Tokens(gather(now.tokens, kept, prefix), sizes, (cut, now.way)), kept
