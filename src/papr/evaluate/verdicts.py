"""Is it worth it? What follows from measured times; nothing here measures.

How loader and host share a machine, the two models of `throughput`:

- On a GPU the loader's processes have the CPU to themselves: the slower of the two decides.
- On a CPU both want the same cores: an image costs its loading on one core and its forward pass on
  as many as torch has threads, and no more of that fits into a second than there are cores. Neither
  side can be faster than it is by itself. That is the best that can be had: where threads and
  processes outnumber the cores, threads of one product wait for the one that was interrupted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from papr.compare.modes import PAYS
from papr.compare.speed import Row
from papr.evaluate.loading import Skipped
from papr.words import counted

#: From this share of the dense host's time, the proposal alone eats what pruning saves.
DEAR = 0.25
#: Below so many GMACs a host is small: there is little to save beside any proposal.
SMALL = 3.0


@dataclass(frozen=True)
class Loading:
    """What a sample costs before the host sees it, in one process on one core.

    Attributes:
        decode_ms: read and decode.
        prepare_ms: resize, crop, normalise, hand over to the host's process.
        samples: how many were timed.
        what: of what kind, in words.
        skipped: samples that could not be read.
    """

    decode_ms: float
    prepare_ms: float
    samples: int
    what: str
    skipped: Sequence[Skipped] = ()

    @property
    def ms(self) -> float:
        """Both together."""
        return self.decode_ms + self.prepare_ms


@dataclass(frozen=True)
class Machine:
    """What shares the work.

    Attributes:
        device: "cpu", "cuda" or "mps".
        cores: of the CPU, that this process may use.
        threads: torch's.
        workers: processes that load; 0 where the host's own process does.
    """

    device: str
    cores: int
    threads: int
    workers: int


@dataclass(frozen=True)
class Measured:
    """All that a verdict rests on.

    Attributes:
        tables: of `papr.compare`, one for each mode and batch size: the dense host first.
        proposal_ms: of the proposal alone, per image, one for each table.
        loading: None where it was not measured.
        machine: where.
    """

    tables: Sequence[Sequence[Row]]
    proposal_ms: Sequence[float]
    loading: Loading | None
    machine: Machine

    @property
    def best(self) -> int:
        """The table of the mode and batch size that serve the dense host best."""
        return min(range(len(self.tables)), key=lambda i: self.tables[i][0].ms_per_image[0])


@dataclass(frozen=True)
class BreakEven:
    """The largest keep at which the pruned host is as fast as the dense one.

    End to end it is the same: loading costs both alike.

    Attributes:
        keep: 0 < keep <= 1; None where no keep is, or where none can be told.
        extrapolated: whether it lies outside the keeps measured.
        residual: how far measured times are from the line, at most, as a share of dense time.
        told: False where one cannot tell: outside the keeps measured, when they do not all speak
            for the same; or of one keep alone, through which any line goes.
    """

    keep: float | None
    extrapolated: bool
    residual: float
    told: bool = True


@dataclass(frozen=True)
class Part:
    """Where the time of one image goes, in milliseconds.

    Attributes:
        keep: fraction of patches kept; 1 is the dense host.
        decode: in one of the loader's processes; None where it was not measured.
        prepare: likewise.
        proposal: who looks first, timed alone; no more than the total.
        host: the dense host's time by the share of multiply-accumulates that are left; less where
            the pruned host took less than that.
        rest: what the pruned host took beyond those two, from 0: selecting, gathering, and that
            smaller products do not run as much faster.
        total: the forward pass as measured, the three together.
    """

    keep: float
    decode: float | None
    prepare: float | None
    proposal: float
    host: float
    rest: float
    total: float


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        kind: "good", "unclear", or why not to bother: "unsupported", "small host",
            "proposal too dear", "overhead", "loader-bound".
        text: in words.
        keep: the one recommended, where one is.
        speedup: end to end at that keep; of the host alone where loading was not measured.
    """

    kind: str
    text: str
    keep: float | None = None
    speedup: float | None = None

    @property
    def good(self) -> bool:
        """Whether pruning pays."""
        return self.kind == "good"


def throughput(host_ms: float, loading: Loading | None, machine: Machine) -> float:
    """Images a second from file to answer.

    Args:
        host_ms: of the forward pass, per image.
        loading: of an image in one process; None for nothing to load.
        machine: who shares it.
    """
    if loading is None or not loading.ms:
        return 1000 / host_ms
    if not machine.workers:
        return 1000 / (host_ms + loading.ms)
    processes = min(machine.workers, machine.cores)
    bounds = [1000 / host_ms, 1000 * processes / loading.ms]
    if machine.device == "cpu":
        threads = min(machine.threads, machine.cores)
        bounds.append(1000 * machine.cores / (loading.ms + threads * host_ms))
    return min(bounds)


def end_to_end(row: Row, dense: Row, found: Measured) -> float:
    """Images a second from file to answer at a row's keep.

    Args:
        row: of the dense host's table; it may be the dense one.
        dense: the dense host's.
        found: its loading and its machine.
    """
    # turn by turn, a row's speed-up is steadier than its own median
    host_ms = dense.ms_per_image[0] / row.speedup[0]
    return throughput(host_ms, found.loading, found.machine)


