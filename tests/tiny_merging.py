"""Hosts whose tokens merge, are pooled and are cut in their blocks, and what they must answer.

The reference runs the host's own blocks on one image at a time, each block twice: once with its MLP
silenced, once with its attention. Between, tokens merge in loops over lists.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import papr
from tiny_case import Case, no_fast_path


class MergingCase(Case):
    """Another case's host, with further ways to reduce its tokens."""

    def __init__(self, inner: Case, attention: str, mlp: str, **pruning: object) -> None:
        self.inner = inner
        self.halves = (attention, mlp)  # a block's modules whose answers are added to its tokens
        self.pruning = pruning
        self.prefix, self.rectangles = inner.prefix, inner.rectangles
        for name in ("make", "blocks", "logits", "tokens", "head", "checkpoint", "same"):
            setattr(self, name, getattr(inner, name))

    def prune(self, model: nn.Module, keep: float = 0.5, **options: object) -> nn.Module:
        """With the further ways; at keep = 1, which is to be the dense host, without."""
        return self.inner.prune(model, keep, **{**(self.pruning if keep < 1 else {}), **options})

    def logits_on_kept(self, dense: nn.Module, images: Tensor, pruned: nn.Module) -> Tensor:
        indices = papr.selection(pruned).indices
        return torch.cat(
            [self.slowly(dense, images[i : i + 1], indices[i])[0] for i in range(len(images))]
        )

    def slowly(self, dense: nn.Module, image: Tensor, indices: Tensor) -> tuple[Tensor, list]:
        """The answer for one image of which these patches are kept, and what each token holds."""
        model = copy.deepcopy(dense)
        blocks = self.blocks(model)
        slow = SlowBlocks(self, len(blocks), indices.tolist())
        for number, block in enumerate(blocks):
            slow.take_over(block, number)
        with no_fast_path():
            return self.logits(model, image), slow.holds


