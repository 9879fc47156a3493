"""Full precision where a ranking or a mean must not depend on the host's dtype."""

import contextlib
from typing import Any

import torch


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast within; entered only where there is one, since exporters need not know it."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
