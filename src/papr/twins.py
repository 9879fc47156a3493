"""Copies of a model that share its weights, so that several ways to run it fit in memory."""

import copy
from typing import Any

from torch import nn


def twin(model: nn.Module) -> nn.Module:
    """A copy that shares the model's weights and buffers, so that both can be timed at once."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
