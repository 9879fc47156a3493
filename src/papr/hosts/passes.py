"""How the selection gets from a host's entry to the sites of the same forward pass.

Eager code passes it in a thread-local, so that two threads on one model do not see each other's.
Compiled code knows no thread-locals and reads the newest pass's from a plain attribute: where a
whole pass is one graph, the attribute never outlives the trace; where parts of a host are compiled
on their own, eager code leaves it there for them. A block that gradient checkpointing runs again in
the backward pass, perhaps in another thread and after other forward passes, finds it by its input.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from papr.hosts.grids import Grid

#: What became of the tokens later in the pass; see `HostState.placed` and `HostState.end`. Of a
#: stage what its blocks need; see `StageSite`.
Notes = dict[str | int, Any]
#: Indices, scores, grid, and notes.
Stage = tuple[Tensor, Tensor | None, Grid, Notes]
Record = tuple[Stage | None, ...]  # of one pass, by stage; None where a stage is left dense

_NO_BACKWARD = -1
_CONFLICT: Record = ()  # two passes at once: compiled code could not tell which it is in


class Carried:
    """Records by the memory of tensors, for as long as that lives.

    Not by the tensors: a checkpoint within a checkpoint brings its input back as another tensor on
    the same memory. And not as an attribute of theirs, which would be saved with them.
    """

    def __init__(self) -> None:
        self._records: dict[int, tuple[StorageWeakRef, Record]] = {}
        self._room = 64

    def put(self, tokens: Tensor, record: Record) -> None:
        """Remember a record; forgets those whose memory is gone."""
        ref = _memory(tokens)
        if ref is None:
            return
        self._records[ref.cdata] = (ref, record)
        if len(self._records) > self._room:
            self._records = {k: v for k, v in self._records.items() if not v[0].expired()}
            self._room = max(64, 2 * len(self._records))

    def get(self, tokens: Tensor) -> Record | None:
        """What was put with these tokens, or with others on their memory."""
        ref = _memory(tokens)
        known = None if ref is None else self._records.get(ref.cdata)
        return None if known is None or known[0].expired() else known[1]


def _memory(tokens: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tokens.untyped_storage())
    except (NotImplementedError, RuntimeError):  # torch.func's wrappers have none
        return None


class Passes:
    """The passes of one host, each from its entry to its last site."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._carried = Carried()
        self._open: set[int] = set()  # threads in an eager pass
        self._passing: Record | None = None  # the newest pass that has not ended
        self._compiled = False  # whether compiled code put it there
        self._ended = False  # whether compiled code has ended a pass that eager code began
        self._finished: Record | None = None  # of the last compiled pass
        self._touched = False  # whether compiled code took what eager code put

    def put(self, record: Record) -> None:
        """A pass begins: what its sites shall take."""
        if torch.compiler.is_compiling():
            self._passing, self._compiled = record, True
            return
        local, task, me = self._local, backward_task(), threading.get_ident()
        for seen in getattr(local, "watchers", ()):
            seen.append(record)
        for part in record:
            if part is not None:
                part[3].setdefault("taken", False)
        self._touched = False
        if self._compiled and self._passing is not None:
            self._finished = self._passing  # it ended without passing its last site
        self._open.add(me)
        self._passing, self._compiled = self._unless_shared(record), False
        self._ended = False
        if task != _NO_BACKWARD:  # the whole model was checkpointed and runs again
            local.again = (task, record)
            return
        local.record, local.pending = record, True
        local.seen = self._finished  # a compiled pass that comes later leaves another object there

    def _unless_shared(self, record: Record) -> Record:
        if len(self._open) > 1:
            self._open &= {thread.ident for thread in threading.enumerate() if thread.ident}
        return record if len(self._open) == 1 else _CONFLICT

    def under_way(self) -> Record | None:
        """What the pass put that the caller is in; None outside of any that is known."""
        if torch.compiler.is_compiling():
            return self._passing
        local, task = self._local, backward_task()
        if task != _NO_BACKWARD:
            known, record = getattr(local, "again", (_NO_BACKWARD, None))
            return record if known == task else None
        if getattr(local, "pending", False) and not self._ended:
            if self._compiled and self._passing is not None:
                return _CONFLICT  # compiled code began another one since
            return local.record  # type: ignore[no-any-return]
        return self._passing if self._compiled else None  # compiled code broke off in between

    def take(self, part: Stage) -> None:
        """A site acts on this part of a record."""
        if torch.compiler.is_compiling():
            self._touched = True  # not in the notes, whose every change would be compiled for
        else:
            part[3]["taken"] = True

    def is_taken(self, part: Stage) -> bool:
        """Whether a site acted on it, as far as eager code put it and can know."""
        return self._touched or part[3].get("taken", True)

    def went_by(self) -> bool:
        """Whether this thread's eager pass that has not ended was acted on nowhere."""
        if torch.compiler.is_compiling() or is_recomputing():
            return False
        record = self._local.record if getattr(self._local, "pending", False) else ()
        parts = [part for part in record if part is not None]
        return bool(parts) and not any(self.is_taken(part) for part in parts)

    def finish(self) -> None:
        """No site of this pass will ask again: what it took must not serve another pass."""
        if torch.compiler.is_compiling():
            self._end_compiled()
            return
        local = self._local
        self._open.discard(threading.get_ident())
        if backward_task() != _NO_BACKWARD:
            local.again = (_NO_BACKWARD, None)
        elif getattr(local, "pending", False):
            local.pending = False
        elif self._compiled:
            self._end_compiled()
            return
        if self._passing is getattr(local, "record", None):
            self._passing = None

    def _end_compiled(self) -> None:
        if self._compiled and self._passing is not None:
            self._finished = self._passing
        elif not self._compiled:
            self._ended = True
        self._passing = None

    def last(self) -> Record | None:
        """Of the last pass: this thread's where that ran eagerly, else the last compiled one's."""
        local = self._local
        compiled = self._finished
        if self._compiled and self._passing is not None:
            compiled = self._passing
        if compiled is not None and compiled is not getattr(local, "seen", None):
            return compiled
        return getattr(local, "record", None)

    def enter(self, tokens: Tensor) -> object:
        """A block begins: its input brings the selection back where the block runs again.

        For eager code with gradients only.

        Returns:
            What `leave` is to be given when the block has ended.
        """
        task = backward_task()
        record = self.under_way()
        if task == _NO_BACKWARD:
            if record is not None:
                self._carried.put(tokens, record)
            return None
        before = getattr(self._local, "again", (_NO_BACKWARD, None))
        brought = self._carried.get(tokens)
        if brought is not None:
            self._local.again = (task, brought)
        elif record is not None:  # within something bigger that runs again
            self._carried.put(tokens, record)
        return before

    def carry(self, tokens: Tensor) -> None:
        """What a block answers is the next block's input, and brings the selection there."""
        record = self.under_way()
        if record is not None:
            self._carried.put(tokens, record)

    def leave(self, before: object) -> None:
        """A block ends: what was under way before it is so again."""
        if before is not None:
            self._local.again = before

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Record]]:
        """The records that this thread's eager passes put within."""
        local = self._local
        seen: list[Record] = []
        local.watchers = (*getattr(local, "watchers", ()), seen)
        try:
            yield seen
        finally:
            local.watchers = tuple(w for w in local.watchers if w is not seen)


def backward_task() -> int:
    """Which backward pass this thread is in, -1 outside; what PyTorch's checkpoints go by too."""
    return torch._C._current_graph_task_id()


def is_recomputing() -> bool:
    """Whether this thread is in a backward pass."""
    return not torch.compiler.is_compiling() and backward_task() != _NO_BACKWARD
