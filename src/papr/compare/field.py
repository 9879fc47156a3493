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
from papr.errors import ConfigError, PaprError, UnsupportedModelError
from papr.graft import states
from papr.hosts import find_plan
from papr.hosts.overhear import patches, prepare_patches
from papr.later import Merge, Recut
from papr.measure import count_macs
from papr.pruning import prune, selection, unprune, unwrap
from papr.selecting import Selection, kept_count
from papr.twins import twin

DENSE, PAPR = "dense", "papr"
#: The block in which EViT first drops tokens, of 12 (Liang et al., ICLR 2022, Sec. 4).
_EVIT_BLOCK = 3
#: PaPr keeps this many times more where merging takes tokens away too: 0.6 beside 0.5.
_WITH_MERGING = 1.2
#: Options of `papr.prune` that hold for every selection; the others are PaPr's own.
_SHARED = ("stages", "attention", "reference", "mean", "std", "trace")


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
    makers = _Makers(model, example[:1], keep, options)
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


class _Makers:
    """How each rival is made; the attributes are what they have in common."""

    def __init__(
        self, model: nn.Module, example: Tensor, keep: float, options: Mapping[str, Any]
    ) -> None:
        self.dense = unprune(twin(unwrap(model))).eval()
        self.example, self.keep, self.options = example, keep, dict(options)
        self.shared = {name: options[name] for name in _SHARED if name in options}
        self.plan = find_plan(self.dense)
        self.notes: dict[str, str] = {}
        probe = twin(self.dense)
        prepare_patches(probe, self.plan)
        self.patches = patches(probe, self.plan, example)

    def papr(self) -> nn.Module:
        return prune(twin(self.dense), self.keep, **self.options)

    def others(self) -> dict[str, Callable[[], nn.Module]]:
        """Name -> what makes it, or raises PaprError where the host cannot have it."""
        cell = self.patches.cell
        return {
            "random": lambda: self.scored(random_scores(cell=cell)),
            "centre": lambda: self.scored(centre_scores(cell=cell)),
            "stride": self._stride,
            "embedding norm": lambda: self.scored(norm_scores(self.dense)),
            "class attention": self._class_attention,
            "lower resolution": self._lower_resolution,
            "tome": lambda: self._merged("tome", 1.0, self.shared),
            "papr + tome": self._papr_and_merged,
        }

    def scored(self, scores: Scores) -> nn.Module:
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
        """With as many tokens merged a block as brings the host to PaPr's GMACs."""
        start = 0.5 if keep < 1 else 0.0

        def make(r: int) -> nn.Module:
            asked = {**options, "merge": Merge(r=r, start=start)}
            return prune(twin(self.dense), keep, **asked)

        # were the work a block's tokens, those merged on average would make up for those kept more
        blocks = max(1, len(self.plan.blocks)) * (1 - start)
        more = (keep - self.keep) * math.prod(self.patches.grid) / (1 - start)
        target = count_macs(self.papr(), self.example).total
        guess = max(1, round(2 * more / blocks))
        r = _nearest(lambda r: count_macs(make(r), self.example).total, target, guess)
        self.notes[name] = f"r = {r}" + (f", keep {keep:g}" if keep < 1 else "")
        return make(r)


def _nearest(cost: Callable[[int], int], target: int, guess: int) -> int:
    """The r from 1 whose cost, which falls with r, is nearest to `target`; looked for from `guess`.

    A cost is a forward pass of the host, so only those on the way there are asked for.
    """
    known, r = {guess: cost(guess)}, guess
    step = 1 if known[r] > target else -1
    while (known[r] - target) * step > 0 and r + step >= 1:
        r += step
        known[r] = cost(r)
        if step == 1 and known[r] == known[r - 1]:  # there is nothing left to merge
            break
    return min(known, key=lambda r: (abs(known[r] - target), r))


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
