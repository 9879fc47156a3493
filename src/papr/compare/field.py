"""Who PaPr is compared with on one host: every rival as a module that shares its weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from papr.baselines.norm import norm_scores
from papr.baselines.resolution import LowerResolution, lower_resolution
from papr.baselines.scores import (
    Scores,
    centre_scores,
    oracle_scores,
    random_scores,
    stride_scores,
)
from papr.config import check_keep
from papr.counts import count_of
from papr.errors import ConfigError, PaprError, UnsupportedModelError
from papr.graft import states
from papr.hosts import Plan, find_plan
from papr.hosts.overhear import Patches, patches, prepare_patches
from papr.later import Merge, Recut
from papr.measure import count_macs
from papr.pruning import prune, selection, unprune
from papr.selecting import Selection, kept_count
from papr.twins import twin
from papr.wrappers import unwrap

DENSE, PAPR = "dense", "papr"
#: The block in which EViT first drops tokens, of 12 (Liang et al., ICLR 2022, Sec. 4).
_EVIT_BLOCK = 3
#: PaPr keeps this many times more where merging takes tokens away too: 0.6 beside 0.5.
_WITH_MERGING = 1.2
#: Options of `papr.prune` that hold for every selection; the others are PaPr's own.
SHARED = ("stages", "attention", "reference", "mean", "std")


@dataclass(frozen=True)
class Field:
    """Who takes part.

    Attributes:
        models: name -> module that takes the host's pixels; "dense" is the first, "papr" the next.
        notes: name -> what else must be known of it.
        missing: name -> why this host cannot have that rival.
    """

    models: dict[str, nn.Module]
    notes: dict[str, str]
    missing: dict[str, str]


def make_field(
    model: nn.Module,
    example: Tensor,
    keep: float,
    *,
    oracle: Tensor | Scores | None = None,
    **options: Any,
) -> Field:
    """The rivals as modules that share the host's weights; see `rivals`.

    Args:
        model: the host; left as it is.
        example: pixels of the size that is to be compared; the first image is run.
        keep: fraction of patches to keep, 0 < keep < 1.
        oracle: as in `rivals`.
        **options: further options of `papr.prune`.
    """
    if check_keep(keep) == 1:
        raise ConfigError("expected keep below 1 to compare with the dense host, got 1")
    makers = Makers(model, example[:1], keep, options)
    made = Field({DENSE: makers.dense, PAPR: makers.papr()}, {}, {})
    if oracle is not None:
        made.models["oracle"] = makers.scored(oracle_scores(oracle))
    for name, make in makers.others().items():
        try:
            made.models[name] = make()
        except PaprError as error:
            made.missing[name] = str(error)
    for name, rival in made.models.items():
        made.notes[name] = makers.notes.get(name, _size_note(rival))
    return made


class Makers:
    """How each rival at one keep is made.

    Args:
        model: the host; left as it is.
        example: pixels of one image of the size that is to be compared, (1, 3, H, W).
        keep: fraction of patches to keep, 0 < keep < 1.
        options: further options of `papr.prune`, of which rivals take those that are not PaPr's.
        seed: of the random selection; None for torch's own generators.

    Attributes:
        dense: the host unpruned, which all share their weights with.
        shared: the options that rivals take.
        notes: name -> what else must be known of a rival made so far.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        keep: float,
        options: Mapping[str, Any],
        seed: int | None = 0,
    ) -> None:
        self.seed = seed
        self.dense = unprune(twin(unwrap(model))).eval()
        self.example, self.keep = example, keep
        self.options = {**options, "trace": True}  # it changes no answer, and pictures need it
        self.shared = {name: options[name] for name in SHARED if name in options}
        self.plan = find_plan(self.dense)
        self.notes: dict[str, str] = {}
        self.patches = _patches(self.dense, self.plan, example)

    def papr(self) -> nn.Module:
        """PaPr itself."""
        return prune(twin(self.dense), self.keep, **self.options)

    def others(self) -> dict[str, Callable[[], nn.Module]]:
        """Name -> what makes it, or raises PaprError where the host cannot have it."""
        merging = {
            "tome": lambda: self._merged("tome", 1.0, self.shared),
            "papr + tome": self._papr_and_merged,
        }
        return self.selections() | merging

    def selections(self) -> dict[str, Callable[[], nn.Module]]:
        """Those of as many patches as PaPr keeps, as `others`."""
        cell = self.patches.cell
        return {
            "random": lambda: self.scored(random_scores(self.seed, cell)),
            "centre": lambda: self.scored(centre_scores(cell=cell)),
            "stride": self._stride,
            "embedding norm": lambda: self.scored(norm_scores(self.dense)),
            "class attention": self._class_attention,
            "lower resolution": self._lower_resolution,
        }

    def scored(self, scores: Scores) -> nn.Module:
        """The host keeping as many patches by other scores."""
        return prune(twin(self.dense), self.keep, scores, **self.shared)

    def _stride(self) -> nn.Module:
        if self.plan.facts.stages:
            raise UnsupportedModelError(
                "expected one patch grid for a regular pattern, got a host with a grid for each "
                "stage"
            )
        return self.scored(stride_scores(self.patches.cell, max(1, self.plan.facts.tubelet)))

    def _lower_resolution(self) -> nn.Module:
        kept = kept_count(self.keep, math.prod(self.patches.grid))
        return lower_resolution(self.dense, kept, self.example)

    def _class_attention(self) -> nn.Module:
        recut = Recut(keep=self.keep, blocks=(_EVIT_BLOCK,), by="attention")
        self.notes["class attention"] = f"dropped in block {_EVIT_BLOCK}"
        return prune(twin(self.dense), 1.0, recut=recut, **self.shared)

    def _papr_and_merged(self) -> nn.Module:
        keep = min(0.99, self.keep * _WITH_MERGING)
        return self._merged("papr + tome", keep, self.options)

    def _merged(self, name: str, keep: float, options: dict[str, Any]) -> nn.Module:
        """With as many tokens merged as leaves the host PaPr's GMACs or a few more."""
        target = count_macs(self.papr(), self.example).total
        merged, total = merged_to(self.dense, self.example, target, keep, **options)
        r = total / _merging_blocks(len(self.plan.blocks), keep)
        self.notes[name] = f"r = {r:.3g}" + (f", keep {keep:g}" if keep < 1 else "")
        return merged


