"""Grafting by itself, away from any host."""

import copy
import pickle

import pytest
import torch
from torch import nn

from papr.errors import UnsupportedModelError
from papr.graft import Filler, Grafted, check_graftable, graft, states, ungraft


class Doubled(Grafted):
    """Twice what the original says, and a note in the state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._papr.append(x.shape[0])
        return 2 * super().forward(x)


class Passing(Grafted):
    """For an empty slot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Root(nn.Module):
    """A leaf, a slot that was never a module, and one that was."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(3, 3)
        self.plain_slot = None
        self.register_module("module_slot", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaf(x)
        for slot in (self.plain_slot, self.module_slot):
            x = x if slot is None else slot(x)
        return x


def test_there_and_back() -> None:
    root, x, notes = Root(), torch.randn(2, 3), []
    before = root(x)
    variables, modules = dict(vars(root)), dict(root._modules)
    for path, behaviour in (("leaf", Doubled), ("plain_slot", Passing), ("module_slot", Passing)):
        check_graftable(root, path)
        graft(root, path, behaviour, notes)
    assert torch.equal(root(x), 2 * before + 2)
    assert notes == [2]
    assert states(root) == [notes]
    assert isinstance(root.leaf, nn.Linear)
    assert isinstance(root.leaf, Doubled)
    assert type(root.leaf).__name__ == "Linear"
    assert "Linear[papr]" in repr(root)
    assert isinstance(root.plain_slot, Filler)
    ungraft(root)
    assert torch.equal(root(x), before)
    assert vars(root).keys() == variables.keys()
    assert root._modules == modules
    assert type(root.leaf) is nn.Linear
    assert "_papr" not in vars(root.leaf)


def test_copies_share_one_state_of_their_own() -> None:
    root = Root()
    graft(root, "leaf", Doubled, notes := [])
    graft(root, "plain_slot", Passing, notes)
    for twin in (copy.deepcopy(root), pickle.loads(pickle.dumps(root))):
        twin(torch.randn(5, 3))
        assert notes == []
        assert states(twin) == [[5]]
        assert type(twin.leaf) is type(root.leaf)


def test_what_cannot_take_effect_is_refused() -> None:
    root = Root()
    with pytest.raises(UnsupportedModelError, match="Root has no twig"):
        check_graftable(root, "twig")
    with pytest.raises(UnsupportedModelError, match=r"Root has no branch\.twig"):
        check_graftable(root, "branch.twig")
    root.leaf.forward = lambda x: x  # as offloading hooks do
    with pytest.raises(UnsupportedModelError, match=r"leaf\.forward was replaced on the instance"):
        check_graftable(root, "leaf")
