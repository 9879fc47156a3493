"""How near a pruned host comes to the dense one, on images that are decoded once and held."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from papr.errors import ConfigError
from papr.evaluate.answers import Answers, ask, classifier_path, cosines
from papr.evaluate.evaluator import top_classes
from papr.evaluate.loading import Prepare, Skipped, loader, make_plan
from papr.evaluate.sources import Chosen, Source
from papr.measure import Difference, mean_interval, wilson
from papr.words import counted


@dataclass(frozen=True)
class Quality:
    """How near some images' answers are to the dense host's.

    Attributes:
        images: how many.
        agree: with how many of them the top-1 is the dense host's; None where it does not classify.
        cosines: of each image's embedding with the dense host's, -1 to 1.
        difference: of a host of one output, the mean distance from the dense host's, in standard
            deviations of the latter; None of other hosts.
    """

    images: int
    agree: int | None
    cosines: tuple[float, ...] = field(repr=False)
    difference: float | None = None

    @property
    def agreement(self) -> float | None:
        """Share of images with the dense host's top-1."""
        return None if self.agree is None else self.agree / self.images

    @property
    def cosine(self) -> float:
        """The mean."""
        return sum(self.cosines) / self.images

    def value(self, kind: str) -> float:
        """Its "agreement" or "cosine"."""
        found: float = getattr(self, kind)
        return found

    def interval(self, kind: str, confidence: float = 0.95) -> tuple[float, float]:
        """A two-sided confidence interval of "agreement" (Wilson's) or "cosine" (normal)."""
        if kind == "cosine":
            low, high = mean_interval(self.cosines, confidence)
            return max(-1.0, low), min(1.0, high)
        assert self.agree is not None
        return wilson(self.agree, self.images, confidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with 95 % intervals."""
        found: dict[str, Any] = {"images": self.images, "agree": self.agree}
        for kind in ("cosine", "agreement") if self.agree is not None else ("cosine",):
            found |= {kind: self.value(kind), f"{kind}_95": list(self.interval(kind))}
        return found if self.difference is None else found | {"difference": self.difference}


def halves(source: Source) -> tuple[Source, Source]:
    """Samples to choose on, and samples to report on, by a hash of each one's id.

    A sample stays in its half whatever others come or go.
    """
    assert source.length is not None
    numbers: tuple[list[int], list[int]] = ([], [])
    for number in range(source.length):
        numbers[_side(source, number)].append(number)
    if not all(numbers):
        raise ConfigError(
            "expected samples for both halves, one to choose on and one to report on, got "
            f"{counted(source.length or 0, 'sample')}, all in one half"
        )
    return Chosen(source, numbers[0]), Chosen(source, numbers[1])


def _side(source: Source, number: int) -> int:
    name = source.name(number)
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] % 2


class Held:
    """Images decoded once, and what the dense host answers to them.

    Attributes:
        images: how many could be read.
        skipped: the others.
        classifies: whether the host tells classes apart.
        single: whether it answers one number instead.
        first: pixels of the first batch on the host's device, for the clock.
    """

    def __init__(
        self,
        dense: nn.Module,
        source: Source,
        prepare: Prepare,
        batch: int,
        workers: int | None,
    ) -> None:
        weight = next(dense.parameters())
        self._device, self._head = weight.device, classifier_path(dense)
        self._batches: list[tuple[Tensor, Sequence[int]]] = []
        self.skipped: list[Skipped] = []
        plan = make_plan(source, batch)
        for found in loader(source, plan, plan.parts(source), prepare, workers=workers):
            self.skipped += found.skipped
            if found.pixels is not None:
                # a copy: what is held in shared memory would fill it
                held = found.pixels.to(weight.dtype, copy=True)
                self._batches.append((held, found.views))
        if not self._batches:
            why = f": {self.skipped[0].reason}" if self.skipped else ""
            raise ConfigError(f"expected a sample that can be read in each half, got none{why}")
        self.images = sum(len(views) for _, views in self._batches)
        self.first = self._batches[0][0].to(self._device)
        self._dense = [self._ask(dense, i) for i in range(len(self._batches))]
        self.classifies = self._dense[0].scores is not None
        self.single = self._dense[0].outputs is not None
        if self._dense[0].embeddings.shape[1] == 1:
            raise ConfigError(
                f"expected an embedding to judge by, got a {type(dense).__name__} that returns one "
                "number, without a classifier that papr finds"
            )

    def _ask(self, model: nn.Module, number: int) -> Answers:
        pixels, views = self._batches[number]
        return ask(model, pixels.to(self._device), views, self._head)

    def quality(self, model: nn.Module) -> Quality:
        """One pass over the images."""
        agree, near, difference = 0, list[float](), Difference()
        for number, dense in enumerate(self._dense):
            found = self._ask(model, number)
            near += cosines(found.embeddings, dense.embeddings) or []
            if found.outputs is not None and dense.outputs is not None:
                difference.add(found.outputs.tolist(), dense.outputs.tolist())
            if found.scores is not None and dense.scores is not None:
                same = top_classes(found.scores, 1) == top_classes(dense.scores, 1)
                agree += int(torch.count_nonzero(same))
        agreed = agree if self.classifies else None
        return Quality(self.images, agreed, tuple(near), difference.value)
