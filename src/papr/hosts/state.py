"""What the sites of one pruned host share: configuration, scorers, the selection of this pass."""

import math
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from papr.config import PruneConfig, Triple
from papr.errors import PaprWarning, SelectionError
from papr.proposals import Proposal
from papr.proposals.scorers import Scorer
from papr.selecting import Selection, kept_count, top_indices
from papr.significance import check_scores, describe, to_grid

_Record = tuple[Tensor, Tensor | None, tuple[int, ...]]  # indices, scores, grid


@dataclass(frozen=True)
class HostFacts:
    """What pruning must know of a host beyond where it is cut.

    Attributes:
        prefix_tokens: leading tokens at the cut that are never ranked and never dropped.
        class_token: whether the host has one; reference mode counts it.
        mean: what the host's pixels were normalised with, for pixels in [0, 1]; None if unknown.
        std: likewise.
        channels: how many channels the host's pixels have.
    """

    prefix_tokens: int
    class_token: bool
    channels: int = 3
    mean: Triple | None = None
    std: Triple | None = None


class HostState:
    """Shared by the sites of one host, outside its module tree.

    The selection travels from the entry to the cut of the same forward pass: through a
    thread-local in eager mode, so that two threads on one model do not see each other's, and
    through a plain attribute in compiled code, where the whole pass is one graph and the
    attribute never outlives the trace.
    """

    def __init__(self, config: PruneConfig, proposal: Proposal, facts: HostFacts) -> None:
        self.config = config
        self.proposal = proposal
        self.facts = facts
        self.scorer: Scorer | None = None
        self._forget()

    def _forget(self) -> None:
        self._scorers: dict[tuple[torch.device, torch.dtype], Scorer] = {}
        self._local = threading.local()
        self._passing: _Record | None = None  # of a compiled pass, from its entry to its last cut
        self._finished: _Record | None = None  # of the last compiled pass

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned (keep = 1): no proposal runs, no token is touched."""
        return self.config.keep == 1.0

    def settle(self, module: nn.Module) -> None:
        """Make the scorer ready for the device and dtype the host's entry module is on.

        Called when the host is pruned and whenever it moves, so that compiled code finds it done.
        """
        if self.dense:
            return
        weight = next((p for p in module.parameters() if p.is_floating_point()), None)
        if weight is not None:
            self.scorer = self._scorer_on(weight.device, weight.dtype)

    def _scorer_on(self, device: torch.device, dtype: torch.dtype) -> Scorer:
        if (device, dtype) not in self._scorers:
            config, facts = self.config, self.facts
            self._scorers[device, dtype] = self.proposal.scorer(
                device, dtype, config.proposal_size, facts.mean, facts.std, config.reference
            )
        return self._scorers[device, dtype]

    def look(self, pixels: Tensor, grid: tuple[int, ...], entry: nn.Module) -> None:
        """Decide what this forward pass keeps.

        Args:
            pixels: what the host was given, cut or padded to the area that the patches cover.
            grid: the host's patch grid for these pixels.
            entry: the module the pixels came in at.
        """
        patches = math.prod(grid)
        if self.dense:
            everything = torch.arange(patches, device=pixels.device)
            self._put((everything.expand(pixels.shape[0], -1), None, grid))
            self.take()  # there is no cut that would
            return
        if torch.compiler.is_compiling():
            scorer = self.scorer
        else:  # a replica of DataParallel, or weights assigned from elsewhere, may have moved
            weight = next(iter(entry.parameters()), pixels)
            scorer = self._scorer_on(pixels.device, weight.dtype)
        assert scorer is not None
        raw = scorer(pixels)
        check_scores(raw)
        scores = to_grid(raw, grid)
        counted = self.config.reference and self.facts.class_token
        indices = top_indices(scores, kept_count(self.config.keep, patches, counted))
        self._put((indices, scores if self.config.trace else None, grid))

    def take(self, again: bool = False) -> Selection:
        """The selection of the forward pass that is under way, for a site to act on.

        Args:
            again: another site of the same pass will ask too.

        Raises:
            SelectionError: tokens came to a cut in a pass whose pixels never passed the entry.
        """
        record = self._take_compiled(again) if self._is_compiled() else self._take_local(again)
        if record is None:
            raise SelectionError(
                "expected pixels to enter the host before its tokens are cut, got tokens only: "
                "call the whole model, or papr.unprune it first"
            )
        indices, scores, grid = record
        return Selection(indices, grid, scores)

    def _is_compiled(self) -> bool:
        """Whether the pass under way came in through compiled code, whatever runs now."""
        return torch.compiler.is_compiling() or not getattr(self._local, "pending", False)

    def _take_compiled(self, again: bool) -> _Record | None:
        record = self._passing
        if record is not None and not again:  # what was taken must not serve another pass
            self._passing, self._finished = None, record
        return record

    def _take_local(self, again: bool) -> _Record | None:
        record: _Record = self._local.record
        self._local.pending = again
        return record

    def last(self) -> Selection:
        """The selection of the last forward pass, of this thread where it ran eagerly.

        Raises:
            SelectionError: there was none, tracing is off, or the last pass was an export.
        """
        if not self.config.trace:
            raise SelectionError("expected trace=True to keep selections, got trace=False")
        local = self._local
        compiled = self._finished
        eager_came_last = compiled is None or compiled is getattr(local, "seen", None)
        record: _Record | None = getattr(local, "record", None) if eager_came_last else compiled
        if record is None:
            raise SelectionError("expected a forward pass before its selection, got none yet")
        indices, scores, grid = record
        if type(indices) is not Tensor:
            raise SelectionError(
                "expected a forward pass before its selection, got one that was only traced "
                f"({describe(indices)})"
            )
        return Selection(indices, grid, scores)

    def _put(self, record: _Record) -> None:
        if torch.compiler.is_compiling():
            self._passing = record
            return
        local = self._local
        local.record, local.pending = record, True
        local.seen = self._finished  # a compiled pass that comes later leaves another object there

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "proposal": self.proposal, "facts": self.facts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, scorer=None)
        self._forget()


def warn_unknown_statistics(model: nn.Module, proposal: Proposal) -> None:
    """Say that the host's normalisation is taken to be the proposal's own."""
    warnings.warn(
        f"the input mean and std of this {type(model).__name__} are unknown; taking them to be "
        f"those of the proposal {proposal.name}, mean {proposal.mean} and std {proposal.std}. "
        f"Pass {_where_statistics_are(model)} to papr.prune if they differ",
        PaprWarning,
        stacklevel=4,
    )


def _where_statistics_are(model: nn.Module) -> str:
    """What a user of the host's library would pass."""
    library = next((c.__module__.partition(".")[0] for c in type(model).__mro__), "")
    return {
        "transformers": "mean=processor.image_mean, std=processor.image_std",
        "torchvision": "mean=weights.transforms().mean, std=weights.transforms().std",
    }.get(library, "mean=..., std=...")
