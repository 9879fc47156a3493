"""What a failure or another library leaves of a pruned model: the model that was, or a refusal."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import papr
from papr import graft
from papr.errors import PrunedModelError, UnsupportedModelError
from papr.hosts.presence import Presence
from tiny import CASES

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


def snapshot(model: nn.Module) -> list:
    """Every module, its class and what it holds, in order; of what papr keeps there, which."""
    found = []
    for name, module in model.named_modules():
        kept = {key: id(value) for key, value in vars(module).items() if key.startswith("_papr")}
        found.append((name, type(module), list(vars(module)), list(module._modules), kept))
    return found


HOOK = r"a hook of accelerate: call accelerate\.hooks\.remove_hook_from_submodules\(model\) first"


@torch.no_grad()
@pytest.mark.parametrize("name", ["hf_vit", "torchvision_convnext"])
def test_offloaded_by_accelerate(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")  # not in the extra test-oldest
    case = CASES[name]
    dense, x = case.build(), case.pixels()
    model = case.prune(copy.deepcopy(dense))
    answer = case.logits(model, x)
    accelerate.cpu_offload(model, execution_device=x.device)
    assert torch.equal(case.logits(model, x), answer)
    before = snapshot(model)
    with pytest.raises(PrunedModelError, match=HOOK) as caught:
        papr.unprune(model)
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before
    case.prune(model, 0.25)  # the same sites, which need another state only
    case.logits(model, x)
    assert papr.selection(model).indices.shape == (3, case.patches() // 4)
    if name != "hf_vit":
        with pytest.raises(PrunedModelError, match=HOOK):
            case.prune(model, 1.0)  # other sites
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(case.logits(papr.unprune(model), x), case.logits(dense, x))


@torch.no_grad()
def test_prepared_by_accelerate() -> None:
    """In bfloat16 it puts another forward on the root, where budgets have their graft."""
    accelerate = pytest.importorskip("accelerate")
    case = CASES["augreg"]
    dense, x = case.build().cpu(), case.pixels().cpu()
    model = case.prune(copy.deepcopy(dense))
    graft.graft(model, "", graft.Grafted, None)
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    with pytest.raises(PrunedModelError, match="another forward on the instance"):
        papr.unprune(prepared)
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(case.logits(papr.unprune(model), x), case.logits(dense, x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "path"),
    [("torchvision", "conv_proj"), ("torchvision_convnext", "features.1.0.block.2")],
)
def test_a_parametrization_on_top_of_a_graft(name: str, path: str) -> None:
    case = CASES[name]
    dense, x = case.build(), case.pixels()
    model = case.prune(copy.deepcopy(dense))
    site = model.get_submodule(path)
    weight_norm(site)
    before = snapshot(model)
    with pytest.raises(PrunedModelError, match=rf"off {path} .*remove_parametrizations first"):
        papr.unprune(model)
    assert snapshot(model) == before
    case.prune(model, 0.25)
    twin = copy.deepcopy(model)
    assert torch.equal(case.logits(twin, x), case.logits(model, x))
    assert papr.selection(twin).indices.shape == (3, case.patches() // 4)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")  # which has not run before
    assert case.same(case.logits(compiled, x), case.logits(model, x))
    remove_parametrizations(site, "weight")
    answer = case.logits(papr.unprune(model), x)
    assert (answer - case.logits(dense, x)).abs().max() < 1e-5
    assert type(site) is type(dense.get_submodule(path))


@pytest.fixture
def mesh(tmp_path):
    """One process that shards with itself."""
    store = dist.FileStore(os.fspath(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["torchvision_convnext", "augreg+merge", "hf_vit+merge"])
def test_sharded_blocks_stay_sharded(name: str, mesh) -> None:
    name, plus, _ = name.partition("+")
    case, options = CASES[name], {"merge": papr.Merge(4)} if plus else {}
    model, x = case.prune(case.build().cpu(), **options), case.pixels().cpu()
    answer = case.logits(model, x)
    blocks = [b[1] if isinstance(b, tuple) else b for b in case.blocks(model)]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    assert torch.equal(case.logits(model, x), answer)
    before = snapshot(model)
    with pytest.raises(PrunedModelError, match="fully_shard or the like, which cannot be undone"):
        papr.unprune(model)
    with pytest.raises(PrunedModelError, match="fully_shard"):
        case.prune(model, 1.0)
    assert snapshot(model) == before
    case.prune(model, 0.25, **options)
    case.logits(model, x).sum().backward()
    assert papr.selection(model).indices.shape == (3, case.patches() // 4)
    assert all(type(block).__name__.startswith("FSDP") for block in blocks)


@torch.no_grad()
@pytest.mark.parametrize("name", ["torchvision_convnext", "hf_swin", "beit"])
def test_a_block_in_several_places_is_cut_once(name: str) -> None:
    """As in models that share weights between blocks: right, undone, and copied."""
    case = CASES[name]
    model, x = case.build(depth=3), case.pixels()
    blocks = {
        "torchvision_convnext": lambda m: m.features[3],
        "hf_swin": lambda m: m.swin.encoder.layers[1].blocks,
        "beit": lambda m: m.blocks,
    }[name](model)
    blocks[2] = blocks[0]
    dense = copy.deepcopy(model)
    case.prune(model)
    answer = case.logits(model, x)
    assert (answer - case.logits_on_kept(copy.deepcopy(dense), x, model)).abs().max() < 1e-5
    assert torch.equal(case.logits(copy.deepcopy(model), x), answer)
    assert torch.equal(case.logits(papr.unprune(model), x), case.logits(dense, x))


def test_a_module_that_would_be_two_sites_is_refused() -> None:
    """Before anything is changed: blocks of two stages, and blocks that would know their number."""
    stages = CASES["torchvision_convnext"].build()
    stages.features[3][0] = stages.features[1][0]
    numbered = CASES["augreg"].build()
    numbered.blocks[2] = numbered.blocks[1]
    for model, options in ((stages, {}), (numbered, {"merge": papr.Merge(4)})):
        before = snapshot(model)
        with pytest.raises(UnsupportedModelError, match="expected a module of its own at") as error:
            CASES["augreg"].prune(model, **options)
        assert "\n" not in str(error.value)
        assert snapshot(model) == before
    one, idle = nn.Identity(), CASES["torchvision"].build()
    for parent in list(idle.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Dropout):
                setattr(parent, name, one)
    before = snapshot(idle)
    with pytest.raises(
        UnsupportedModelError, match=r"own at encoder\.dropout, got one .* too, where"
    ):
        CASES["torchvision"].prune(idle)
    assert snapshot(idle) == before
    beside = CASES["torchvision"].build()
    beside.aux = nn.ModuleDict({"x": beside.encoder.dropout})
    with pytest.raises(UnsupportedModelError, match=r"one that is at aux\.x too"):
        CASES["torchvision"].prune(beside)
    assert not papr.supported(stages)
    assert papr.supported(numbered)


class Broken(BaseException):
    """As an interrupt, which no `except Exception` catches."""


@torch.no_grad()
@pytest.mark.parametrize("name", ["torchvision_convnext", "eva", "beit_both"])
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_failure_in_the_middle_changes_nothing(
    name: str, pruned: bool, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model, x = case.build(), case.pixels()
    if pruned:
        case.prune(model, 0.25)
    answer, before = case.logits(model, x), snapshot(model)

    def change_what_can_be(call) -> None:
        left, replace = iter(range(after)), graft._Changes.replace

        def step(*args: object) -> None:
            if next(left, None) is None:
                raise Broken
            replace(*args)

        with monkeypatch.context() as patch:
            patch.setattr(graft._Changes, "replace", step)
            with pytest.raises(Broken):
                call()

    change_what_can_be(lambda: case.prune(model, 1.0 if pruned else 0.5))  # other sites than before
    if pruned:
        change_what_can_be(lambda: case.prune(model, 0.5))  # the same sites
        change_what_can_be(lambda: papr.unprune(model))
    assert snapshot(model) == before
    assert papr.is_pruned(model) == pruned
    assert torch.equal(case.logits(model, x), answer)


@torch.no_grad()
@pytest.mark.parametrize("again", [0.25, 1.0], ids=["same_sites", "other_sites"])
def test_a_failure_in_the_last_look_changes_nothing(
    again: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    answer, before = case.logits(model, x), snapshot(model)

    def look(self: Presence) -> None:
        if self._root is not None:
            raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(Presence, "missing", look)
        with pytest.raises(Broken):
            case.prune(model, again)
    assert snapshot(model) == before
    assert torch.equal(case.logits(model, x), answer)


def test_a_class_that_allows_no_other_to_derive_is_refused_before_any_change() -> None:
    class Final(nn.Dropout):
        def __init_subclass__(cls) -> None:
            raise TypeError("Final is final\nfor ever")

    model = CASES["torchvision"].build()
    model.encoder.dropout = Final()
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"encoder\.dropout.*Final is final") as error:
        CASES["torchvision"].prune(model)
    assert "\n" not in str(error.value)
    assert snapshot(model) == before
