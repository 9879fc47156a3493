"""Dense against pruned, in one run: what `papr bench` and `papr demo` print."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from papr.compare.modes import run_in
from papr.measure import count_macs, interleave, peak_memory
from papr.pruning import prune, unprune
from papr.twins import twin
from papr.wrappers import unwrap

#: Turns that do not count: code is compiled in the first, CUDA graphs are recorded in the second.
WARMUP = 2


@dataclass(frozen=True)
class Row:
    """One configuration, measured beside the dense host.

    Attributes:
        keep: fraction of patches kept; 1 is the dense host itself.
        batch: images or clips a call.
        dtype: of weights and pixels.
        ms_per_image: milliseconds per image or clip, (median, lower, upper quartile).
        gmacs_host: GMACs of one image or clip in the host.
        gmacs_proposal: likewise in the proposal.
        peak_mb: peak memory of a call's tensors, weights not counted, in 10^6 bytes.
        speedup: over the dense host, turn by turn, (median, lower, upper quartile).
        ideal: dense GMACs / (host + proposal) GMACs.
        mode: how it ran, among `papr.names.MODES`.
    """

    keep: float
    batch: int
    dtype: str
    ms_per_image: tuple[float, float, float]
    gmacs_host: float
    gmacs_proposal: float
    peak_mb: float
    speedup: tuple[float, float, float]
    ideal: float
    mode: str = "eager"

    @property
    def images_per_second(self) -> float:
        """Throughput at the median time."""
        return 1000 / self.ms_per_image[0]

    @property
    def efficiency(self) -> float:
        """Measured speed-up / ideal speed-up."""
        return self.speedup[0] / self.ideal

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived figures included."""
        derived = {"images_per_second": self.images_per_second, "efficiency": self.efficiency}
        return asdict(self) | derived


@torch.inference_mode()
def compare(
    model: nn.Module,
    images: Tensor,
    keeps: Sequence[float],
    *,
    rounds: int = 7,
    warmup: int = WARMUP,
    mode: str = "eager",
    each_turn: Callable[[], object] | None = None,
    **options: Any,
) -> list[Row]:
    """Time the dense host and its pruned twins in turns.

    Args:
        model: the host, in eval mode, on its device, in its dtype; left as it is.
        images: (B, 3, H, W), or clips (B, T, 3, H, W), same device and dtype.
        keeps: fractions to prune to.
        rounds: turns that count.
        warmup: turns before them.
        mode: how all of them run: "eager", "compiled", or "graphs"; see `papr.compare.modes`.
        each_turn: called after every turn; there are (rounds + warmup) * (len(keeps) + 1).
        **options: further options of `papr.prune`.

    Returns:
        One row for the dense host (keep 1) and one for each of `keeps`.
    """
    device, batch = images.device, images.shape[0]
    hosts = {1.0: unprune(twin(unwrap(model)))}
    for keep in keeps:
        hosts[keep] = prune(twin(hosts[1.0]), keep, **options)
    macs = {keep: count_macs(host, images).per_image(batch) for keep, host in hosts.items()}
    if mode != "eager":  # variants of one forward share a limit, which several calls would reach
        torch._dynamo.reset()
    run = {keep: run_in(mode, host) for keep, host in hosts.items()}
    calls = {str(keep): partial(host, images) for keep, host in run.items()}
    timings = interleave(calls, rounds, warmup, device, each_turn)
    dense = timings["1.0"]
    return [
        Row(
            keep=keep,
            batch=batch,
            dtype=str(images.dtype).removeprefix("torch."),
            ms_per_image=timings[str(keep)].ms_per_image(batch),
            gmacs_host=macs[keep].host / 1e9,
            gmacs_proposal=macs[keep].proposal / 1e9,
            peak_mb=_peak_memory(host, run[keep] if mode == "compiled" else host, images) / 1e6,
            speedup=timings[str(keep)].speedup_over(dense),
            ideal=macs[1.0].total / macs[keep].total,
            mode=mode,
        )
        for keep, host in hosts.items()
    ]


def _peak_memory(eager: nn.Module, run: Any, images: Tensor) -> int:
    """Peak memory of a call in bytes; on a CPU only eager code shows its tensors.

    What CUDA graphs use they set aside when they are recorded, so that a replay takes nothing: of
    them it is eager code's.
    """
    watched = run if images.device.type == "cuda" else eager
    return peak_memory(partial(watched, images), images.device)
