"""Several processes on one run, as `torchrun` starts them: who has which part of the work."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from papr.errors import PaprError, one_line

_T = TypeVar("_T")
_PATIENCE = timedelta(days=30)  # the slowest may be hours behind; a dead one ends all by torchrun


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on this machine, which is its GPU's.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.rank == 0

    def share(self, work: Sequence[_T]) -> list[_T]:
        """Every world-th piece of work: no piece twice, none padded."""
        return list(work[self.rank :: self.world])

    def agree(self, value: Any) -> Any:
        """What the first process has, plain data, for all; the others wait for it."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, plain data, by rank, for all."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def first_does(self, work: Callable[[], _T]) -> _T:
        """What `work` returns in the first process, for all; what it raises there, all raise.

        Otherwise the others would wait for one that is gone, and end in errors of the network's.
        """
        value: Any = None
        if self.first:
            try:
                value = work()
            except Exception as error:
                ours = error if isinstance(error, PaprError) else PaprError(one_line(error))
                self.agree((None, ours))
                raise
        value, theirs = self.agree((value, None))
        if theirs is not None:
            raise theirs
        result: _T = value
        return result

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that `torchrun` started; this one alone where it did not.

    They agree over gloo, on the CPU: no tensor of a host travels between them.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        if ours:
            dist.destroy_process_group()
