"""What holds for every supported host, one test each over all families."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import papr
from conftest import DEVICE, TOLERANCE
from papr.graft import states
from papr.proposals.scorers import Scorer
from tiny import CASES, DROPPING, Case, no_fast_path

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest):
    return CASES[request.param]


@pytest.fixture(params=DROPPING)
def dropping(request: pytest.FixtureRequest):
    return DROPPING[request.param]


def token_counts(case: Case, model: nn.Module, x: torch.Tensor) -> list[int]:
    """How many tokens each block of the host sees."""
    seen: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
        for block in case.blocks(model)
    ]
    case.logits(model, x)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_float32_is_not_rounded_where_the_tests_run() -> None:
    """To TF32, as a GPU's convolutions are by default: the tolerances below are float32's."""
    assert not torch.backends.cudnn.allow_tf32
    layer = nn.Conv2d(64, 64, 3).to(DEVICE)
    x = torch.randn(2, 64, 16, 16, device=DEVICE)
    exact = copy.deepcopy(layer).double()(x.double())
    assert (layer(x) - exact).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_pruned_equals_dense_on_kept_patches(case) -> None:
    model = case.build()
    dense = copy.deepcopy(model)
    x = case.pixels()
    case.prune(model, 0.4)
    logits = case.logits(model, x)
    chosen = papr.selection(model)
    assert chosen.grid == case.grid()
    assert chosen.indices.shape == (3, int(0.4 * case.patches()))
    expected = case.logits_on_kept(dense, x, model)
    assert (logits - expected).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_final_tokens_are_the_dense_ones(dropping) -> None:
    case = dropping
    model = case.build()
    dense = copy.deepcopy(model)
    x = case.pixels()
    tokens = case.tokens(case.prune(model, 0.4), x)
    expected = case.dense_on_kept(dense, x, papr.selection(model).indices)
    assert (tokens - expected).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_every_block_sees_fewer_tokens(dropping) -> None:
    case = dropping
    model = case.build()
    x = case.pixels()
    before = token_counts(case, model, x)
    case.prune(model, 0.5)
    assert before == [case.prefix + 64] * 3
    assert token_counts(case, model, x) == [case.prefix + 32] * 3


@torch.no_grad()
def test_fused_attention_stays_fused(dropping, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls of the fused kernel as before, and no mask where there was none."""
    case = dropping
    fused = torch.nn.functional.scaled_dot_product_attention
    calls: list[bool] = []

    def counted(q, k, v, attn_mask=None, *args, **kwargs):
        calls.append(attn_mask is None)
        return fused(q, k, v, attn_mask, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = case.build()
    x = case.pixels()
    with no_fast_path():
        case.logits(model, x)
        dense = calls.copy()
        calls.clear()
        case.logits(case.prune(model, 0.5), x)
    assert calls == dense
    assert calls


@torch.no_grad()
def test_keep_one_is_dense_and_runs_no_proposal(case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.build()
    x = case.pixels()
    dense = case.logits(model, x)
    monkeypatch.setattr(Scorer, "__call__", lambda *args: pytest.fail("the proposal ran"))
    case.prune(model, 1.0)
    assert torch.equal(case.logits(model, x), dense)
    assert papr.selection(model).mask().all()


@torch.no_grad()
def test_unprune_is_bit_equal_and_leaves_nothing(case) -> None:
    model = case.build()
    x = case.pixels()
    dense, before = case.logits(model, x), copy.deepcopy(model)
    case.prune(model, 0.5)
    assert papr.is_pruned(model)
    assert not torch.equal(case.logits(model, x), dense)
    assert papr.unprune(model) is model
    assert not papr.is_pruned(model)
    assert torch.equal(case.logits(model, x), dense)
    ours = [(name, type(module)) for name, module in model.named_modules()]
    assert ours == [(name, type(module)) for name, module in before.named_modules()]
    assert set(vars(model)) == set(vars(before))
    for name, module in model.named_modules():
        assert set(vars(module)) == set(vars(before.get_submodule(name)))


def test_parameters_and_state_dict_stay(case) -> None:
    model = case.build()
    keys = list(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    case.prune(model, 0.5)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == parameters
    model.load_state_dict(case.build().state_dict())


@torch.no_grad()
def test_copies_answer_alike(case) -> None:
    model = case.prune(case.build(), 0.5)
    x = case.pixels()
    expected = case.logits(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert papr.is_pruned(twin)
        assert torch.equal(case.logits(twin, x), expected)
        papr.unprune(twin)
        assert not papr.is_pruned(twin)
        assert papr.is_pruned(model)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32)])
def test_rectangles(case, height: int, width: int) -> None:
    if not case.rectangles:
        pytest.skip("takes square images only")
    model = case.build(size=(height, width))
    dense = copy.deepcopy(model)
    x = case.pixels(2, height, width)
    case.prune(model, 0.5)
    logits = case.logits(model, x)
    chosen = papr.selection(model)
    assert chosen.grid == case.grid(height, width)
    expected = case.logits_on_kept(dense, x, model)
    assert (logits - expected).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(case, dtype: torch.dtype) -> None:
    """The proposal follows the host's dtype; the ranking stays in float32."""
    model = case.prune(case.build(), 0.5).to(dtype)
    x = case.pixels(dtype=dtype)
    (state,) = states(model)
    seen = []
    note = state.scorer.net.stem.register_forward_hook(lambda net, x, y: seen.extend([x[0], y]))
    logits = case.logits(model, x)
    note.remove()  # the replica serves other tests too
    assert logits.dtype == dtype
    assert [t.dtype for t in seen] == [dtype, dtype]  # the network that looked, and once
    chosen = papr.selection(model)
    assert chosen.scores is not None
    assert chosen.scores.dtype == torch.float32
    expected = case.logits_on_kept(papr.unprune(copy.deepcopy(model)), x, model)
    scale = expected.abs().max().clamp(min=1)
    assert (logits - expected).abs().max() < TOLERANCE[dtype] * scale


@torch.no_grad()
def test_autocast(case) -> None:
    model, x = case.build(), case.pixels()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        expected = case.logits(model, x)
        logits = case.logits(case.prune(model, 0.5), x)
    assert logits.dtype == expected.dtype
    assert logits.isfinite().all()
    assert logits.shape == expected.shape


def test_gradients_reach_the_host_and_not_the_proposal(case) -> None:
    model = case.build().train()
    case.logits(model, case.pixels()).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]  # mask tokens
    model.zero_grad()
    case.prune(model, 0.5)
    net = states(model)[0].scorer.net
    before = copy.deepcopy(net.state_dict())
    case.logits(model, case.pixels()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == unused
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_gradient_checkpointing_gives_the_same_gradients(case) -> None:
    """Also when another forward pass comes before the backward pass that recomputes."""
    gradients = []
    x, other = case.pixels(2), case.pixels(2)
    for checkpointing in (False, True):
        model = case.prune(case.build(), 0.5).train()
        if checkpointing:
            case.checkpoint(model)
        loss = case.logits(model, x).square().sum()
        case.logits(model, other)
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(DEVICE.type != "cpu", reason="GPU kernels change with the batch size")
def test_an_image_keeps_its_patches_in_any_batch(case) -> None:
    model = case.prune(case.build(), 0.5)
    x = case.pixels(5)
    case.logits(model, x)
    together = papr.selection(model).indices
    for i in range(5):
        case.logits(model, x[i : i + 1])
        assert torch.equal(papr.selection(model).indices[0], together[i])


def test_threads_do_not_see_each_other(case) -> None:
    model = case.prune(case.build(), 0.5)
    inputs = [case.pixels(2) for _ in range(2)]
    with torch.no_grad():
        expected = [case.logits(model, x) for x in inputs]
    barrier = threading.Barrier(2, timeout=60)
    wrong: list[object] = []

    def run(which: int) -> None:
        try:
            for _ in range(10):
                barrier.wait()
                with torch.no_grad():
                    if not torch.equal(case.logits(model, inputs[which]), expected[which]):
                        wrong.append(which)
        except Exception as error:  # a thread's exception reaches nobody by itself
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_dense_features_are_refused_or_honest(dropping) -> None:
    """Never a grid made of tokens that are not there."""
    case = dropping
    if not case.intermediates:
        pytest.skip("has no forward_intermediates")
    model = case.build()
    x = case.pixels(2)
    case.prune(model, 0.5)
    with pytest.raises(papr.PrunedModelError, match=r"8 x 8 grid.*keep=0.5.*NLC"):
        model.forward_intermediates(x, indices=[1], intermediates_only=True)
    (tokens,) = model.forward_intermediates(
        x, indices=[1], intermediates_only=True, output_fmt="NLC"
    )
    assert papr.selection(model).restore(tokens[:, -32:]).shape == (2, 48, 8, 8)
    papr.unprune(model)
    (dense,) = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert dense.shape == (2, 48, 8, 8)


@torch.no_grad()
def test_prune_again_uses_the_new_configuration(case) -> None:
    model = case.prune(case.build(), 0.5)
    x = case.pixels()
    case.prune(model, 0.25)
    case.logits(model, x)
    assert papr.selection(model).indices.shape == (3, case.patches() // 4)
    assert torch.equal(case.logits(model, x), case.logits(case.prune(case.build(), 0.25), x))
    case.prune(model, 1.0)
    assert torch.equal(case.logits(model, x), case.logits(case.build(), x))
