"""A selection that was made is acted on: a cut that is no longer there is an error."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import papr
from conftest import DEVICE
from papr.errors import PrunedModelError, SelectionError
from tiny import CASES, proposal

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")

GONE = r"expected the module at {} as papr\.prune left it"


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def replace(model: nn.Module, old: type, new: type = nn.Identity) -> None:
    """What is done before fine-tuning: every module of a class becomes another one."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, old):
                setattr(parent, name, new())


#: What a user replaces, and the site that is lost by it.
LOST = {
    "torchvision": (nn.Dropout, "encoder.dropout"),
    "cait": (nn.Dropout, "pos_drop"),
    "beit": (nn.Dropout, "pos_drop"),
    "beit_absolute": (nn.Dropout, "pos_drop"),
    "augreg": (nn.Identity, "patch_drop"),
    "torchvision_convnext": (nn.LayerNorm, "features.1.0.block.2"),
    "hf_convnext": (nn.Identity, "convnext.encoder.stages.0.layers.0.drop_path"),
    "swin": (nn.LayerNorm, "layers.0.blocks.0.norm2"),
    "torchvision_swin": (nn.LayerNorm, "features.1.0.norm2"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LOST)
def test_a_replaced_module_is_an_error_in_the_next_pass(name: str) -> None:
    case = CASES[name]
    model, x = case.prune(case.build()), case.pixels()
    case.logits(model, x)
    old, path = LOST[name]
    removed = [m for m in model.modules() if isinstance(m, old)]  # alive all the while
    replace(model, old)
    for _ in range(2):
        with pytest.raises(PrunedModelError, match=GONE.format(path)) as caught:
            case.logits(model, x)
    assert "\n" not in str(caught.value)
    assert removed
    model = case.prune(model)  # the way out that the message names
    assert case.logits(model, x).isfinite().all()
    assert papr.selection(model).indices.shape[1] == case.patches() // 2


@torch.no_grad()
@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_copies_know_their_own_sites(twin) -> None:
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    other = twin(model)
    expected = model(x)
    replace(other, nn.Dropout)
    with pytest.raises(PrunedModelError, match=GONE.format(r"encoder\.dropout")):
        other(x)
    assert torch.equal(model(x), expected)


@torch.no_grad()
def test_a_host_from_a_pickle_whose_old_modules_live_on_has_no_selection() -> None:
    """It knows no root, so what was replaced is missed where the selection is asked for."""
    case = CASES["torchvision"]
    model, x = pickle.loads(pickle.dumps(case.prune(case.build()))), case.pixels()
    removed = model.encoder.dropout
    replace(model, nn.Dropout)
    model(x)
    with pytest.raises(SelectionError, match=BY):
        papr.selection(model)
    with pytest.warns(papr.PaprWarning, match=BY):
        model(x)
    assert removed


class PartFirst(nn.Module):
    """Holds a part of a host beside the host, and before it."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.encoder, self.vit = host.encoder, host

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x)


def in_a_dictionary(model: nn.Module) -> nn.Module:
    return copy.deepcopy({"dropout": model.vit.encoder.dropout, "model": model})["model"]


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model).module


@torch.no_grad()
@pytest.mark.parametrize("twin", [copy.deepcopy, in_a_dictionary, averaged])
def test_a_copy_of_a_part_belongs_to_the_copy_of_its_host(twin) -> None:
    case = CASES["torchvision"]
    model, x = PartFirst(case.build()), case.pixels()
    case.prune(model.vit)
    expected = model(x)
    other = twin(model)
    assert torch.equal(other(x), expected)
    assert torch.equal(papr.selection(other).indices, papr.selection(model).indices)
    replace(other, nn.Dropout)
    with pytest.raises(PrunedModelError, match=GONE.format(r"encoder\.dropout")):
        other(x)
    assert torch.equal(model(x), expected)


BY = "came by none of them"


class Fast(nn.Module):
    """Calls past what an encoder calls."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder.ln(self.encoder.layers(tokens + self.encoder.pos_embedding))


def pass_by(model: nn.Module) -> None:
    model.encoder = Fast(model.encoder)


def put_another_forward(model: nn.Module) -> None:
    model.encoder.dropout.forward = lambda tokens: tokens


@torch.no_grad()
@pytest.mark.parametrize("change", [pass_by, put_another_forward])
def test_a_cut_that_does_nothing_does_not_go_unseen(change) -> None:
    """Where one runs later that acts on the pass, it raises; else the next pass warns, once."""
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    model(x)
    change(model)
    for call in (papr.selection, lambda m: m(x)):
        call(model)  # the pass before was right
    with pytest.raises(SelectionError, match=BY) as caught:
        papr.selection(model)
    assert "\n" not in str(caught.value)
    with pytest.warns(papr.PaprWarning, match=BY):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    later = case.build()
    change(later if change is pass_by else case.prune(later, merge=papr.Merge(4)))
    if change is put_another_forward:
        with pytest.raises(PrunedModelError, match=BY):
            later(x)
    auto = papr.prune(case.build(), "auto", proposal(), share=0.9)
    change(auto)
    with pytest.raises(PrunedModelError, match=BY):
        auto(x)


@torch.no_grad()
def test_a_stage_that_no_cut_acts_in_is_an_error() -> None:
    case = CASES["torchvision_swin"]
    model, x = case.prune(case.build()), case.pixels()
    case.logits(model, x)
    for block in model.features[3]:
        block.forward = lambda x: x
    with pytest.raises(PrunedModelError, match=BY):
        case.logits(model, x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "part", "path"),
    [("torchvision", "encoder", r"encoder\.dropout"), ("convnext", "stages.1", "stages.1")],
)
def test_a_part_that_is_unpruned_is_missed(name: str, part: str, path: str) -> None:
    case = CASES[name]
    model, x = case.prune(case.build()), case.pixels()
    case.logits(model, x)
    papr.unprune(model.get_submodule(part))
    with pytest.raises(PrunedModelError, match=GONE.format(path)):
        case.logits(model, x)


