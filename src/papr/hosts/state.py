"""What the sites of one pruned host share: configuration, scorers, the selection of this pass."""

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from papr.config import PruneConfig, Triple
from papr.errors import PaprWarning, SelectionError
from papr.hosts.grids import Grid
from papr.proposals import Proposal
from papr.proposals.scorers import Scorer
from papr.selecting import Selection, kept_count, top_indices
from papr.significance import check_scores, describe, to_grid

_Stage = tuple[Tensor, Tensor | None, Grid]  # indices, scores, grid
_Record = tuple[_Stage | None, ...]  # of one pass, by stage; None where a stage is left dense


@dataclass(frozen=True)
class HostFacts:
    """What pruning must know of a host beyond where it is cut.

    Attributes:
        prefix_tokens: leading tokens at the cut that are never ranked and never dropped.
        class_token: whether the host has one; reference mode counts it.
        mean: what the host's pixels were normalised with, for pixels in [0, 1]; None if unknown.
        std: likewise.
        channels: how many channels the host's pixels have.
        pyramid: of a hierarchical host, the patch grid of the first stage to the grids of all;
            a function that pickles. None where there is one grid.
        stages: how many stages a hierarchical host has, 0 for others.
    """

    prefix_tokens: int
    class_token: bool
    channels: int = 3
    mean: Triple | None = None
    std: Triple | None = None
    pyramid: Callable[[Grid], tuple[Grid, ...]] | None = None
    stages: int = 0


