"""A pruned host trains: alone, in two processes, with a keep that changes on the way.

That gradients reach every parameter and pass through checkpointing is in test_contract.py, for
every family.
"""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ddp_worker
import papr
from conftest import DEVICE
from papr.graft import states
from tiny import CASES, prune

FAMILIES = ["augreg", "siglip", "dinov3", "beit_both", "cait", "swin_v2_kept", "convnext"]


def problem(batch: int = 16) -> tuple[Tensor, Tensor]:
    """Two classes: a bright square left or right."""
    images = torch.randn(batch, 3, 64, 64, device=DEVICE) * 0.1
    classes = torch.arange(batch, device=DEVICE) % 2
    images[0::2, :, 16:48, :32] += 1
    images[1::2, :, 16:48, 32:] += 1
    return images, classes


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_lower_the_loss(family: str) -> None:
    model = CASES[family].prune(CASES[family].build(num_classes=2), 0.5).train()
    start = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = problem()
    losses = [step(model, optimizer, x, y) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    still = [n for n, p in model.named_parameters() if p.requires_grad and torch.equal(p, start[n])]
    assert still == []


def test_training_at_keep_one_is_dense_training() -> None:
    x, y = problem()
    ends = []
    for pruned in (False, True):
        model = CASES["augreg"].build(num_classes=2).train()
        if pruned:
            prune(model, 1.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            step(model, optimizer, x, y)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_changes_between_steps(family: str) -> None:
    """A schedule: the optimiser goes on with the same parameters and its own memory of them."""
    case = CASES[family]
    model = case.prune(case.build(num_classes=2), 1.0).train()
    model.set_grad_checkpointing(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    x, y = problem()
    losses = []
    for count, keep in enumerate([1.0] * 4 + [0.7] * 4 + [0.5] * 12):
        before = [optimizer.state[p].get("exp_avg") for p in parameters]
        case.prune(model, keep)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        after = [optimizer.state[p].get("exp_avg") for p in parameters]
        assert all(a is b for a, b in zip(before, after, strict=True))
        assert all(module.training for module in model.modules())
        losses.append(step(model, optimizer, x, y))
        assert papr.selection(model).indices.shape == (16, int(keep * case.patches()))
        assert {int(optimizer.state[p]["step"]) for p in parameters if p.grad is not None} == {
            count + 1
        }
    assert losses[-1] < 0.8 * losses[0]
    papr.unprune(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    step(model, optimizer, x, y)


def test_pruning_again_loads_and_copies_no_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule may set keep at every step: the network and its replica are there already."""
    model = papr.prune(CASES["augreg"].build(), 0.7, mean=(0.5,) * 3, std=(0.5,) * 3)
    (before,) = states(model)
    monkeypatch.setattr(papr.Proposal, "__init__", lambda *args: pytest.fail("made anew"))
    monkeypatch.setattr(copy, "deepcopy", lambda *args: pytest.fail("copied anew"))
    papr.prune(model, 0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    (after,) = states(model)
    assert after.config.keep == 0.5
    assert after.scorer.net is before.scorer.net


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.requires_grad_(True),
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.double().float(),
        lambda model: model.apply(lambda module: module.train()),
        lambda model: prune(model, 0.3),
        copy.deepcopy,
    ],
    ids=["train", "requires_grad_", "half", "bfloat16", "float", "apply", "again", "copy"],
)
def test_the_proposal_stays_frozen(change) -> None:
    model = prune(CASES["augreg"].build(), 0.5).train()
    model = change(model).train().requires_grad_(True)
    (state,) = states(model)
    net = state.scorer.net
    frozen = copy.deepcopy(net.state_dict())
    assert {p.dtype for p in net.parameters()} == {model.head.weight.dtype}
    host = {id(t) for t in (*model.parameters(), *model.buffers(), *model.modules())}
    for part in (state.scorer, net, state.proposal.net):
        assert not any(module.training for module in part.modules())
        assert not any(p.requires_grad for p in part.parameters())
        assert host.isdisjoint(id(t) for t in (*part.parameters(), *part.buffers()))
        assert host.isdisjoint(id(m) for m in part.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(2, 3, 64, 64, device=DEVICE, dtype=model.head.weight.dtype)
    model(x).square().mean().backward()
    optimizer.step()
    assert model.head.weight.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, frozen[k]) for k, v in net.state_dict().items())


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)
def test_two_processes(tmp_path: Path) -> None:
    """DDP over gloo, no look-out for unused parameters: see ddp_worker.VARIANTS."""
    torch.multiprocessing.spawn(ddp_worker.run, args=(tmp_path,), nprocs=2)
    left, right = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert "Expected to have finished reduction" in left["unused parameter"]
    for name in ddp_worker.VARIANTS:
        ours, theirs = left[name], right[name]
        assert all(map(torch.equal, ours["end"], theirs["end"])), name
        moved = [not torch.equal(a, b) for a, b in zip(ours["start"], ours["end"], strict=True)]
        assert sum(moved) > 0.9 * len(moved), name
        for what, alone in (("gradients", "alone"), ("end", "end alone")):
            for a, b in zip(ours[what], ours[alone], strict=True):
                assert torch.allclose(a.float(), b.float(), atol=1e-5, rtol=1e-4), (name, what)
