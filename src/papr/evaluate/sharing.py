"""Pixels on their way from a loading process: in shared memory where there is room, else as bytes.

A container has 64 MB of shared memory unless told otherwise. A process that finds none left cannot
hand its batch over, and the one that waits for it would wait for ever.
"""

import io
import os

import torch
from torch import Tensor

#: Where Linux keeps shared memory. Elsewhere nobody can say how much there is.
_PLACE = "/dev/shm"


def room() -> float:
    """Bytes of shared memory that are free; infinite where nobody can say."""
    try:
        found = os.statvfs(_PLACE)
    except (OSError, AttributeError):
        return float("inf")
    return float(found.f_bavail * found.f_frsize)


def share(pixels: Tensor, free: float | None = None) -> bool:
    """Move a tensor into shared memory, and say whether it is there.

    Half of what is free stays so: others, such as NCCL, need some too.

    Args:
        pixels: on the CPU.
        free: bytes; None for what `room` says.
    """
    if pixels.is_shared():
        return True
    if 2 * pixels.nbytes > (room() if free is None else free):
        return False
    try:
        pixels.share_memory_()
    except (RuntimeError, OSError):  # somebody else was faster
        return False
    return True


def to_bytes(pixels: Tensor) -> bytes:
    """The inverse of `from_bytes`."""
    file = io.BytesIO()
    torch.save(pixels.clone(), file)  # of a view its own part alone
    return file.getvalue()


def from_bytes(content: bytes) -> Tensor:
    """A tensor of its own memory."""
    found: Tensor = torch.load(io.BytesIO(content), weights_only=True)
    return found
