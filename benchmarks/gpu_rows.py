"""What gpu.py times: which hosts, at which batch, run how, beside whom; and one such row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import papr
from papr.baselines import lower_resolution
from papr.compare.field import merged_to
from papr.compare.modes import run_in
from papr.compare.speed import WARMUP
from papr.config import DEFAULT_PROPOSAL
from papr.errors import PaprError, one_line
from papr.graft import states
from papr.hosts.inputs import pixel_shape
from papr.measure import count_macs, interleave, peak_memory, quartiles, spread
from papr.named import create_video
from papr.names import VIDEO_HOSTS
from papr.proposals import as_proposal
from papr.selecting import kept_count
from papr.twins import twin

VIT, LARGE = "vit_base_patch16_224", "vit_large_patch16_224"
SWIN, CONVNEXT, VIDEO = "swin_base_patch4_window7_224", "convnext_base", "videomae_base"
KEEPS = ("papr 0.5", "papr 0.7", "papr 0.3")
#: Other proposals, by name; their weights are random where they would be downloaded.
OTHERS = tuple(f"papr 0.5 {name}" for name in ("efficientnet_lite0", "mobileone_s0", "resnet18"))


@dataclass(frozen=True)
class Cell:
    """One host at one batch in one mode, and who takes turns with it.

    Attributes:
        host: by name.
        batch: images or clips a call.
        mode: among `papr.names.MODES`.
        rivals: see `RIVALS`; after the name a fraction of patches, and a proposal that is not the
            default.
        weight: how much longer than ViT-B/16 it takes to compile.
    """

    host: str
    batch: int
    mode: str
    rivals: tuple[str, ...]
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.host}, batch {self.batch}, {self.mode}"


_LIMITS = ("limit 0.5", "limit 0.7", "limit 0.3")
_ALL = (*KEEPS, *_LIMITS, "unlooked 0.5", "resolution 0.5", "tome 0.5", "proposal", *OTHERS)
_FEW = ("papr 0.5", "limit 0.5", "proposal")
_PYRAMID = ("papr 0.5", "unlooked 0.5", "papr 0.7")
_KEPT = ("kept 0.5", "kept 0.7")

#: The most important first: what no longer fits is left out.
PLAN = (
    Cell(VIT, 256, "eager", _ALL),
    Cell(LARGE, 256, "eager", (*KEEPS, *_LIMITS, "resolution 0.5", "tome 0.5", "proposal")),
    *(Cell(VIT, batch, "eager", (*KEEPS, *_FEW[1:])) for batch in (32, 8, 1)),
    Cell(VIT, 256, "compiled", (*KEEPS, "limit 0.5", "proposal")),
    Cell(SWIN, 128, "eager", (*_PYRAMID, *_KEPT)),
    Cell(CONVNEXT, 128, "eager", _PYRAMID),
    Cell(VIDEO, 16, "eager", ("papr 0.5", "unlooked 0.5", "papr 0.3")),
    Cell(VIT, 1, "graphs", _FEW),
    Cell(VIT, 32, "graphs", _FEW),
    Cell(LARGE, 256, "compiled", ("papr 0.5", "limit 0.5"), 2.0),
    Cell(CONVNEXT, 128, "compiled", ("papr 0.5",), 2.0),
    Cell(SWIN, 128, "compiled", ("kept 0.5", "papr 0.5"), 2.0),
    Cell(VIT, 8, "graphs", _FEW),
    *(Cell(LARGE, batch, "eager", _FEW) for batch in (32, 8, 1)),
    *(Cell(LARGE, batch, "graphs", _FEW[:2], 2.0) for batch in (32, 1, 8)),
    Cell(VIT, 256, "graphs", _FEW[:2]),
    *(Cell(VIT, batch, "compiled", _FEW[:2]) for batch in (32, 8, 1)),
)
#: Whose longest kernels are told, dense and pruned.
PROFILED = ((VIT, 256, "papr 0.5"), (CONVNEXT, 128, "papr 0.5"), (SWIN, 128, "kept 0.5"))

#: The same, small enough for a CPU.
TINY = "tiny"
TINY_PLAN = (
    Cell(TINY, 2, "eager", ("papr 0.5", *_ALL[3:10])),
    Cell(TINY, 2, "compiled", ("limit 0.5",)),
    Cell(TINY, 1, "graphs", ("unlooked 0.5",)),
)
TINY_PROFILED = ((TINY, 2, "papr 0.5"),)


def make_host(name: str) -> nn.Module:
    """A host with random weights, in eval mode: speed does not depend on them."""
    if name == TINY:
        options = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return VisionTransformer(**options).eval()
    if name in VIDEO_HOSTS:
        return create_video(name, random_weights=True)[0]
    return timm.create_model(name).eval()


def draw(host: nn.Module, batch: int) -> Tensor:
    """Pixels as the host takes them, on its device, in its dtype."""
    weight = next(host.parameters())
    return torch.randn(batch, *pixel_shape(host), device=weight.device, dtype=weight.dtype)


class _Kept(nn.Module):
    """Takes tokens that were chosen long ago."""

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.index_select(1, self.indices)


class _Looking(nn.Module):
    """The proposal alone, pixels as the host gets them to scores."""

    def __init__(self, scorer: nn.Module, is_video: bool) -> None:
        super().__init__()
        self.scorer, self.is_video = scorer, is_video

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scorer(pixels.transpose(1, 2) if self.is_video else pixels)


def _papr(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    return papr.prune(twin(dense), keep, as_proposal(who, random_weights=True))


def _kept(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    proposal = as_proposal(who, random_weights=True)
    return papr.prune(twin(dense), keep, proposal, attention="kept")


def _unlooked(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    """Scores that lie ready: what pruning costs beside the proposal."""
    axes = (8, 14, 14) if pixels.ndim == 5 else (14, 14)
    table = torch.rand(1, *axes, dtype=torch.float32, device=pixels.device)
    return papr.prune(twin(dense), keep, lambda x: table.expand(len(x), *axes))


def _limit(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    """As many tokens, evenly spread and the same ones always, for one operation and no look."""
    if not isinstance(dense, VisionTransformer):
        raise PaprError("tokens for nothing are had of timm's ViT only")
    prefix, patches = dense.num_prefix_tokens, dense.patch_embed.num_patches
    chosen = [prefix + i for i in spread(kept_count(keep, patches), patches)]
    host = twin(dense)
    host.patch_drop = _Kept(torch.tensor([*range(prefix), *chosen], device=pixels.device))
    return host


def _resolution(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    return lower_resolution(dense, kept_count(keep, dense.patch_embed.num_patches), pixels)


def _tome(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    """With as many tokens merged as leaves PaPr's GMACs."""
    target = count_macs(_papr(dense, keep, pixels, who), pixels[:1]).total
    return merged_to(dense, pixels[:1], target)[0]