class SlowBlocks:
    """What the blocks of a host do to the tokens of one image.

    Attributes:
        holds: of each patch token, in order, the patches it holds.
    """

    def __init__(self, case: MergingCase, count: int, kept: list[int]) -> None:
        self.case, self.kept = case, kept
        merge, recut = case.pruning.get("merge"), case.pruning.get("recut")
        first = count // 2 if merge and merge.start is None else 0
        self.merges = {first + i: r for i, r in enumerate(_listed(merge, count - first))}
        self.recut, self.sized = recut, bool(merge and merge.proportional)
        self.cut_in = () if recut is None else recut.blocks or (count // 2,)
        self.holds: list[list[int]] = []

    def take_over(self, block: nn.Module, number: int) -> None:
        original = block.forward

        def forward(x: Tensor, *args, **kwargs) -> Tensor:
            if number == 0:
                x = self.begin(x)
            return self.step(block, original, number, x, args, kwargs)

        block.forward = forward

    def begin(self, x: Tensor) -> Tensor:
        """The kept tokens, and the means of what is pooled."""
        p = self.case.prefix
        rows = [*x[0, :p], *(x[0, p + i] for i in self.kept)]
        self.holds = [[i] for i in self.kept]
        rest = [i for i in range(x.shape[1] - p) if i not in self.kept]
        pools = self.case.pruning.get("pool", 0)
        for pool in range(pools):
            run = [i for place, i in enumerate(rest) if place * pools // len(rest) == pool]
            rows.append((sum(x[0, p + i].double() for i in run) / len(run)).to(x))
            self.holds.append(run)
        self.weights = [1.0] * len(self.holds)  # a mean counts as one token
        return torch.stack(rows)[None]

    def step(self, block, original, number: int, x: Tensor, args, kwargs) -> Tensor:
        p = self.case.prefix
        attention, mlp = (block.get_submodule(half) for half in self.case.halves)
        with overheard(self.weights if self.sized else None, p) as heard, silenced(mlp):
            x = original(x, *args, **kwargs)
        queries, keys = heard[0]
        patches = list(x[0, p:])
        alike = list(keys[0].float().mean(0)[p:])
        if number in self.cut_in and self.recut.by == "attention":
            share = (queries[0, :, 0, None] @ keys[0].transpose(1, 2)).float()[:, 0]
            share = share / queries.shape[-1] ** 0.5
            if self.sized:
                share = share + share.new_tensor([1.0] * p + self.weights).log()
            scores = share.softmax(-1).mean(0)[p:].tolist()
            patches, alike = self.cut(scores, patches, alike)
        patches = self.merge(patches, alike, self.merges.get(number, 0))
        x = torch.stack([*x[0, :p], *patches])[None]
        with silenced(attention):
            after = original(x, *args, **kwargs)
        if number in self.cut_in and self.recut.by == "shift":
            scores = (after - x)[0, p:].float().norm(dim=1).tolist()
            (left,) = self.cut(scores, list(after[0, p:]))
            after = torch.stack([*after[0, :p], *left])[None]
        return after

    def cut(self, scores: list[float], *rows: list) -> list[list]:
        count = max(1, int(self.recut.keep * len(scores)))
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        stay = sorted(order[:count])
        self.holds = [self.holds[i] for i in stay]
        self.weights = [self.weights[i] for i in stay]
        return [[row[i] for i in stay] for row in rows]

    def merge(self, rows: list[Tensor], alike: list[Tensor], count: int) -> list[Tensor]:
        if count == 0:
            return rows
        first = [i for i in range(len(rows)) if (i + self.case.prefix) % 2 == 0]
        second = [i for i in range(len(rows)) if i not in first]
        pairs = []
        for a in first:
            likeness = [float(F.cosine_similarity(alike[a], alike[b], dim=0)) for b in second]
            best = max(likeness)
            pairs.append((-best, a, second[likeness.index(best)]))
        gone = {a: b for _, a, b in sorted(pairs)[: min(count, len(rows) // 2)]}
        order = [a for a in first if a not in gone] + second
        members = {i: [i, *(a for a, b in gone.items() if b == i)] for i in order}
        weights, holds = self.weights, self.holds
        merged = [
            (
                sum(rows[i].double() * weights[i] for i in members[t])
                / sum(weights[i] for i in members[t])
            ).to(rows[t])
            for t in order
        ]
        self.weights = [sum(weights[i] for i in members[t]) for t in order]
        self.holds = [[patch for i in members[t] for patch in holds[i]] for t in order]
        return merged


def _listed(merge: papr.Merge | None, blocks: int) -> list[int]:
    if merge is None:
        return []
    return list(merge.r) if isinstance(merge.r, tuple) else [merge.r] * blocks


@contextlib.contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """Within, a module answers zeros."""

    def hook(_module, _args, output):
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def overheard(weights: list[float] | None, prefix: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within, fused attention tells queries and keys, and counts each key so many times."""
    fused = F.scaled_dot_product_attention
    heard: list[tuple[Tensor, Tensor]] = []

    def listening(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest, **kw):
        assert attn_mask is None
        heard.append((q, k))
        if weights is not None:
            log = torch.tensor([1.0] * prefix + weights, dtype=torch.float64).log().to(q)
            attn_mask = log.expand(q.shape[2], -1)
        return fused(q, k, v, attn_mask, *rest, **kw)

    F.scaled_dot_product_attention = listening
    try:
        yield heard
    finally:
        F.scaled_dot_product_attention = fused


def merging_cases(cases: dict[str, Case]) -> dict[str, Case]:
    """One host of each library; between them, everything that can happen in blocks."""
    hf_vit = cases["hf_vit"].build(depth=1)
    mlp = "mlp" if "mlp" in hf_vit.vit.get_submodule(_layer(hf_vit))._modules else "output.dense"
    shift, looked = papr.Recut(0.7), papr.Recut(0.7, (1,), "attention")
    return {
        "augreg_merged": MergingCase(cases["augreg"], "attn", "mlp", merge=papr.Merge(5)),
        "dinov2_registers_recut": MergingCase(
            cases["dinov2_registers"], "attn", "mlp", merge=papr.Merge([3, 4], 0.0), recut=looked
        ),
        "hf_vit_pooled": MergingCase(
            cases["hf_vit"],
            "attention",
            mlp,
            merge=papr.Merge(4, proportional=False),
            pool=3,
            recut=shift,
        ),
        "torchvision_merged": MergingCase(
            cases["torchvision"], "self_attention", "mlp", merge=papr.Merge(4), pool=1
        ),
    }


def _layer(model: nn.Module) -> str:
    return next(n for n, m in model.vit.named_modules() if type(m).__name__ == "ViTLayer")
