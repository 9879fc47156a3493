"""A block that is put together from its leaves, tried before a host is pruned."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from papr.ambient import neutral
from papr.errors import UnsupportedModelError, one_line
from papr.graft import Grafted, graft, ungraft
from papr.hosts.bypassed import Bypassed, hanging, named, refusal
from papr.wrappers import inside, on_top

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def check_blocks(
    host: nn.Module, paths: Sequence[str], behaviour: type[Grafted]
) -> Mapping[str, Bypassed]:
    """Refuse blocks that compute something else than their leaves, put together, do.

    One block of each kind runs once on a few random tokens, with other weights than it has: an
    adapter that is still zero must show.

    Returns:
        Path of each block -> the modules in it that are taken apart.

    Raises:
        UnsupportedModelError: they do, or do not have these leaves, or something hangs on a module
            that is taken apart.
    """
    found: dict[str, Bypassed] = {}
    tried: dict[tuple[type, ...], Bypassed] = {}
    for path in paths:
        block = inside(host.get_submodule(path))
        if isinstance(block, behaviour) and on_top(block, "_papr_base"):
            found[path] = block._papr_stage.bypassed  # tried before it was sharded or the like
        else:
            kind = tuple(map(type, block.modules()))
            if kind not in tried:
                tried[kind] = _try(block, behaviour, type(host).__name__)
            found[path] = tried[kind]
        thing = hanging(block, found[path])
        if thing is not None:
            where = f"{path} of {type(host).__name__}"
            raise UnsupportedModelError(refusal(where, thing, "merge and recut"))
    return found


def _try(block: nn.Module, behaviour: type[Grafted], host: str) -> Bypassed:
    """Which modules of a block are taken apart, and which of their parts are not called either."""
    name = f"{host}, of whose blocks ({type(block).__name__})"
    if any(weight.is_meta for weight in (*block.parameters(), *block.buffers())):
        raise UnsupportedModelError(
            f"cannot merge or cut tokens in the blocks of {host}: expected weights in memory to "
            "try one, got them on the device meta (offloaded, or not loaded yet)"
        )
    try:
        expected, answer, before, now = _both(block, behaviour)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"cannot merge or cut tokens in the blocks of {name} papr does not know the "
            f"leaves: {one_line(error)}"
        ) from None
    apart = named(block, [path for path in before if path not in now])
    far = (expected - answer).abs().max() / expected.abs().max().clamp(min=1e-6)
    if not far < 1e-4:
        listed = " and ".join(f"{path} ({c})" for path, c in apart if "." not in path)
        what = f" from the parts of its {listed}" if listed else ""
        raise UnsupportedModelError(
            f"cannot merge or cut tokens in the blocks of {name} papr computes something else"
            f"{what} (by {float(far):.1g})"
        )
    return (*apart, *((path, "") for path in _silent(block, apart) if path not in now))


def _silent(block: nn.Module, apart: Bypassed) -> Iterator[str]:
    """The parts of what is taken apart; a switch of the block may have some called, or not."""
    known = [path for path, _ in apart]
    for path, _ in block.named_modules():
        if path not in known and any(path.startswith(f"{above}.") for above in known):
            yield path


_Called = Mapping[str, None]


def _both(block: nn.Module, behaviour: type[Grafted]) -> tuple[Tensor, Tensor, _Called, _Called]:
    """What a block answers to random tokens, what its leaves do, and what each calls.

    In float32 on the CPU, where no setting of the caller's makes products so coarse that the two
    differ.
    """
    with neutral():
        random = torch.Generator().manual_seed(0)  # the global state is other threads' too
        holder = nn.ModuleList([copy.deepcopy(block, _hooks(block))]).eval().cpu().float()
        ungraft(holder)  # of a host that is pruned anew
        _bare(holder)
        for weight in holder.parameters():
            if type(weight) is nn.Parameter and weight.is_floating_point():
                weight.add_(torch.randn(weight.shape, generator=random) * 0.05)
        width = next((p.shape[0] for p in block.parameters() if p.ndim == 1), None)
        if width is None:
            raise ValueError(
                "expected a parameter of one axis (of a norm, or a bias), as long as tokens are "
                "wide, got none"
            )
        tokens = torch.randn(2, 9, width, generator=random)
        with _called(holder[0]) as before:
            expected = holder[0](tokens)
        graft(holder, "0", behaviour, None)
        with _called(holder[0]) as now:
            return expected, holder[0](tokens), before, now


def _hooks(root: nn.Module) -> dict[int, Any]:
    """A memo by which a copy has the very same hooks: what they hold may not be copied."""
    found = [getattr(module, name) for module in root.modules() for name in _HOOKS]
    return {id(hook): hook for hooks in found for hook in hooks.values()}


def _bare(root: nn.Module) -> None:
    """Without users' hooks, which would see tokens of papr's own, and replaced forwards."""
    for module in root.modules():
        module.__dict__.pop("forward", None)
        for name in _HOOKS:
            getattr(module, name).clear()


@contextmanager
def _called(block: nn.Module) -> Iterator[dict[str, None]]:
    """The paths of the modules in a block that are called within, in order."""
    seen: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, path=path: seen.setdefault(path))
        for path, module in block.named_modules()
        if path
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