def _proposal(dense: nn.Module, keep: float, pixels: Tensor, who: str) -> nn.Module:
    scorer = states(_papr(dense, 0.5, pixels, who))[0].scorer
    return _Looking(scorer, pixels.ndim == 5)


RIVALS: dict[str, Callable[[nn.Module, float, Tensor, str], nn.Module]] = {
    "papr": _papr,
    "kept": _kept,
    "unlooked": _unlooked,
    "limit": _limit,
    "resolution": _resolution,
    "tome": _tome,
    "proposal": _proposal,
}


def make_rival(name: str, dense: nn.Module, pixels: Tensor) -> nn.Module:
    """One of `RIVALS`, sharing the dense host's weights. Raises PaprError where there is none."""
    kind, *words = name.split()
    keep = float(words[0]) if words else 1.0
    who = words[1] if len(words) > 1 else DEFAULT_PROPOSAL
    return RIVALS[kind](dense, keep, pixels, who)


@torch.inference_mode()
def measure(cell: Cell, dense: nn.Module, rounds: int) -> dict[str, object]:
    """The rivals of a cell in turns: milliseconds a call and speed-ups, medians with quartiles."""
    pixels = draw(dense, cell.batch)
    device = pixels.device
    modules, left_out = {"dense": dense}, {}
    for name in cell.rivals:
        try:
            modules[name] = make_rival(name, dense, pixels)
        except PaprError as error:
            left_out[name] = one_line(error)
    if cell.mode != "eager":
        torch._dynamo.reset()
        counters.clear()
    calls = {name: partial(run_in(cell.mode, module), pixels) for name, module in modules.items()}
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:  # whatever a compiler raises; the others are worth their time
            left_out[name] = one_line(error)
            del calls[name]
    if "dense" not in calls:
        raise PaprError(f"the dense host does not run: {left_out['dense']}")
    timings = interleave(calls, rounds, WARMUP, device)
    found = {
        "host": cell.host,
        "batch": cell.batch,
        "mode": cell.mode,
        "ms": {n: quartiles([1000 * s for s in t.seconds]) for n, t in timings.items()},
        "speedup": {n: t.speedup_over(timings["dense"]) for n, t in timings.items()},
        "left_out": left_out,
    }
    if cell.mode == "eager":
        found["peak_mb"] = {n: peak_memory(call, device) / 1e6 for n, call in calls.items()}
    if cell.mode == "graphs":  # graphs that could not be recorded, and ran compiled instead
        found["graphs_skipped"] = counters["inductor"]["cudagraph_skips"]
    return found


@torch.inference_mode()
def longest(module: nn.Module, pixels: Tensor, count: int = 10) -> dict[str, object]:
    """The kernels of one call that take longest; on a CPU, its operations.

    Returns:
        How many kernels a call launches and how many ms they take; of the longest ones name, ms,
        calls and share.
    """
    cuda = pixels.device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    for _ in range(WARMUP):
        module(pixels)
    with profile(activities=[activity]) as seen:
        module(pixels)
        if cuda:
            torch.cuda.synchronize()
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, spent))
    total = sum(getattr(event, spent) for event in events) or 1.0
    return {
        "kernels": sum(event.count for event in events),
        "ms": total / 1000,
        "longest": [
            {
                "name": event.key,
                "ms": getattr(event, spent) / 1000,
                "calls": event.count,
                "share": getattr(event, spent) / total,
            }
            for event in events[:count]
        ],
    }
