"""Counts the operations that code dispatches: on a fast GPU each of them costs its launch."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Counts the operations within, in eager code.

    Not counted is what touches no data: views, a reshape or a cast that changes nothing, dropout
    in eval mode, asking for a dtype. Not for inference mode: PyTorch does not say there what its
    operations are made of.

    Attributes:
        names: of the operations, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        assert not torch.is_inference_mode_enabled(), "count outside of inference mode"
        self.names: list[str] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.names)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if not func.is_view and not _touches_no_data(func, answer, (args, kwargs)):
            self.names.append(func.name().removeprefix("aten::"))
        return answer


def _touches_no_data(func: Any, answer: Any, given: Any) -> bool:
    """Whether an operation knows no tensors, or hands its arguments' own memory back as it was."""
    answers = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    known = {_memory(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    if func._schema.is_mutable or (known and not answers):
        return False
    return all(_memory(leaf) in known for leaf in answers)


def _memory(tensor: Tensor) -> int:
    """Which memory a tensor is on."""
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def operations(call: Callable[..., object], *args: Any, **kwargs: Any) -> list[str]:
    """The names of the operations of a call, in order; what it does only once is done before."""
    call(*args, **kwargs)
    with Operations() as seen:
        call(*args, **kwargs)
    return seen.names


def more(names: list[str], than: list[str]) -> dict[str, int]:
    """How many more (or fewer) there are of each operation, to read in a failed test."""
    both = Counter(names)
    both.subtract(Counter(than))
    return {name: number for name, number in sorted(both.items()) if number}
