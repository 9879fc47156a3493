"""Which selection belongs to which pass, where passes are nested, broken off, or compiled in parts.

Each test was a wrong answer once, or an error that named the wrong cause.
"""

import io
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import papr
from conftest import DEVICE
from tiny import CASES
from tiny_pyramid import PYRAMID_CASES

pytestmark = [
    pytest.mark.filterwarnings("ignore::papr.PaprWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, device=DEVICE)


def pruned(name: str, depth: int = 3, **options: object) -> torch.nn.Module:
    case = PYRAMID_CASES[name]
    return case.prune(case.build(depth), 0.5, **options)


@pytest.mark.parametrize("name", ["swin", "swin_kept", "convnext"])
def test_checkpoints_within_a_checkpoint_around_two_passes(name: str) -> None:
    a, b = images(), images()
    gradients = []
    for nested in (False, True):
        model = pruned(name).train()
        if nested:
            PYRAMID_CASES[name].checkpoint(model)
            loss = checkpoint(lambda p, q, m=model: (m(p) * m(q)).sum(), a, b, use_reentrant=False)
        else:
            loss = (model(a) * model(b)).sum()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


def put_under_checkpoint(part: torch.nn.Module) -> None:
    """Every call of the module goes through a checkpoint, as wrappers do it."""
    call = type(part).__call__

    def checkpointed(self: torch.nn.Module, *args: object) -> object:
        return checkpoint(lambda *inner: call(self, *inner), *args, use_reentrant=False)

    part.__class__ = type(type(part).__name__, (type(part),), {"__call__": checkpointed})


@pytest.mark.parametrize(
    "name", ["torchvision_swin", "torchvision_convnext", "hf_convnext", "swin"]
)
@pytest.mark.parametrize("around", ["stage", "block"])
def test_checkpoints_that_the_user_puts_there(name: str, around: str) -> None:
    """With another forward pass before the backward pass."""
    case, x, other = PYRAMID_CASES[name], images(), images()
    gradients = []
    for wrapped in (False, True):
        model = pruned(name).train()
        parts = [block for _, block in case.blocks(model)]
        if around == "stage":
            first = [case.block.format(stage, 0, 2 * stage + 1) for stage in range(2)]
            stages = [path.removesuffix(".0").removesuffix(".blocks") for path in first]
            parts = [model.get_submodule(path.removesuffix(".layers")) for path in stages]
        for part in parts if wrapped else ():
            put_under_checkpoint(part)
        loss = case.logits(model, x).square().sum()
        case.logits(model, other)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "convnext", "swin_kept", "torchvision_convnext"])
def test_blocks_compiled_one_by_one(name: str) -> None:
    case, model = PYRAMID_CASES[name], pruned(name, depth=2)
    x, other = images(), images()
    expected, others = case.logits(model, x), case.logits(model, other)
    for _, block in case.blocks(model):
        block.compile(fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(case.logits(model, x), expected)
        assert torch.equal(case.logits(model, other), others)


@torch.no_grad()
def test_blocks_compiled_one_by_one_refuse_a_second_thread() -> None:
    """Compiled code cannot tell threads apart: an error, never the other thread's selection."""
    model = pruned("convnext")
    for _, block in PYRAMID_CASES["convnext"].blocks(model):
        block.compile(backend="eager")
    x, errors = images(), []
    model(x)

    def pause(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    def second() -> None:
        try:
            with torch.no_grad():
                model(images())
        except Exception as error:
            errors.append(error)

    handle = model.stem.register_forward_hook(pause)
    with pytest.raises(Exception, match="expected one pass at a time"):
        model(x)
    handle.remove()
    assert "expected one pass at a time" in str(errors[0])
    assert model(x).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_a_compiled_pass_that_ends_early_serves_no_other(name: str) -> None:
    case, model = PYRAMID_CASES[name], pruned(name, depth=2)
    a, b = images(), images()
    expected = model(b)
    chosen = papr.selection(model).indices
    torch.compile(model.forward_intermediates, backend="eager")(a, intermediates_only=True)
    early = papr.selection(model).indices
    model(a)
    assert torch.equal(early, papr.selection(model).indices)
    for _, block in case.blocks(model):
        block.compile(backend="eager")
    torch.compile(model.forward_intermediates, backend="eager")(a, intermediates_only=True)
    assert torch.equal(model(b), expected)
    assert torch.equal(papr.selection(model).indices, chosen)


@torch.no_grad()
def test_tokens_alone_find_nothing_after_features() -> None:
    model = pruned("swin")
    x = images()
    model.forward_intermediates(x, intermediates_only=True)
    with pytest.raises(papr.SelectionError, match="got tokens only"):
        model.layers[0](torch.randn(2, 16, 16, 24, device=DEVICE))


def test_features_within_a_backward_pass() -> None:
    case = CASES["augreg"]
    model = case.prune(case.build(), 0.5)
    a, b = images(), images()
    expected = papr.features(model, b)
    found = []
    loss = model(a).sum()
    weight = model.blocks[0].attn.qkv.weight
    weight.register_hook(lambda grad: found.append(papr.features(model, b)))
    loss.backward()
    assert torch.equal(found[0].map, expected.map)
    assert torch.equal(found[0].kept, expected.kept)


def test_saved_hidden_states_hold_nothing_of_papr() -> None:
    model = pruned("hf_swin")
    states = model(images(), output_hidden_states=True).hidden_states
    buffer = io.BytesIO()
    torch.save(states[0], buffer)
    assert buffer.tell() < 4 * states[0].nbytes
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), states[0])


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_float16(name: str) -> None:
    """Finite where the dense host is, and near what it would give on kept patches."""
    case = CASES[name]
    model = case.build().half()
    x = case.pixels().half()
    if not case.logits(model, x).isfinite().all():
        pytest.skip("the dense host overflows")
    case.prune(model, 0.5)
    answer = case.logits(model, x)
    assert answer.isfinite().all()
    expected = case.logits_on_kept(case.build().half(), x, model)
    scale = expected.abs().max().clamp(min=1)
    assert (answer - expected).abs().max() < 2e-2 * scale
