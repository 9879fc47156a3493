"""Multiply-accumulates of one forward pass, host and proposal apart.

Counted are convolutions and matrix products, attention's two included, as the papers of this field
do (they print MACs as FLOPs). Norms, activations, softmax and resizing are not.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass of a whole batch.

    Attributes:
        host: in the model itself.
        proposal: in modules whose `role` is "proposal".
    """

    host: int
    proposal: int = 0

    @property
    def total(self) -> int:
        """Host and proposal together."""
        return self.host + self.proposal

    def per_image(self, batch: int) -> "Macs":
        """The same for one image of a batch."""
        return Macs(self.host // batch, self.proposal // batch)


def count_macs(model: nn.Module, example: Tensor) -> Macs:
    """Count the multiply-accumulates of `model(example)`.

    Runs one forward pass without gradients, with attention and the encoder fast path taken apart
    into the products they are made of: fused kernels are counted as zero by some PyTorch versions.
    Tensors on the meta device count without computing.

    Args:
        model: any module; one compiled by torch.compile is counted as it was before.
        example: input, (B, 3, H, W) for an image model.

    Returns:
        MACs for the whole batch.
    """
    model = getattr(model, "_orig_mod", model)
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with torch.no_grad(), _unfused(), _proposal_spans(counter) as spans, counter:
        model(example)
    total = counter.get_total_flops() // 2  # the counter counts a MAC as two operations
    return Macs(host=total - sum(spans) // 2, proposal=sum(spans) // 2)


def _convolution_relu(
    pixels: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    """What a convolution costs that cuDNN runs together with its ReLU; PyTorch counts it as 0."""
    return conv_flop_count(list(pixels), list(weight), list(out_shape))


_MORE = {torch.ops.aten.cudnn_convolution_relu: _convolution_relu}


class _NoModules:
    """In place of the counter's record of modules, which is not needed here.

    It fails on hosts with attention pooling: their learned query reaches a module as a view of a
    parameter, which without gradients has no history to hook on to.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _proposal_spans(counter: FlopCounterMode) -> Iterator[list[int]]:
    """What the counter counted inside each outermost module with the role "proposal"."""
    here = threading.get_ident()  # the hooks are global: other threads run models too
    open_at: list[int] = []
    spans: list[int] = []

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == here and getattr(module, "role", None) == "proposal":
            open_at.append(counter.get_total_flops())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == here and getattr(module, "role", None) == "proposal":
            start = open_at.pop()
            if not open_at:
                spans.append(counter.get_total_flops() - start)

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()