def break_even(table: Sequence[Row]) -> BreakEven:
    """From the straight line through the measured points (keep, time / dense time).

    Time is nearly linear in keep: all but attention's products is (Mahmud et al., ECCV 2024).

    Args:
        table: the dense host first, then at least one pruned row.
    """
    keeps = [row.keep for row in table[1:]]
    times = [1 / row.speedup[0] for row in table[1:]]
    level, slope = _line(keeps, times)
    residual = max(abs(level + slope * k - t) for k, t in zip(keeps, times, strict=True))
    if slope > 0:
        keep = min(1.0, (1 - level) / slope)
        if min(keeps) <= keep <= max(keeps):
            return BreakEven(keep, False, residual)
        faster = keep > max(keeps)
    else:  # noise, or nothing that depends on keep
        faster = max(times) <= 1
        keep = 1.0 if faster else 0.0
    agree = max(times) <= 1 if faster else min(times) > 1
    if not agree or len(keeps) < 2:
        return BreakEven(None, True, residual, told=False)
    return BreakEven(keep if keep > 0 else None, True, residual)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares: (value at 0, slope)."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if not spread:
        return mean_y, 0.0
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    return mean_y - slope * mean_x, slope


def parts(found: Measured) -> list[Part]:
    """Where the time goes in the mode and at the batch size that serve the dense host best."""
    table, proposal = found.tables[found.best], found.proposal_ms[found.best]
    dense, loading = table[0], found.loading
    dense_ms = dense.ms_per_image[0]
    decode = None if loading is None else loading.decode_ms
    prepare = None if loading is None else loading.prepare_ms
    listed = [Part(1.0, decode, prepare, 0.0, dense_ms, 0.0, dense_ms)]
    for row in table[1:]:
        total = dense_ms / row.speedup[0]
        looks = min(proposal, total)
        host = min(dense_ms * row.gmacs_host / dense.gmacs_host, total - looks)
        rest = max(0.0, total - looks - host)
        listed.append(Part(row.keep, decode, prepare, looks, host, rest, total))
    return listed


def judge(found: Measured) -> Verdict:
    """The verdict on a model that papr supports."""
    table = found.tables[found.best]
    dense, pruned = table[0], table[1:]
    if max(row.speedup[2] for row in pruned) < PAYS:
        return _why_not(dense, pruned, found.proposal_ms[found.best])
    faster = [row for row in pruned if row.speedup[1] >= PAYS]
    if not faster:
        return Verdict(
            "unclear",
            "Cannot tell: the turns differ too much. Run it again on a quieter machine, or with "
            "more rounds.",
        )
    before = end_to_end(dense, dense, found)
    gains = {row.keep: end_to_end(row, dense, found) / before for row in faster}
    worth = [row for row in faster if gains[row.keep] >= PAYS]
    if not worth:
        return _loader_bound(dense, faster, found)
    chosen = min(worth, key=lambda row: (abs(row.keep - 0.5), -row.keep))
    gain = gains[chosen.keep]
    alone = f"{chosen.speedup[0]:.2f}x in the host alone"
    text = f"Looks good: keep={chosen.keep:g} gives {gain:.2f}x end to end ({alone})"
    if found.loading is None:
        text = f"Looks good: keep={chosen.keep:g} gives {alone}; loading was not measured"
    text += f" at batch {dense.batch}, {dense.mode}."
    text += " What it costs in answers says papr eval on your data."
    return Verdict("good", text, chosen.keep, gain)


def _why_not(dense: Row, pruned: Sequence[Row], proposal_ms: float) -> Verdict:
    best = max(row.speedup[0] for row in pruned)
    share = proposal_ms / dense.ms_per_image[0]
    reached = f"{best:.2f}x is the most that was reached"
    if share >= DEAR and dense.gmacs_host < SMALL:
        return Verdict(
            "small host",
            f"Do not bother: the host is small. It takes {dense.ms_per_image[0]:.2g} ms and "
            f"{dense.gmacs_host:.2g} GMACs an image, and looking first takes {share:.0%} of that "
            f"time; {reached}. A smaller host saves more than pruning this one.",
        )
    if share >= DEAR:
        return Verdict(
            "proposal too dear",
            f"Do not bother with this proposal: looking first takes {share:.0%} of the dense "
            f"host's time; {reached}. Try a smaller one, or a smaller --proposal-size.",
        )
    return Verdict(
        "overhead",
        f"Do not bother: the work that pruning saves does not come off the clock here; {reached} "
        f"where the arithmetic alone would give {max(row.ideal for row in pruned):.2f}x. Larger "
        "batches, or compiled code (--modes compiled), may change that.",
    )


def _loader_bound(dense: Row, faster: Sequence[Row], found: Measured) -> Verdict:
    assert found.loading is not None
    loading, machine = found.loading, found.machine
    quickest = max(faster, key=lambda row: row.speedup[0])
    gain = end_to_end(quickest, dense, found) / end_to_end(dense, dense, found)
    rate = 1000 * max(1, min(machine.workers, machine.cores)) / loading.ms
    host_ms = dense.ms_per_image[0]
    text = (
        "Do not bother before loading is faster: "
        f"{counted(max(1, machine.workers), 'process')} can load {rate:.0f} images/s, the dense "
        f"host answers {1000 / host_ms:.0f}; pruning makes it {gain:.2f}x end to end at most."
    )
    if machine.device != "cpu":
        wanted = math.ceil(loading.ms / (host_ms / quickest.speedup[0]))
        text += f" keep={quickest.keep:g} could use {wanted} loading processes."
    else:
        text += " On a CPU both share the cores: store smaller pictures, or decode elsewhere."
    return Verdict("loader-bound", text)
