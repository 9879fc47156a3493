"""Hosts whose weights lie in several processes: a budget for each image would never end there."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import papr
from papr.hosts import grouped
from test_budgets import AUTO, varied
from tiny import TIMM_CASES

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)


@pytest.fixture
def alone(tmp_path: Path):
    """A process group of this process: what gathers weights is there, nobody is waited for."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_budgets_for_each_image_are_refused_of_a_sharded_host(alone) -> None:
    model = TIMM_CASES["augreg"].build(depth=2)
    for block in model.blocks:
        fsdp.fully_shard(block, mesh=alone)
    with pytest.raises(papr.ConfigError, match=r"blocks\.0 sharded by FSDP: .* fixed keep"):
        papr.prune(model, AUTO)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize("whole", [True, False])
def test_a_host_sharded_after_pruning_is_refused_before_its_blocks_run(alone, whole) -> None:
    model = papr.prune(TIMM_CASES["augreg"].build(depth=2), AUTO)
    ran = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
        fsdp.fully_shard(block, mesh=alone)
    if whole:
        fsdp.fully_shard(model, mesh=alone)
    with torch.no_grad(), pytest.raises(papr.PrunedModelError, match="sharded by FSDP"):
        model(varied())
    assert not ran


def test_passes_look_for_shards_only_where_there_are_other_processes(monkeypatch) -> None:
    """To look through every module takes longer than a small host."""
    model, looked = papr.prune(TIMM_CASES["augreg"].build(), AUTO), []
    monkeypatch.setattr(grouped, "check_unsharded", lambda host: looked.append(host))
    with torch.no_grad():
        model(varied())
    assert not looked
