"""What the sites of one pruned host share: configuration, scorers, the selection of this pass."""

import contextlib
import copy
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from papr.config import PruneConfig, Triple
from papr.errors import PaprError, PaprWarning, PrunedModelError, SelectionError
from papr.hosts.explanations import (
    PASSED_BY,
    TRACED_BY_FX,
    is_traced_by_fx,
    missing,
    no_selection,
)
from papr.hosts.grids import Grid
from papr.hosts.passes import Notes, Passes, Record, Stage, is_recomputing
from papr.hosts.presence import Presence
from papr.hosts.ways import Way, walked
from papr.later import Step
from papr.motion import mix, motion_map
from papr.proposals import Proposal
from papr.proposals.reuse import ReusingScorer
from papr.proposals.scorers import Scorer, floating_weight
from papr.selecting import BudgetedSelection, Selection, flat_rows, kept_count, top_indices
from papr.significance import check_scores, describe, to_grid


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
        tubelet: how many frames a patch of a video host spans; 0 for image hosts.
    """

    prefix_tokens: int = 0
    class_token: bool = False
    channels: int = 3
    mean: Triple | None = None
    std: Triple | None = None
    pyramid: Callable[[Grid], tuple[Grid, ...]] | None = None
    stages: int = 0
    tubelet: int = 0


class HostState:
    """Shared by the sites of one host, outside its module tree."""

    def __init__(
        self,
        config: PruneConfig,
        proposal: Proposal,
        facts: HostFacts,
        steps: dict[int, Step] | None = None,
    ) -> None:
        self.config = config
        self.proposal = proposal
        self.facts = facts
        self.steps = steps or {}  # what blocks do later, by their numbers
        self.presence = Presence()
        self.scorer: Scorer | None = None
        self._forget()

    def _forget(self) -> None:
        # as text, which compiled code takes for a constant: a float that changed once would become
        # symbolic there, and with it the number of kept patches
        self._keep = repr(self.config.keep)
        self._scorers: dict[tuple[torch.device, torch.dtype], Scorer] = {}
        self.passes = Passes()
        self._warned = False  # that a pass went by all cuts
        self._local = threading.local()  # of budgets: what a group was given, and what was kept

    @property
    def ranked(self) -> bool:
        """Whether kept tokens stand by falling score, as in the reference: merging depends on it.

        Elsewhere they stand in raster order.
        """
        return self.config.reference and self.config.merge is not None and not self.dense

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
        weight = floating_weight(module)
        if weight is not None:
            self.scorer = self._scorer_on(weight.device, weight.dtype)

    def _scorer_on(self, device: torch.device, dtype: torch.dtype) -> Scorer:
        if (device, dtype) not in self._scorers:
            config, facts = self.config, self.facts
            scorer = self.proposal.scorer(
                device,
                dtype,
                config.proposal_size,
                facts.mean,
                facts.std,
                config.reference,
                facts.tubelet,
                config.score,
            )
            if config.reuse > 1:
                scorer = ReusingScorer(scorer, config.reuse, config.reuse_threshold)
            self._scorers[device, dtype] = scorer
        return self._scorers[device, dtype]

    def look(self, pixels: Tensor, grid: tuple[int, ...], entry: nn.Module) -> None:
        """Decide what this forward pass keeps.

        Args:
            pixels: what the host was given, cut or padded to the area that the patches cover:
                (B, C, H, W), or (B, C, T, H, W) of a video host.
            grid: the host's patch grid for these pixels.
            entry: the module the pixels came in at.
        """
        self.check_sites()
        self._warn_of_the_last()
        if self.dense:
            self.passes.put(tuple(_everything(pixels, g) for g in self._grids(grid)))
            if not self.steps:
                self.passes.finish()  # there is no cut that would
            return
        raw = self._given_scores() if self.config.share else self.raw_scores(pixels, entry)
        if self.config.score == "motion":
            with torch.no_grad():
                change = motion_map(pixels, grid)
                raw = mix(to_grid(raw, grid), change, self.config.motion_weight)
            check_scores(raw)
        grids = enumerate(self._grids(grid))
        self.passes.put(tuple(self._rank(raw, g) if self.prunes(i) else None for i, g in grids))

    def check_sites(self) -> None:
        """Raise PrunedModelError where nothing would act on a selection, at one site or more."""
        gone = self._gone()
        if gone:
            raise PrunedModelError(gone)

    def _gone(self) -> str | None:
        """What to say where a site is missing, and nothing would be pruned there."""
        path = self.presence.missing()
        return None if path is None else missing(path)

    # as torch.compiler.assume_constant_result, which would load the compiler: it looks once, while
    # the graph is made; where a module is replaced later, the guards make it anew
    _gone._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _warn_of_the_last(self) -> None:
        """Say once that the pass before came by no cut, whose end is not known by itself."""
        if self.passes.went_by() and not self._warned:
            self._warned = True
            warnings.warn(PASSED_BY, PaprWarning, stacklevel=2)

    def check_taken(self, stage: int = 0) -> None:
        """Raise PrunedModelError where the pass under way has come by the cuts of a stage."""
        if torch.compiler.is_compiling():
            return
        record = self.passes.under_way()
        part = record[stage] if record else None
        if part is not None and not self.passes.is_taken(part):
            raise PrunedModelError(PASSED_BY)

    def raw_scores(self, pixels: Tensor, entry: nn.Module) -> Tensor:
        """What the proposal finds in pixels, (B, h, w), checked; arguments as of `look`."""
        if torch.compiler.is_compiling():
            scorer = self.scorer
        else:  # a replica of DataParallel, or weights assigned from elsewhere, may have moved
            weight = floating_weight(entry)
            scorer = self._scorer_on(pixels.device, (pixels if weight is None else weight).dtype)
        assert scorer is not None
        raw: Tensor = scorer(pixels)
        check_scores(raw)
        return raw

    @property
    def given(self) -> tuple[Tensor, int] | None:
        """Of budgets: the scores and the count of the group that this thread runs; else None."""
        return getattr(self._local, "given", None)

    @contextlib.contextmanager
    def giving(self, raw: Tensor, count: int) -> Iterator[None]:
        """Run one group: its scores (B, h, w) and how many patches each of its images keeps."""
        self._local.given = (raw, count)
        try:
            yield
        finally:
            self._local.given = None

    def _given_scores(self) -> Tensor:
        if self.given is None:
            raise PrunedModelError(
                "expected a call of the whole model, which gives each image its budget, got one "
                "of a part: papr.prune with a fixed keep for that"
            )
        return self.given[0]

    def keep_groups(self, selection: BudgetedSelection) -> None:
        """What the last pass of this thread kept, over all groups."""
        self._local.groups = selection

    def _grids(self, grid: Grid) -> tuple[Grid, ...]:
        return (grid,) if self.facts.pyramid is None else self.facts.pyramid(grid)

    def prunes(self, stage: int) -> bool:
        """Whether a stage of a hierarchical host is pruned (the only one of others always is)."""
        return self.config.stages is None or stage in self.config.stages

    @property
    def last_stage(self) -> int:
        """The last stage that is pruned."""
        return max(self.config.stages) if self.config.stages else self.facts.stages - 1

    def _rank(self, raw: Tensor, grid: Grid) -> Stage:
        scores = to_grid(raw, grid)
        reference = self.config.reference
        counted = reference and self.facts.class_token
        given = self.given if self.config.share else None
        count = (
            given[1]
            if given
            else kept_count(float(self._keep), math.prod(grid), counted, reference)
        )
        asked = self.config.trace or self.ranked
        indices = top_indices(scores, count)
        notes: Notes = {}
        if self.facts.pyramid is not None:
            # once for all blocks; what only some need, `StageSite._shared` adds
            notes = {"rows": flat_rows(indices, math.prod(grid)), "shared": {}}
        return indices, scores if asked else None, grid, notes

    def take(self, again: bool = False, stage: int = 0) -> Selection:
        """The selection of the forward pass that is under way, for a site to act on.

        Args:
            again: another site of the same pass will ask too; the last one calls
                `passes.finish`.
            stage: of a hierarchical host, which stage's.

        Raises:
            SelectionError: tokens came to a cut in a pass whose pixels never passed the entry, or
                in a checkpoint that does not say which pass it runs again.
        """
        indices, scores, grid, _ = self.part(stage)
        if not again and not self.steps:
            self.passes.finish()
        return Selection(indices, grid, scores)

    def part(self, stage: int) -> Stage:
        """What the pass under way keeps in a stage, which counts as taken; raises as `take`."""
        record = self.passes.under_way()
        part = record[stage] if record else None
        if part is None:
            raise self._why(record)
        self.passes.take(part)
        return part

    def placed(self, places: Tensor, tokens: int) -> None:
        """At the cut patches went elsewhere than to their places among the kept ones.

        Args:
            places: which patch token each patch is in, (B, N) int64, -1 where it was dropped.
            tokens: how many of these there are.
        """
        self._note(placed=places, tokens=tokens)
        if not self.steps:
            self.passes.finish()

    def end(self, way: Way | None, tokens: int) -> None:
        """The last block that reduces is through.

        Args:
            way: what happened to the patch tokens that came to the first.
            tokens: how many of these there are.
        """
        if self._note(way=way, tokens=tokens):
            self.passes.finish()

    def hand_on(self, step: Step, known: tuple[Tensor | None, Way | None]) -> None:
        """A block that reduces is through; what the next one must know beside the tokens."""
        record = self._noted()
        record["now"] = known
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            # a block that a checkpoint runs again finds what it met the first time
            record[step.block + 1] = known

    def met(self, step: Step) -> tuple[Tensor | None, Way | None]:
        """What the block before handed on."""
        record = self._noted()
        again = not torch.compiler.is_compiling() and is_recomputing()
        known: tuple[Tensor | None, Way | None] = record[step.block if again else "now"]
        return known

    def _noted(self) -> Notes:
        record = self.passes.under_way()
        if not record or record[0] is None:
            raise self._why(record)
        return record[0][3]

    def _why(self, record: Record | None) -> PaprError:
        """What to raise where a site found no selection."""
        if is_traced_by_fx():
            return PrunedModelError(TRACED_BY_FX)
        gone = None if is_recomputing() else self._gone()
        return PrunedModelError(gone) if gone else SelectionError(no_selection(record))

    def _note(self, **notes: Any) -> bool:
        """Whether there is a pass to note it in: a checkpoint of a block runs outside of any."""
        record = self.passes.under_way()
        if not record or record[0] is None:
            return False
        record[0][3].update(notes)
        return True

    def last(self, stage: int | None = None) -> Selection | BudgetedSelection:
        """The selection of the last forward pass, of this thread where it ran eagerly.

        Args:
            stage: of a hierarchical host; None for the first stage that is pruned.

        Raises:
            SelectionError: there was none, tracing is off, the last pass was an export, or the
                stage is not pruned.
        """
        if not self.config.trace:
            raise SelectionError("expected trace=True to keep selections, got trace=False")
        groups: BudgetedSelection | None = getattr(self._local, "groups", None)
        if groups is not None:
            return groups
        record = self.passes.last()
        if record is None:
            raise SelectionError("expected a forward pass before its selection, got none yet")
        chosen = as_selection(record, stage, sources=self.facts.pyramid is None)
        part = next(filter(None, record)) if stage is None else record[stage]
        if part is not None and not self.passes.is_taken(part):
            raise SelectionError(PASSED_BY)
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        names = ("config", "proposal", "facts", "steps", "presence")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, scorer=None)
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "HostState":
        """One of its own for a copy of the host; the same one where only a part is copied."""
        presence = self.presence.copied(memo)
        if presence is None:
            return self
        copied = memo[id(self)] = HostState.__new__(HostState)
        state = {**self.__getstate__(), "presence": None}
        copied.__setstate__({**copy.deepcopy(state, memo), "presence": presence})
        for site in self.presence.copied_before(memo):
            if site._papr is self:  # copied as a part before the host was
                site._papr = copied
        for (device, dtype), scorer in self._scorers.items():
            if scorer is self.scorer:  # under a parametrization no entry of the copy would settle
                copied.scorer = copied._scorer_on(device, dtype)
        return copied


def as_selection(record: Record, stage: int | None = None, sources: bool = False) -> Selection:
    """What a pass kept in one stage; None for the first stage that is pruned.

    Args:
        record: of the pass.
        stage: of a hierarchical host.
        sources: also in which token each patch ended, of hosts whose tokens are dropped.
    """
    pruned = [i for i, part in enumerate(record) if part is not None]
    if stage is not None and stage not in pruned:
        raise SelectionError(f"expected a stage among {pruned}, got {stage!r}")
    part = record[pruned[0] if stage is None else stage]
    assert part is not None
    indices, scores, grid, notes = part
    if type(indices) is not Tensor:
        raise SelectionError(
            "expected a forward pass before its selection, got one that was only traced "
            f"({describe(indices)})"
        )
    chosen = Selection(indices, grid, scores)
    return _with_sources(chosen, notes) if sources else chosen


def _with_sources(chosen: Selection, notes: Notes) -> Selection:
    """The selection, and in which of the host's last patch tokens each patch ended."""
    sources = notes.get("placed")
    sources = chosen.places() if sources is None else sources
    sources = walked(sources, notes.get("way"))
    return replace(chosen, sources=sources, tokens=notes.get("tokens"))


def _everything(pixels: Tensor, grid: Grid) -> Stage:
    indices = torch.arange(math.prod(grid), device=pixels.device)
    return indices.expand(pixels.shape[0], -1), None, grid, {"taken": True}
