"""PaPr beside everything it must beat, on one host and the same images, timed in one run.

`make_field` makes the rivals, `rivals` measures them too: how far each is from the dense host, how
often it is right, what it costs by multiply-accumulates and by the clock. `papr compare` prints it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr import config
from papr.baselines import (
    LowerResolution,
    Scores,
    centre_scores,
    lower_resolution,
    norm_scores,
    oracle_scores,
    random_scores,
    stride_scores,
)
from papr.compare import twin
from papr.config import check_keep
from papr.errors import ConfigError, PaprError, SelectionError, UnsupportedModelError
from papr.graft import states
from papr.hosts import find_plan
from papr.hosts.overhear import patches, prepare_patches
from papr.measure import count_macs, interleave
from papr.pruning import prune, selection, unprune, unwrap
from papr.selecting import kept_count
from papr.significance import describe

DENSE, PAPR = "dense", "papr"
#: The block in which EViT first drops tokens, of 12 (Liang et al., ICLR 2022, Sec. 4).
_EVIT_BLOCK = 3
#: PaPr keeps this many times more where merging takes tokens away too: 0.6 beside 0.5.
_WITH_MERGING = 1.2
#: Options of `papr.prune` that hold for every selection; the others are PaPr's own.
_SHARED = ("stages", "attention", "reference", "mean", "std", "trace")

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class RivalRow:
    """One rival, measured beside the dense host.

    Attributes:
        name: who.
        tokens: patch tokens that leave the last block; of Swin and ConvNeXt, patches selected in
            the first pruned stage.
        note: what else must be known, such as the resolution; may be empty.
        images: how many images the quality is of.
        agreement: share of them with the dense host's top-1; None where it does not classify.
        cosine: mean cosine between the rival's and the dense host's logits (or embeddings, where
            it does not classify), -1 to 1.
        top1: share of the labelled images classified right; None without labels.
        gmacs_host: GMACs of one image in the host.
        gmacs_proposal: likewise in whoever looks first.
        ms_per_image: milliseconds per image, (median, lower, upper quartile).
        speedup: over the dense host, turn by turn, (median, lower, upper quartile).
        ideal: dense GMACs / the rival's.
    """

    name: str
    tokens: int
    note: str
    images: int
    agreement: float | None
    cosine: float
    top1: float | None
    gmacs_host: float
    gmacs_proposal: float
    ms_per_image: tuple[float, float, float]
    speedup: tuple[float, float, float]
    ideal: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


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


def rivals(
    model: nn.Module,
    images: Tensor,
    keep: float,
    *,
    labels: Tensor | None = None,
    batch: int = 8,
    rounds: int = 7,
    warmup: int = 2,
    oracle: Tensor | Scores | None = None,
    each_turn: Callable[[], object] | None = None,
    **options: Any,
) -> list[RivalRow]:
    """PaPr beside what it must beat: one row for each rival that the host can have.

    Those are the dense host, PaPr, a random, a central and an evenly spread selection, the one by
    the norm of the host's embeddings, by its class attention in block 3 (EViT without training:
    Liang et al. 2022, arXiv 2202.07800), the dense host at a lower resolution, ToMe alone (Bolya
    et al. 2022, arXiv 2210.09461) and PaPr with ToMe at PaPr's GMACs. Those that the host
    cannot have are left out; `make_field(...).missing` says which, and why.

    Args:
        model: the host, on its device, in its dtype; left as it is.
        images: (N, 3, H, W), or clips (N, T, 3, H, W), same device and dtype.
        keep: fraction of patches to keep, 0 < keep < 1.
        labels: (N,) class indices.
        batch: images a call; the first so many are what is timed.
        rounds: turns that count.
        warmup: turns before them.
        oracle: scores of the user's own, (N, h, w) or a callable, as one more rival.
        each_turn: called after every timed turn.
        **options: further options of `papr.prune`. The other selections share stages, attention
            and reference; the proposal is PaPr's.

    Raises:
        ConfigError: `keep`, `labels` or an option is out of range.
        UnsupportedModelError: the host cannot be pruned.
    """
    if labels is not None and labels.shape != images.shape[:1]:
        raise ConfigError(
            f"expected labels ({images.shape[0]},) of the images, got {describe(labels)}"
        )
    found = make_field(model, images[:1], keep, oracle=oracle, **options)
    parts = images.split(batch)
    truths = labels.split(batch) if labels is not None else [None] * len(parts)
    return measure_field(found, zip(parts, truths, strict=True), rounds, warmup, each_turn)


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
            "tome": lambda: self._merged("tome", 1.0, {**self.shared, "start": 0.0}),
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
        recut = _kind("Recut")(keep=self.keep, blocks=(_EVIT_BLOCK,), by="attention")
        self.notes["class attention"] = f"dropped in block {_EVIT_BLOCK}"
        pruned: nn.Module = prune(twin(self.dense), 1.0, recut=recut, **self.shared)  # type: ignore[call-arg]
        return self._tried(pruned)

    def _papr_and_merged(self) -> nn.Module:
        keep = min(0.99, self.keep * _WITH_MERGING)
        return self._merged("papr + tome", keep, {**self.options, "start": 0.5})

    def _merged(self, name: str, keep: float, options: dict[str, Any]) -> nn.Module:
        """With as many tokens merged a block as brings the host to PaPr's GMACs."""
        merge, start = _kind("Merge"), options.pop("start")

        def make(r: int) -> nn.Module:
            asked = {**options, "merge": merge(r=r, start=start)}
            return prune(twin(self.dense), keep, **asked)

        target = count_macs(self.papr(), self.example).total
        r = _nearest(lambda r: count_macs(make(r), self.example).total, target)
        self.notes[name] = f"r = {r}" + (f", keep {keep:g}" if keep < 1 else "")
        return self._tried(make(r))

    def _tried(self, rival: nn.Module) -> nn.Module:
        with torch.no_grad():
            rival(self.example)
        return rival


