"""How hosts are run when they are timed, on how many images a call, and from how many it pays."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from papr.errors import ConfigError
from papr.hosts.inputs import pixel_shape
from papr.names import MODES

if TYPE_CHECKING:
    from papr.compare.speed import Row

#: Where launches cost what arithmetic saves, graphs are what small batches need.
_USUAL = {"cuda": ("eager", "graphs")}
#: Images a call, by device.
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128), "mps": (1, 16)}
#: Likewise clips.
CLIP_BATCHES = {"cpu": (1, 2), "cuda": (1, 8), "mps": (1, 2)}
#: The least speed-up that is worth the patches it costs.
PAYS = 1.05


def check_mode(name: str) -> str:
    """A way to run a host; ConfigError on another."""
    if name not in MODES:
        raise ConfigError(f"expected a mode among {', '.join(MODES)}, got {name!r}")
    return name


def usual_modes(device: torch.device) -> tuple[str, ...]:
    """What is timed on a device where nobody says."""
    return _USUAL.get(device.type, ("eager",))


def usual_batches(host: nn.Module) -> Sequence[int]:
    """Batch sizes that suit a host's device."""
    listed = CLIP_BATCHES if len(pixel_shape(host)) == 4 else BATCHES
    return listed.get(next(host.parameters()).device.type, listed["cuda"])


def run_in(mode: str, module: nn.Module) -> Callable[..., Any]:
    """A module as it is called in a mode.

    In "graphs" what it launches on a GPU is recorded by an early call and replayed by later ones,
    so that a call costs one launch; what a call answered is overwritten by the next. On a CPU there
    is nothing to record, and it is the same as "compiled".

    Args:
        mode: among `MODES`.
        module: a host or a proposal, dense or pruned.
    """
    if check_mode(mode) == "eager":
        return module
    how = "reduce-overhead" if mode == "graphs" else None
    compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, mode=how)
    return compiled


def over_batches(
    batches: Sequence[int],
    draw: Callable[[int], Tensor],
    measure: Callable[[Tensor], Any],
) -> Iterator[Any]:
    """What is measured on each batch, the smallest first, until one does not fit into memory.

    Args:
        batches: how many images or clips a call.
        draw: so many of them.
        measure: one batch.

    Raises:
        torch.OutOfMemoryError: not even the smallest fits.
    """
    for number, batch in enumerate(sorted(batches)):
        try:
            found = measure(draw(batch))
        except torch.OutOfMemoryError:
            if not number:
                raise
            return
        yield found


@dataclass(frozen=True)
class Paying:
    """From which batch size on pruning pays.

    Attributes:
        keep: fraction of patches kept.
        mode: how hosts ran.
        dtype: of weights and pixels.
        batch: the smallest measured batch from which on every measured one is faster than dense by
            `PAYS` at its lower quartile; None where the largest is not.
        batches: those that were measured, ascending.
    """

    keep: float
    mode: str
    dtype: str
    batch: int | None
    batches: tuple[int, ...]

    def __str__(self) -> str:
        which = f"keep {self.keep:g}, {self.mode}, {self.dtype}"
        if self.batch is None:
            return f"{which}: at no batch up to {self.batches[-1]}"
        if self.batch == self.batches[0]:
            return f"{which}: from batch {self.batch}, the smallest measured"
        return f"{which}: from batch {self.batch}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def pays_from(tables: "Sequence[Sequence[Row]]") -> list[Paying]:
    """From which batch on each keep pays, in each mode and dtype.

    Args:
        tables: of `papr.compare`: one for each mode, dtype and batch.
    """
    groups: dict[tuple[float, str, str], dict[int, bool]] = {}
    for row in (row for table in tables for row in table if row.keep < 1):
        pays = groups.setdefault((row.keep, row.mode, row.dtype), {})
        pays[row.batch] = row.speedup[1] >= PAYS
    return [
        Paying(*which, batch=_first_of_the_last(pays), batches=tuple(sorted(pays)))
        for which, pays in groups.items()
    ]


def _first_of_the_last(pays: dict[int, bool]) -> int | None:
    """The smallest batch from which on all pay."""
    found = None
    for batch in sorted(pays, reverse=True):
        if not pays[batch]:
            break
        found = batch
    return found
