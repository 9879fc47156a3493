"""What a tiny random host is to the tests, and the dense answer a pruned one must agree with."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import papr
from conftest import DEVICE


class TinyProposal(nn.Module):
    """Two convolutions with random weights: a feature map of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(pixels)).relu())


class Case:
    """A host of 64 x 64 pixels and 8 x 8 patches, and how the tests talk to it."""

    prefix: int  # tokens at the cut that are no patches
    head_prefix: int | None = None  # in the final tokens, where it differs from the cut's
    rectangles: bool = True  # whether it can be built for, or called with, non-square images
    intermediates: bool = False  # whether it has timm's forward_intermediates
    patch: int = 8  # side of a patch in pixels; of the first stage's, where there are stages
    pruning: Mapping[str, object] = MappingProxyType({})  # further options of papr.prune

    def prune(self, model: nn.Module, keep: float = 0.5, **options: object) -> nn.Module:
        """papr.prune with the small proposal and this case's options."""
        return prune(model, keep, **{**self.pruning, **options})

    def pixels(self, batch: int = 3, height: int = 64, width: int = 64, **kwargs) -> Tensor:
        """Random input, as the host takes it."""
        return torch.randn(batch, 3, height, width, device=DEVICE, **kwargs)

    def grid(self, height: int = 64, width: int = 64) -> tuple[int, ...]:
        """The patch grid of such input; of the first stage, where there are stages."""
        return (height // self.patch, width // self.patch)

    def patches(self, height: int = 64, width: int = 64) -> int:
        """How many there are on that grid."""
        return math.prod(self.grid(height, width))

    def logits_on_kept(self, dense: nn.Module, images: Tensor, pruned: nn.Module) -> Tensor:
        """What the dense host would answer if only what `pruned` kept existed."""
        kept = self.dense_on_kept(dense, images, papr.selection(pruned).indices)
        return self.head(dense, kept)

    def build(self, depth: int = 3, size: tuple[int, int] = (64, 64), **changes: object):
        """The host with random weights, the same ones at every call, in eval mode."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            model = self.make(depth, size, **changes).eval()
            for parameter in model.parameters():  # what is 0 or 1 when new would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.to(DEVICE)

    def make(self, depth: int, size: tuple[int, int], **changes: object) -> nn.Module:
        """The host as its library makes it."""
        raise NotImplementedError

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The modules that see (B, P + N, C) one after the other."""
        raise NotImplementedError

    def logits(self, model: Callable, images: Tensor) -> Tensor:
        """What the user wants of the host, (B, classes)."""
        return model(images)

    def tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        """The final tokens, (B, P + K, C)."""
        raise NotImplementedError

    def head(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Final tokens to what `logits` returns."""
        raise NotImplementedError

    def same(self, compiled: Tensor, eager: Tensor) -> bool:
        """Whether compiled code that runs eager kernels answers as it should: bit for bit."""
        return torch.equal(compiled, eager)

    def checkpoint(self, model: nn.Module) -> None:
        """Turn gradient checkpointing on; a host that knows none is left alone."""

    def dense_on_kept(self, dense: nn.Module, images: Tensor, indices: Tensor) -> Tensor:
        """Final tokens of the dense host when only the kept patches exist, (B, P + K, C).

        Nothing is gathered before the last block: the dense host runs on all tokens, and attention
        is told to look at no pruned key. So positions, rotary tables and biases are the dense ones.
        """
        with attention_to(indices, self.prefix):
            tokens = self.tokens(dense, images)
        prefix = tokens[:, : self.prefix]
        kept = torch.stack([t[self.prefix :][i] for t, i in zip(tokens, indices, strict=True)])
        return torch.cat([prefix, kept], dim=1)


@functools.cache
def proposal() -> papr.Proposal:
    """One small proposal for all tests."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return papr.Proposal(TinyProposal().eval())


def prune(model: nn.Module, keep: float = 0.5, **options: object) -> nn.Module:
    """papr.prune with the small proposal and the statistics it wants."""
    return papr.prune(model, keep, proposal(), **options)


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Within, nn.MultiheadAttention calls scaled_dot_product_attention in eval mode too."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def attention_to(indices: Tensor, prefix: int) -> Iterator[None]:
    """Within, fused attention gives no weight to patch keys outside `indices`."""
    fused: Callable[..., Tensor] = F.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest, **kw):
        allowed = torch.full((k.shape[0], 1, 1, k.shape[2]), float("-inf"))
        allowed = allowed.to(q)
        allowed[..., :prefix] = 0
        for image, kept in enumerate(indices):
            allowed[image, ..., kept + prefix] = 0
        bias = allowed if attn_mask is None else attn_mask + allowed
        bias = bias.expand(-1, -1, q.shape[2], -1)
        return fused(q, k, v, bias, *rest, **kw)

    F.scaled_dot_product_attention = masked
    try:
        with no_fast_path():
            yield
    finally:
        F.scaled_dot_product_attention = fused
