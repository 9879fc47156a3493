"""What the caller has set for the code of his own - it must not reach what papr builds for itself.

A default dtype or device, inference mode, autocast, fewer bits in products of float32, the random
state: under each of them the same host is pruned the same, and each is afterwards as it was.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

import torch

_one_at_a_time = threading.RLock()  # two spells that overlap would restore each other's settings


def _unlock() -> None:
    """A process that was forked meanwhile has no thread that would ever release the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_unlock)


@contextlib.contextmanager
def neutral(seed: int | None = None, restores: bool = False) -> Iterator[None]:
    """Within, networks are made and looked at as in a fresh process, without gradients.

    In float32, on the CPU. For short spells: the default dtype is the whole process's, so one
    thread after the other is in one.

    Args:
        seed: of the random numbers drawn within; None to go on from the global state.
        restores: whether the global random state is afterwards as it was, where something draws
            from it that is not meant to be random; with a seed it always is. Otherwise it is left
            to itself: it is the whole process's too.
    """
    with (
        _one_at_a_time,
        _float32(),
        _random_state(seed, restores),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.no_grad(),  # which the line before would end
        torch.autocast("cpu", enabled=False),
        _exact_products(),
    ):
        yield


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _random_state(seed: int | None, restores: bool) -> Iterator[None]:
    """The CPU's, from which all is drawn within; a GPU's is not touched."""
    if seed is None and not restores:
        yield
        return
    before = torch.default_generator.get_state()
    if seed is not None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32 on a CPU, which oneDNN may take in bfloat16 where allowed.

    It is switched off rather than set: PyTorch has two ways to set it, and refuses to read one
    after the other was used.
    """
    if not _may_round():
        yield
        return
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _may_round() -> bool:
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return True
    except RuntimeError:  # set by the newer of the two ways
        return True
    convolutions = getattr(torch.backends.mkldnn, "conv", None)
    return getattr(convolutions, "fp32_precision", "none") not in ("none", "ieee")


def seed_on(device: torch.device, seed: int) -> None:
    """Seed what draws on a device and on the CPU; `torch.manual_seed` would seed every GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
