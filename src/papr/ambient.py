"""What the caller has set for the code of his own - it must not reach what papr builds for itself.

A default dtype or device, inference mode, autocast, fewer bits in products of float32, the random
state: under each of them the same host is pruned the same, and each is afterwards as it was.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def neutral(seed: int | None = None, draws: bool = False) -> Iterator[None]:
    """Within, networks are made and looked at as in a fresh process, without gradients.

    In float32, on the CPU. For short spells: the default dtype is the whole process's.

    Args:
        seed: of the random numbers drawn within; None to go on from the global state.
        draws: whether drawing within moves the global random state, as weights do that are meant
            to be random; otherwise it is afterwards as it was.
    """
    default = torch.get_default_dtype()
    state = torch.default_generator.get_state()  # a GPU's is not touched: all is drawn on the CPU
    try:
        torch.set_default_dtype(torch.float32)
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.no_grad(),  # which the line before would end
            torch.autocast("cpu", enabled=False),
            _exact_products(),
        ):
            yield
    finally:
        torch.set_default_dtype(default)
        if not draws:
            torch.default_generator.set_state(state)


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
