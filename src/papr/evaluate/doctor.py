"""Measure a host, its proposal and its loader on this machine, and say whether pruning pays."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from papr.ambient import neutral
from papr.compare import Row, compare
from papr.compare.modes import over_batches, pays_from, run_in, usual_batches, usual_modes
from papr.compare.speed import WARMUP
from papr.config import DEFAULT_PROPOSAL, ProposalSize, Triple
from papr.environment import environment
from papr.errors import ConfigError, PaprError
from papr.evaluate.loading import Prepare, Skipped, usable_cores, usual_workers
from papr.evaluate.preparing import ImageFile, open_for, prepare_for
from papr.evaluate.sharing import share, to_bytes
from papr.evaluate.sources import DataError, Item, Source, item_or_fault, take
from papr.evaluate.verdicts import (
    BreakEven,
    Loading,
    Machine,
    Measured,
    Part,
    Verdict,
    break_even,
    end_to_end,
    judge,
    parts,
)
from papr.graft import states
from papr.hosts.inputs import pixel_shape
from papr.images import load_image
from papr.measure import interleave, quartiles
from papr.pruning import Support, prune, supported, unprune
from papr.twins import twin
from papr.words import counted
from papr.wrappers import unwrap

KEEPS = (0.7, 0.5, 0.3)
#: The JPEG that stands for the user's photographs where there are none: ImageNet's usual size.
STAND_IN = (500, 375)
_PASSES = 3


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        support: whether papr can prune the model, and why not.
        verdict: what to do.
        measured: None where papr cannot prune it.
        hindrances: what commonly spoils speed and is so here.
        environment: versions and device.
    """

    support: Support
    verdict: Verdict
    measured: Measured | None
    hindrances: list[str]
    environment: dict[str, Any]

    @property
    def break_even(self) -> BreakEven | None:
        """In the mode and at the batch size that serve the dense host best."""
        found = self.measured
        return None if found is None else break_even(found.tables[found.best])

    @property
    def parts(self) -> list[Part]:
        """Where the time goes, keep by keep, the dense host first."""
        return [] if self.measured is None else parts(self.measured)

    @property
    def end_to_end(self) -> dict[float, float]:
        """Keep -> images or clips a second to be expected with loading; the dense host's at 1."""
        if self.measured is None:
            return {}
        table = self.measured.tables[self.measured.best]
        return {row.keep: end_to_end(row, table[0], self.measured) for row in table}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        found = self.measured
        return {
            "support": asdict(self.support),
            "verdict": asdict(self.verdict),
            "break_even": self.break_even and asdict(self.break_even),
            "end_to_end": {f"{keep:g}": rate for keep, rate in self.end_to_end.items()},
            "parts": [asdict(part) for part in self.parts],
            "pays_from": [] if found is None else [p.to_dict() for p in pays_from(found.tables)],
            "rows": [] if found is None else [r.to_dict() for table in found.tables for r in table],
            "proposal_ms": None if found is None else list(found.proposal_ms),
            "loading": found and found.loading and _loading(found.loading),
            "machine": found and asdict(found.machine),
            "hindrances": self.hindrances,
            "environment": self.environment,
        }


def _loading(found: Loading) -> dict[str, Any]:
    return asdict(found) | {"skipped": [sample._asdict() for sample in found.skipped]}


