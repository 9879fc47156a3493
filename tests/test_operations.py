"""How many operations pruning adds to a host's own, the proposal's apart."""

import torch
import torch.nn.functional as F

from operations import operations


def test_what_counts_as_an_operation() -> None:
    x = torch.randn(2, 3, 4)
    assert operations(lambda: x.transpose(0, 1)[:1].expand(3, 2, 4).unsqueeze(0)) == []
    assert operations(lambda: x.float().contiguous().reshape(6, 4).to("cpu")) == []
    assert operations(lambda: F.dropout(x, 0.5, training=False)) == []
    assert operations(lambda: x.detach().requires_grad_(False).view(-1)) == []
    assert operations(lambda: x.half()) == ["_to_copy"]
    assert operations(lambda: x.transpose(0, 1).reshape(6, 4)) == ["clone"]
    assert operations(lambda: x.clone().add_(1)) == ["clone", "add_.Tensor"]
    assert operations(lambda: x.flatten(0, 1) @ x[0].T) == ["mm"]
    assert operations(lambda: x.sum().item()) == ["sum", "_local_scalar_dense"]
    assert len(operations(lambda: F.dropout(x, 0.5))) == len(operations(lambda: F.dropout(x, 0.5)))
