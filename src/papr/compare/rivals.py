"""PaPr beside everything it must beat, on one host and the same images, timed in one run.

`make_field` makes the rivals, `rivals` measures them too: how far each is from the dense host, how
often it is right, what it costs by multiply-accumulates and by the clock. `papr compare` prints it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.baselines.resolution import LowerResolution
from papr.baselines.scores import Scores
from papr.compare.field import DENSE, Field, make_field
from papr.errors import ConfigError
from papr.graft import states
from papr.hosts import find_plan
from papr.hosts.overhear import patches, prepare_patches
from papr.measure import Difference, count_macs, interleave
from papr.pruning import selection
from papr.significance import describe
from papr.twins import twin
from papr.wrappers import unwrap

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
            it does not classify), -1 to 1; None where the host answers one number.
        difference: where it does, the mean distance from the dense host's, in standard deviations
            of the latter over the images; None otherwise. None are all where nothing was judged.
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
    cosine: float | None
    difference: float | None
    top1: float | None
    gmacs_host: float
    gmacs_proposal: float
    ms_per_image: tuple[float, float, float]
    speedup: tuple[float, float, float]
    ideal: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


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
    et al. 2022, arXiv 2210.09461) and PaPr with ToMe at PaPr's GMACs or a few more. Those the host
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


@dataclass
class _Tally:
    """What adds up over batches, for one rival."""

    images: int = 0
    agree: int = 0
    cosine: float = 0.0
    right: int = 0
    labelled: int = 0
    classes: bool = True
    single: bool = False
    difference: Difference = field(default_factory=Difference)

    @property
    def near(self) -> float | None:
        """The mean cosine; None of one number, and where nothing was judged."""
        return None if self.single or not self.images else self.cosine / self.images

    def add(self, found: Tensor, dense: Tensor, labels: Tensor | None) -> None:
        self.images += len(found)
        self.single = dense.shape[1] == 1
        if self.single:  # of one number neither an argmax nor a cosine says anything
            self.difference.add(found[:, 0].tolist(), dense[:, 0].tolist())
            return
        best = found.argmax(1)
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
    judged: bool = True,
) -> list[RivalRow]:
    """Quality over all batches, then costs on the first, the rivals in turns.

    Args:
        found: from `make_field`.
        batches: (pixels, labels or None), on the host's device, in its dtype; read once.
        rounds: turns that count.
        warmup: turns before them.
        each_turn: called after every timed turn; there are (rounds + warmup) * rivals.
        judged: whether there is a quality: False where weights are random.

    Raises:
        ConfigError: there is no batch.
    """
    tallies, images = {name: _Tally() for name in found.models}, 0
    first: Tensor | None = None
    for pixels, labels in batches:
        first = pixels if first is None else first
        images += len(pixels)
        if judged:
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
            images=images,
            agreement=_share(tallies[name].agree, tallies[name].images * tallies[name].classes),
            cosine=tallies[name].near,
            difference=tallies[name].difference.value,
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

    Tokens count by their class token, or their mean where there is none; maps by their mean. One
    number is no logit of a class, unless the host is known to be trained for yes or no: then there
    are two, of no and yes.
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
    if classes and output.ndim == 2 and output.shape[1] == 1:
        return _yes_or_no(output) if answers_yes_or_no(host) else (output, False)
    return output, classes


def answers_yes_or_no(host: nn.Module) -> bool:
    """Whether a host of one output was trained with a threshold at 0, as its configuration says."""
    config = getattr(unwrap(host), "config", None)
    kind = getattr(config, "problem_type", None)
    return kind == "multi_label_classification" and getattr(config, "num_labels", 0) == 1


def _yes_or_no(output: Tensor) -> tuple[Tensor, bool]:
    """The softmax of (0, x) is (1 - sigmoid x, sigmoid x)."""
    return torch.cat([torch.zeros_like(output), output], 1), True


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