def diagnose(
    host: nn.Module,
    data: Source | str | Path | None = None,
    *,
    name: str = "",
    keeps: Sequence[float] = KEEPS,
    batches: Sequence[int] | None = None,
    modes: Sequence[str] | None = None,
    rounds: int = 5,
    workers: int | None = None,
    samples: int = 64,
    proposal: Any = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    each_turn: Callable[[], object] | None = None,
) -> Diagnosis:
    """Measure this model on this machine and judge whether pruning pays.

    Dense and pruned hosts take turns, in each mode and at each batch size that fits into memory,
    then the dense host and the proposal alone; at last samples are decoded and prepared one by one
    in this process, as each of the loader's processes does.

    Args:
        host: on its device, in its dtype; left as it is, and measured in eval mode.
        data: a source, or what `papr.evaluate.open_source` takes; None for a picture of `STAND_IN`
            pixels, and for a video host for no loading.
        name: what the host was made by, which finds its own preprocessing.
        keeps: fractions below 1 to prune to; two or more for the break-even.
        batches: images or clips a call; None for a few that suit the device.
        modes: how they run, among `papr.names.MODES`; None for those that suit the device.
        rounds: timed turns of each.
        workers: the loader's processes; None for as many as `papr.evaluate` takes.
        samples: how many of the data to load, evenly spread where they can be had by number.
        proposal: who looks first.
        proposal_size: resolution it runs at.
        mean: what the host's pixels are normalised with, where it does not say.
        std: likewise.
        each_turn: called after every turn; `turns` says how many there are.

    Raises:
        ConfigError: an option out of range, or the host does not say what size it takes.
        DataError: nothing that can be read is in `data`.
        ProposalError: the proposal cannot be loaded.
    """
    host = unwrap(host)
    weight = next(host.parameters())
    workers = usual_workers() if workers is None else workers
    support, facts = supported(host), hindrances(host, workers=workers)
    about = environment(weight.device)
    if not support:
        verdict = Verdict("unsupported", f"Do not bother: {support.reason}.")
        return Diagnosis(support, verdict, None, facts, about)
    if not keeps or max(keeps) >= 1:
        raise ConfigError(f"expected keeps below 1, got {list(keeps)}")
    source = None if data is None else _opened(data, host)
    prepare = None if len(pixel_shape(host)) == 4 and source is None else prepare_for(host, name)
    if mean is None and isinstance(prepare, ImageFile):
        mean, std = prepare.mean, prepare.std
    options: dict[str, Any] = {
        "proposal": proposal,
        "proposal_size": proposal_size,
        "mean": mean,
        "std": std,
    }
    dense = unprune(twin(host)).eval()
    timed: list[tuple[list[Row], float]] = []
    for mode in modes or usual_modes(weight.device):
        one = partial(_time, dense, keeps, mode, rounds, each_turn, options)
        timed += over_batches(batches or usual_batches(host), partial(_pixels, dense), one)
    tables, proposal_ms = zip(*timed, strict=True)
    loading = None if prepare is None else measure_loading(prepare, source, samples)
    machine = Machine(
        weight.device.type,
        usable_cores(),
        torch.get_num_threads(),
        workers,
    )
    found = Measured(tables, proposal_ms, loading, machine)
    return Diagnosis(support, judge(found), found, facts, about)


def turns(keeps: int, batches: int, rounds: int, modes: int = 1) -> int:
    """How many turns `diagnose` times."""
    return (rounds + WARMUP) * (keeps + 1 + 2) * batches * modes


def _opened(data: Source | str | Path, host: nn.Module) -> Source:
    return data if isinstance(data, Source) else open_for(host, data)


def _pixels(host: nn.Module, batch: int) -> Tensor:
    weight = next(host.parameters())
    with neutral(seed=0):
        drawn = torch.randn(batch, *pixel_shape(host))
    return drawn.to(device=weight.device, dtype=weight.dtype)


def _time(
    dense: nn.Module,
    keeps: Sequence[float],
    mode: str,
    rounds: int,
    each_turn: Callable[[], object] | None,
    options: dict[str, Any],
    pixels: Tensor,
) -> tuple[list[Row], float]:
    """One table, and how many milliseconds of an image the proposal alone takes."""
    table = compare(dense, pixels, keeps, rounds=rounds, mode=mode, each_turn=each_turn, **options)
    share = _proposal_share(dense, pixels, keeps[0], mode, rounds, each_turn, options)
    return table, share * table[0].ms_per_image[0]


@torch.inference_mode()
def _proposal_share(
    dense: nn.Module,
    pixels: Tensor,
    keep: float,
    mode: str,
    rounds: int,
    each_turn: Callable[[], object] | None,
    options: dict[str, Any],
) -> float:
    """The time of the proposal alone over the dense host's, in turns."""
    scorer: nn.Module | None = states(prune(twin(dense), keep, **options))[0].scorer
    seen = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels
    assert scorer is not None
    rivals = {
        "dense": partial(run_in(mode, dense), pixels),
        "proposal": partial(run_in(mode, scorer), seen),
    }
    found = interleave(rivals, rounds, WARMUP, pixels.device, each_turn)
    pairs = zip(found["proposal"].seconds, found["dense"].seconds, strict=True)
    return quartiles([mine / theirs for mine, theirs in pairs])[0]


def measure_loading(prepare: Prepare, source: Source | None, samples: int = 64) -> Loading:
    """What a sample costs before the host sees it, in one process with one thread.

    Of each sample the median of three passes, so that files come from the system's cache; the mean
    over samples. What cannot be read is left out.

    Args:
        prepare: the host's preprocessing.
        source: the user's data; None for a JPEG that stands for it.
        samples: how many.

    Raises:
        DataError: no sample can be read.
    """
    if source is None:
        content = stand_in()
        items = [Item("stand-in", None, content)] * min(samples, 8)
        what = f"a made-up JPEG of {STAND_IN[0]} x {STAND_IN[1]} pixels, {len(content) // 1000} kB"
    else:
        source = take(source, samples)
        assert source.length is not None
        items = [item_or_fault(source, number) for number in range(source.length)]
        what = f"{counted(len(items), 'sample')} of the data ({source.kind})"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the loader's processes
    try:
        loaded = [_load(item, prepare) for item in items]
    finally:
        torch.set_num_threads(threads)
    found = [one for one in loaded if not isinstance(one, str)]
    skipped = [
        Skipped(number, item.id, reason)
        for number, (item, reason) in enumerate(zip(items, loaded, strict=True))
        if isinstance(reason, str)
    ]
    if not found:
        why = f": {skipped[0].reason}" if skipped else ""
        raise DataError(f"expected a sample that can be read, got none of {len(items)}{why}")
    decode, rest = (1000 * sum(part) / len(found) for part in zip(*found, strict=True))
    return Loading(decode, rest, len(found), what, skipped)