def merged_to(
    host: nn.Module, example: Tensor, macs: int, keep: float = 1.0, **options: Any
) -> tuple[nn.Module, int]:
    """ToMe that merges as many tokens as leaves at least so many multiply-accumulates.

    Tokens are merged one by one over all blocks that merge, each as many as the next or one more,
    so that what is left differs from `macs` by less than a token a block, and a rival of equal
    arithmetic never has less. Where even one token leaves less than `macs`, one is merged; where
    all that can be merged leave more, all are.

    Args:
        host: left as it is.
        example: pixels of one image, (1, 3, H, W), or a clip, (1, T, 3, H, W).
        macs: multiply-accumulates of that image, the proposal's included.
        keep: fraction of patches that PaPr keeps before, 0 < keep <= 1; below 1 tokens are merged
            in the second half of the blocks, as in PaPr's paper, otherwise from the first block.
        **options: further options of `papr.prune`, without `merge`'s.

    Returns:
        A pruned host that shares its weights with `host`, and how many tokens it is asked to merge.

    Raises:
        UnsupportedModelError: the host cannot merge tokens.
        ConfigError: an option is out of range.
    """
    dense = unprune(twin(unwrap(host))).eval()
    plan = find_plan(dense)
    blocks = _merging_blocks(len(plan.blocks), keep)
    half = math.prod(_patches(dense, plan, example).grid) // 2  # no block merges more

    def merging(total: int) -> nn.Module:
        each = [total // blocks + (i < total % blocks) for i in range(blocks)]
        merge = Merge(r=each, start=_start(keep))
        return prune(twin(dense), keep, **{**options, "merge": merge})

    def cost(total: int) -> int:
        return count_macs(merging(total), example).total

    total = _most(cost, macs, blocks * half)
    return merging(total), total


def _start(keep: float) -> float:
    return 0.5 if keep < 1 else 0.0


def _merging_blocks(blocks: int, keep: float) -> int:
    return max(1, blocks - count_of(_start(keep), blocks))


def _most(cost: Callable[[int], int], least: int, top: int) -> int:
    """The most from 1 to `top` whose cost, which falls, is at least `least`; 1 where none's is.

    A cost is a forward pass of the host, so the range is halved.
    """
    enough, too_many = 1, top + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if cost(middle) >= least:
            enough = middle
        else:
            too_many = middle
    return enough


def _patches(dense: nn.Module, plan: Plan, example: Tensor) -> Patches:
    probe = twin(dense)
    prepare_patches(probe, plan)
    return patches(probe, plan, example)


def _size_note(rival: nn.Module) -> str:
    if not isinstance(rival, LowerResolution):
        return ""
    return "{} x {} px".format(*rival.size)


@torch.inference_mode()
def selections(found: Field, pixels: Tensor) -> Iterator[tuple[str, Selection]]:
    """What each rival that drops or merges patches of these images made of them; for pictures."""
    for name, rival in found.models.items():
        if not states(rival):
            continue
        rival(pixels)
        chosen = selection(rival)
        assert isinstance(chosen, Selection)
        yield name, chosen