def _kind(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] | None = getattr(config, name, None)
    if found is None:
        raise UnsupportedModelError(f"expected papr.{name}, which this version of papr has not")
    return found


def _nearest(cost: Callable[[int], int], target: int) -> int:
    """The r from 1 whose cost, which falls with r, is nearest to `target`."""
    known = {1: cost(1)}
    high = 1
    while known[high] > target:
        known[2 * high] = cost(2 * high)
        high *= 2
        if known[high] == known[high // 2]:  # nothing is left to merge
            break
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = cost(middle)
        low, high = (middle, high) if known[middle] > target else (low, middle)
    return min(known, key=lambda r: (abs(known[r] - target), r))


def _size_note(rival: nn.Module) -> str:
    if not isinstance(rival, LowerResolution):
        return ""
    return "{} x {} px".format(*rival.size)


@dataclass
class _Tally:
    """What adds up over batches, for one rival."""

    images: int = 0
    agree: int = 0
    cosine: float = 0.0
    right: int = 0
    labelled: int = 0
    classes: bool = True

    def add(self, found: Tensor, dense: Tensor, labels: Tensor | None) -> None:
        best = found.argmax(1)
        self.images += len(found)
        self.agree += int((best == dense.argmax(1)).sum())
        self.cosine += float(F.cosine_similarity(found.double(), dense.double()).sum())
        if labels is not None:
            self.labelled += len(labels)
            self.right += int((best == labels.to(best.device)).sum())


@torch.inference_mode()
def measure_field(
    found: Field,
    batches: Iterable[Batch],
    rounds: int = 7,
    warmup: int = 2,
    each_turn: Callable[[], object] | None = None,
) -> list[RivalRow]:
    """Quality over all batches, then costs on the first, the rivals in turns.

    Args:
        found: from `make_field`.
        batches: (pixels, labels or None), on the host's device, in its dtype; read once.
        rounds: turns that count.
        warmup: turns before them.
        each_turn: called after every timed turn; there are (rounds + warmup) * rivals.

    Raises:
        ConfigError: there is no batch.
    """
    tallies = {name: _Tally() for name in found.models}
    first: Tensor | None = None
    for pixels, labels in batches:
        first = pixels if first is None else first
        _judge(found, tallies, pixels, labels)
    if first is None:
        raise ConfigError("expected at least one batch of images, got none")
    calls = {name: partial(rival, first) for name, rival in found.models.items()}
    macs = {name: count_macs(rival, first[:1]) for name, rival in found.models.items()}
    timings = interleave(calls, rounds, warmup, first.device, each_turn)
    dense = timings[DENSE]
    return [
        RivalRow(
            name=name,
            tokens=tokens_left(rival, first[:1]),
            note=found.notes[name],
            images=tallies[name].images,
            agreement=_share(tallies[name].agree, tallies[name].images * tallies[name].classes),
            cosine=tallies[name].cosine / tallies[name].images,
            top1=_share(tallies[name].right, tallies[name].labelled * tallies[name].classes),
            gmacs_host=macs[name].host / 1e9,
            gmacs_proposal=macs[name].proposal / 1e9,
            ms_per_image=timings[name].ms_per_image(len(first)),
            speedup=timings[name].speedup_over(dense),
            ideal=macs[DENSE].total / macs[name].total,
        )
        for name, rival in found.models.items()
    ]


def _judge(found: Field, tallies: dict[str, _Tally], pixels: Tensor, labels: Tensor | None) -> None:
    host = found.models[DENSE]
    dense, classes = answer(host, host(pixels))
    for name, rival in found.models.items():
        tally = tallies[name]
        tally.classes = classes
        given = dense if name == DENSE else answer(host, rival(pixels))[0]
        tally.add(given, dense, labels if classes else None)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def answer(host: nn.Module, output: Any) -> tuple[Tensor, bool]:
    """What a host answered, as (B, D), and whether that is a logit for each class.

    Tokens count by their class token, or their mean where there is none; maps by their mean.
    """
    classes = getattr(host, "num_classes", 1) != 0
    if isinstance(output, Mapping):
        names = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
        name = next(n for n in names if output.get(n) is not None)
        output, classes = output[name], name == "logits"
    elif isinstance(output, tuple):
        output = output[0]
    if output.ndim == 3:
        of_class = find_plan(host).facts.class_token
        return (output[:, 0] if of_class else output.mean(1)), False
    if output.ndim == 4:
        return output.mean((2, 3)), False
    return output, classes


def tokens_left(rival: nn.Module, pixels: Tensor) -> int:
    """Patch tokens that leave a rival's last block; see `RivalRow`."""
    if isinstance(rival, LowerResolution):
        return rival.count
    plan = find_plan(rival)
    if plan.facts.stages:
        if not states(rival):
            probe = twin(rival)
            prepare_patches(probe, plan)
            return math.prod(patches(probe, plan, pixels).grid)
        rival(pixels)
        return selection(rival).indices.shape[1]
    return plan.features(rival, pixels).shape[1] - plan.feature_prefix


@torch.inference_mode()
def kept_masks(found: Field, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, (B, *grid) bool) of each rival that selects patches once; for pictures."""
    for name, rival in found.models.items():
        if name == DENSE or not states(rival):
            continue
        rival(pixels)
        try:
            yield name, selection(rival).mask()
        except SelectionError:
            continue