def _load(item: Item, prepare: Prepare) -> tuple[float, float] | str:
    """Seconds (to read and decode, to prepare) one sample; why, where it cannot be read."""
    if item.fault:
        return item.fault
    passes = []
    for _ in range(_PASSES):
        try:
            passes.append(_load_once(item, prepare))
        except (PaprError, MemoryError) as error:
            return " ".join(str(error).split()) or "out of memory"
    return quartiles([p[0] for p in passes])[0], quartiles([p[1] for p in passes])[0]


def _load_once(item: Item, prepare: Prepare) -> tuple[float, float]:
    start = decoded = time.perf_counter()
    if isinstance(prepare, ImageFile):
        image = load_image(item.content, item.id)
        decoded = time.perf_counter()
        pixels = prepare.transform(image)
    else:  # of a video decoding and cutting go hand in hand
        pixels = prepare(item)
        decoded = time.perf_counter()
    if not share(pixels):  # how a loading process hands them over
        to_bytes(pixels)
    return decoded - start, time.perf_counter() - decoded


def stand_in(seed: int = 0) -> bytes:
    """A JPEG as costly to decode as a photograph: noise at every scale, more of the coarse.

    Natural images have power that falls with the square of frequency (Field, "Relations between
    the statistics of natural images", J. Opt. Soc. Am. A 4, 1987).
    """
    width, height = STAND_IN
    generator = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    falling = 1 / np.maximum(np.hypot(x, y), 1 / width)
    layers = []
    for _ in range(3):
        noise = np.fft.fft2(generator.standard_normal((height, width)))
        layers.append(np.fft.ifft2(noise * falling).real)
    grey, *colours = layers  # photographs are less colourful than bright
    picture = np.stack([grey, grey + 0.3 * colours[0], grey + 0.3 * colours[1]], axis=-1)
    picture = 128 + 55 * (picture - picture.mean()) / picture.std()
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def hindrances(host: nn.Module, cores: int | None = None, workers: int = 0) -> list[str]:
    """What commonly spoils speed and is so here, a line each.

    Args:
        host: on its device, in its dtype, as the user runs it.
        workers: the loader's processes.
        cores: that this process may use; None for what the system says.
    """
    cores = usable_cores() if cores is None else cores
    found = []
    if host.training:
        found.append("the model is in train mode: call model.eval() (measured in eval mode here)")
    found += _unfused(host)
    weight = next(host.parameters())
    if weight.device.type == "cpu":
        found += _threads(torch.get_num_threads(), cores, workers)
    if weight.device.type == "cuda" and weight.dtype == torch.float32:
        found += _float32(torch.cuda.is_bf16_supported())
    return found


def _unfused(host: nn.Module) -> list[str]:
    slow = [n for n, m in host.named_modules() if getattr(m, "fused_attn", True) is False]
    if slow:
        return [
            f"attention is not fused in {len(slow)} modules, such as {slow[0]}: set fused_attn, or "
            "unset TIMM_FUSED_ATTN"
        ]
    if getattr(getattr(host, "config", None), "_attn_implementation", None) == "eager":
        return ['attention is not fused: load the model with attn_implementation="sdpa"']
    return []


def _threads(threads: int, cores: int, workers: int) -> list[str]:
    if threads > cores:
        return [
            f"torch has {counted(threads, 'thread')} for {counted(cores, 'core')}, which get in "
            f"each other's way: torch.set_num_threads({cores})"
        ]
    if workers and threads + workers > cores > 1:
        return [
            f"torch's {counted(threads, 'thread')} and {counted(workers, 'loading process')} want "
            f"more than the {cores} cores: threads that wait for one another lose more than "
            f"their share, so end to end is at best what is said here; try "
            f"torch.set_num_threads({cores - 1})"
        ]
    if 2 * threads <= cores:
        return [
            f"torch uses {threads} of {cores} cores: see torch.set_num_threads, OMP_NUM_THREADS"
        ]
    return []


def _float32(bfloat16: bool) -> list[str]:
    found = []
    if bfloat16:
        found.append("float32 on a GPU that has bfloat16, which is several times as fast")
    if torch.get_float32_matmul_precision() == "highest":
        found.append('TF32 is off: torch.set_float32_matmul_precision("high") speeds float32 up')
    return found