@torch.no_grad()
def test_a_pass_that_broke_off_has_no_selection() -> None:
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    model(x)

    def broken(*args: object) -> None:
        raise MemoryError

    handle = model.encoder.register_forward_pre_hook(broken)
    with pytest.raises(MemoryError):
        model(x[:1])
    with pytest.raises(SelectionError, match=BY):
        papr.selection(model)
    handle.remove()
    model(x)
    assert len(papr.selection(model).indices) == len(x)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_host_looks_again_where_a_module_was_replaced(backend: str) -> None:
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert case.same(compiled(x), model(x))
    partly = torch.compile(model, backend=backend)
    assert case.same(partly(x), model(x))
    replace(model, nn.Dropout)
    with pytest.raises(Exception, match="expected the module at encoder"):
        compiled(x)
    with pytest.raises(PrunedModelError, match=GONE.format(r"encoder\.dropout")):
        partly(x)


@torch.no_grad()
def test_budgets_need_their_sites_too() -> None:
    case = CASES["torchvision"]
    model = papr.prune(case.build(), "auto", proposal(), share=0.9)
    model(case.pixels())
    model.conv_proj = nn.Conv2d(3, 48, 8, stride=8, device=DEVICE)
    with pytest.raises(PrunedModelError, match=GONE.format("conv_proj")):
        model(case.pixels())


@torch.no_grad()
def test_exported_and_traced_only_while_all_is_there() -> None:
    case = CASES["cait"]
    model, x = case.prune(case.build()), case.pixels()
    replace(model, nn.Dropout)
    for strict in (False, True):
        with pytest.raises(Exception, match="expected the module at pos_drop"):
            torch.export.export(model, (x,), strict=strict)
    with pytest.raises(PrunedModelError, match=GONE.format("pos_drop")):
        torch.jit.trace(model, x)


@torch.no_grad()
def test_parts_and_passes_that_break_off_harm_no_later_one() -> None:
    """Nothing is remembered of a pass but its selection: only what is there counts."""
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    expected = model(x)
    model.conv_proj(x)  # a part on its own

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    handle = model.conv_proj.register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    assert torch.equal(model(x), expected)


@torch.no_grad()
def test_what_is_wrapped_or_moved_is_still_there() -> None:
    case = CASES["torchvision"]
    model, x = case.prune(case.build()), case.pixels()
    expected = model(x)
    model.encoder = nn.Sequential(model.encoder)
    assert torch.equal(model(x), expected)
    host = CASES["hf_vit"]
    task = host.prune(host.build())
    tower, expected = task.vit, task.vit(x).last_hidden_state
    del task
    assert torch.equal(tower(x).last_hidden_state, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext", "swin", "hf_vjepa2"])
def test_stages_and_blocks_taken_off_the_end_are_not_missed(name: str) -> None:
    case = CASES[name]
    model, x = case.prune(case.build()), case.pixels()
    if name == "hf_vjepa2":
        encoder = model.vjepa2.encoder
        encoder.layer = encoder.layer[:2]
        case.logits(model, x)
    else:
        model.prune_intermediate_layers([0], prune_norm=True)
        model.forward_features(x)


def test_a_host_that_is_gone_is_freed_at_once() -> None:
    """What knows the sites keeps none of them alive."""
    import gc
    import weakref

    case = CASES["torchvision_convnext"]
    model = case.prune(case.build().cpu())
    with torch.no_grad():
        case.logits(model, case.pixels().cpu())
    gc.collect()
    gc.disable()
    try:
        ref = weakref.ref(model.features[1])
        del model
        assert ref() is None
    finally:
        gc.enable()


def test_checkpoints_look_while_they_run_again() -> None:
    case = CASES["convnext"]
    model = case.prune(case.build()).train()
    case.checkpoint(model)
    case.logits(model, case.pixels()).sum().backward()
    replace(model, nn.LayerNorm)
    with pytest.raises(PrunedModelError, match=r"papr\.prune left it"):
        case.logits(model, torch.randn(2, 3, 64, 64, device=DEVICE))