class HostState:
    """Shared by the sites of one host, outside its module tree.

    The selection travels from the entry to the cut of the same forward pass: through a
    thread-local in eager mode, so that two threads on one model do not see each other's, and
    through a plain attribute in compiled code, where the whole pass is one graph and the
    attribute never outlives the trace. A block that gradient checkpointing runs again in the
    backward pass, perhaps in another thread, finds it with its input (`carry`).
    """

    def __init__(self, config: PruneConfig, proposal: Proposal, facts: HostFacts) -> None:
        self.config = config
        self.proposal = proposal
        self.facts = facts
        self.scorer: Scorer | None = None
        self._forget()

    def _forget(self) -> None:
        # as text, which compiled code takes for a constant: a float that changed once would become
        # symbolic there, and with it the number of kept patches
        self._keep = repr(self.config.keep)
        self._scorers: dict[tuple[torch.device, torch.dtype], Scorer] = {}
        self._local = threading.local()
        self._passing: _Record | None = None  # of a compiled pass, from its entry to its last cut
        self._finished: _Record | None = None  # of the last compiled pass

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned (keep = 1): no proposal runs, no token is touched."""
        return self._keep == "1.0"

    def settle(self, module: nn.Module) -> None:
        """Make the scorer ready for the device and dtype the host's entry module is on.

        Called when the host is pruned and whenever it moves, so that compiled code finds it done.
        """
        if self.dense:
            return
        weight = _weight(module)
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
        if self.dense:
            self._put(tuple(_everything(pixels, g) for g in self._grids(grid)))
            self.finish()  # there is no cut that would
            return
        if torch.compiler.is_compiling():
            scorer = self.scorer
        else:  # a replica of DataParallel, or weights assigned from elsewhere, may have moved
            weight = _weight(entry)
            scorer = self._scorer_on(pixels.device, (pixels if weight is None else weight).dtype)
        assert scorer is not None
        raw = scorer(pixels)
        check_scores(raw)
        grids = enumerate(self._grids(grid))
        self._put(tuple(self._rank(raw, g) if self.prunes(i) else None for i, g in grids))

    def _grids(self, grid: Grid) -> tuple[Grid, ...]:
        return (grid,) if self.facts.pyramid is None else self.facts.pyramid(grid)

    def prunes(self, stage: int) -> bool:
        """Whether a stage of a hierarchical host is pruned (the only one of others always is)."""
        return self.config.stages is None or stage in self.config.stages

    def _rank(self, raw: Tensor, grid: Grid) -> _Stage:
        scores = to_grid(raw, grid)
        counted = self.config.reference and self.facts.class_token
        count = kept_count(float(self._keep), math.prod(grid), counted)
        return top_indices(scores, count), scores if self.config.trace else None, grid

    def take(self, again: bool = False, stage: int = 0) -> Selection:
        """The selection of the forward pass that is under way, for a site to act on.

        Args:
            again: another site of the same pass will ask too; the last one calls `finish`.
            stage: of a hierarchical host, which stage's.

        Raises:
            SelectionError: tokens came to a cut in a pass whose pixels never passed the entry.
        """
        record = self._under_way()
        part = None if record is None else record[stage]
        if part is None:
            raise SelectionError(
                "expected pixels to enter the host before its tokens are cut, got tokens only: "
                "call the whole model, or papr.unprune it first"
            )
        if not again:
            self.finish()
        indices, scores, grid = part
        return Selection(indices, grid, scores)

    def finish(self) -> None:
        """No site of this pass will ask again: what it took must not serve another pass."""
        if not self._is_compiled():
            self._local.pending = False
        elif self._passing is not None:
            self._passing, self._finished = None, self._passing

    def _under_way(self) -> _Record | None:
        if self._is_compiled():
            return self._passing
        task, record = getattr(self._local, "recomputed", (_NO_BACKWARD, None))
        if task == _backward_task() != _NO_BACKWARD:
            return record
        return getattr(self._local, "record", None)

    def _is_compiled(self) -> bool:
        """Whether the pass under way came in through compiled code, whatever runs now."""
        if torch.compiler.is_compiling():
            return True
        return _backward_task() == _NO_BACKWARD and not getattr(self._local, "pending", False)

    def carry(self, tokens: Tensor) -> None:
        """Let the selection travel with a block's input, for a checkpoint of that block.

        In the backward pass that runs the block again, which may be another thread's and come
        after other forward passes, the input brings the selection back.

        Raises:
            SelectionError: a reentrant checkpoint, which gives the block another input.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        task = _backward_task()
        if task == _NO_BACKWARD:
            tokens._papr_carried = (self, self._under_way())  # type: ignore[attr-defined]
            return
        owner, record = getattr(tokens, "_papr_carried", (None, None))
        if owner is self:
            self._local.recomputed = (task, record)
        elif getattr(self._local, "recomputed", (_NO_BACKWARD, None))[0] != task:
            raise SelectionError(
                "expected a checkpoint with use_reentrant=False around a block of a pruned host, "
                "got one that loses the block's input"
            )

    def last(self, stage: int | None = None) -> Selection:
        """The selection of the last forward pass, of this thread where it ran eagerly.

        Args:
            stage: of a hierarchical host; None for the first stage that is pruned.

        Raises:
            SelectionError: there was none, tracing is off, the last pass was an export, or the
                stage is not pruned.
        """
        if not self.config.trace:
            raise SelectionError("expected trace=True to keep selections, got trace=False")
        local = self._local
        compiled = self._finished
        eager_came_last = compiled is None or compiled is getattr(local, "seen", None)
        record: _Record | None = getattr(local, "record", None) if eager_came_last else compiled
        if record is None:
            raise SelectionError("expected a forward pass before its selection, got none yet")
        pruned = [i for i, part in enumerate(record) if part is not None]
        if stage is not None and stage not in pruned:
            raise SelectionError(f"expected a stage among {pruned}, got {stage!r}")
        part = record[pruned[0] if stage is None else stage]
        assert part is not None
        indices, scores, grid = part
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
        task = _backward_task()
        if task != _NO_BACKWARD:  # the whole model was checkpointed and runs again
            local.recomputed = (task, record)
            return
        local.record, local.pending = record, True
        local.seen = self._finished  # a compiled pass that comes later leaves another object there

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "proposal": self.proposal, "facts": self.facts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, scorer=None)
        self._forget()


_NO_BACKWARD = -1


def _backward_task() -> int:
    """Which backward pass this thread is in, -1 outside; what PyTorch's checkpoints go by too."""
    return torch._C._current_graph_task_id()


def _weight(module: nn.Module) -> Tensor | None:
    """The weight that tells a module's device and dtype."""
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def _everything(pixels: Tensor, grid: Grid) -> _Stage:
    indices = torch.arange(math.prod(grid), device=pixels.device)
    return indices.expand(pixels.shape[0], -1), None, grid


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
