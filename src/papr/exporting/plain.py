"""A model as a plain function of pixels: tensors in, tensors out, and what size they are."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papr.errors import ExportError, one_line
from papr.proposals.scorers import floating_weight
from papr.significance import describe
from papr.twins import twin
from papr.wrappers import unwrap

#: Of an output with several fields, the first of these groups that is there is what leaves.
_WANTED = (("logits",), ("image_embeds",), ("last_hidden_state", "pooler_output"))


class Plain(nn.Module):
    """Stands around a model while it is exported: returns a tensor, or a tuple of tensors.

    transformers' models return a record; of that leave the logits, or the image's embedding, or
    the last hidden state and what was pooled from it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Pixels (B, C, H, W) to what the model answers."""
        values = tuple(named_outputs(self.model(pixels)).values())
        return values[0] if len(values) == 1 else values


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors that a model returned, by name.

    Raises:
        ExportError: there is none, or something beside tensors.
    """
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, Mapping):
        for group in _WANTED:
            found = {name: output[name] for name in group if output.get(name) is not None}
            if found:
                return _checked(found)
        return _checked(dict(output))
    if isinstance(output, Sequence):
        return _checked({f"output_{i}": value for i, value in enumerate(output)})
    raise ExportError(f"expected a model that returns tensors, got {describe(output)}")


def _checked(outputs: dict[str, Any]) -> dict[str, Tensor]:
    wrong = [f"{name}: {describe(v)}" for name, v in outputs.items() if not isinstance(v, Tensor)]
    if wrong or not outputs:
        raise ExportError(
            f"expected a model that returns tensors, got {', '.join(wrong) or 'nothing'}"
        )
    return outputs


def plain(model: nn.Module, on_cpu: bool) -> Plain:
    """A copy of the model that shares its weights, so that the export leaves no trace on it.

    Args:
        model: in eval mode; wrappers of torch.compile and DataParallel are taken off.
        on_cpu: move the copy to the CPU; it then has weights of its own where they were not there.

    Raises:
        ExportError: a part is in training mode, or the model cannot be copied.
    """
    host = unwrap(model)
    training = next(((n, m) for n, m in host.named_modules() if m.training), None)
    if training is not None:
        name, module = training
        where = f"{type(module).__name__} at {name}" if name else type(module).__name__
        raise ExportError(
            f"expected a model in eval mode, got {where} in training mode: call model.eval() first"
        )
    try:
        if on_cpu and any(t.device.type != "cpu" for t in (*host.parameters(), *host.buffers())):
            return Plain(copy.deepcopy(host).cpu()).eval()
        return Plain(twin(host)).eval()
    except Exception as error:
        raise ExportError(f"cannot copy {type(host).__name__}: {first_line(error)}") from error


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of a model's pixels: those of its first floating weight."""
    weight = floating_weight(model)
    if weight is None:
        return torch.device("cpu"), torch.float32
    return weight.device, weight.dtype


def first_line(error: BaseException) -> str:
    """Type and first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
