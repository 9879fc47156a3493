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
from tiny import CASES, dense_on_kept, prune

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest):
    return CASES[request.param]


def images(batch: int = 3, height: int = 64, width: int = 64, **kwargs) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, device=DEVICE, **kwargs)


def token_counts(model: nn.Module, x: torch.Tensor) -> list[int]:
    """How many tokens each block of the host sees."""
    seen: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
        for block in model.blocks
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_pruned_equals_dense_on_kept_patches(case) -> None:
    model = case.build()
    dense = copy.deepcopy(model)
    x = images()
    prune(model, 0.4)
    logits = model(x)
    chosen = papr.selection(model)
    assert chosen.grid == (8, 8)
    assert chosen.indices.shape == (3, int(0.4 * 64))
    tokens = dense_on_kept(case, dense, x, chosen.indices)
    assert (model.forward_features(x) - tokens).abs().max() < TOLERANCE[torch.float32]
    assert (logits - dense.forward_head(tokens)).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
def test_every_block_sees_fewer_tokens(case) -> None:
    model = case.build()
    x = images()
    before = token_counts(model, x)
    prune(model, 0.5)
    assert before == [case.prefix + 64] * 3
    assert token_counts(model, x) == [case.prefix + 32] * 3


@torch.no_grad()
def test_fused_attention_stays_fused(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls of the fused kernel as before, and no mask where there was none."""
    fused = torch.nn.functional.scaled_dot_product_attention
    calls: list[bool] = []

    def counted(*args, attn_mask=None, **kwargs):
        calls.append(attn_mask is None)
        return fused(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = case.build()
    x = images()
    model(x)
    dense = calls.copy()
    calls.clear()
    prune(model, 0.5)(x)
    assert calls == dense
    assert calls


@torch.no_grad()
def test_keep_one_is_dense_and_runs_no_proposal(case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.build()
    x = images()
    dense = model(x)
    monkeypatch.setattr(Scorer, "__call__", lambda *args: pytest.fail("the proposal ran"))
    prune(model, 1.0)
    assert torch.equal(model(x), dense)
    assert papr.selection(model).mask().all()


@torch.no_grad()
def test_unprune_is_bit_equal_and_leaves_nothing(case) -> None:
    model = case.build()
    x = images()
    dense, before = model(x), copy.deepcopy(model)
    prune(model, 0.5)
    assert papr.is_pruned(model)
    assert not torch.equal(model(x), dense)
    assert papr.unprune(model) is model
    assert not papr.is_pruned(model)
    assert torch.equal(model(x), dense)
    ours = [(name, type(module)) for name, module in model.named_modules()]
    assert ours == [(name, type(module)) for name, module in before.named_modules()]
    assert set(vars(model)) == set(vars(before))
    for name, module in model.named_modules():
        assert set(vars(module)) == set(vars(before.get_submodule(name)))


def test_parameters_and_state_dict_stay(case) -> None:
    model = case.build()
    keys = list(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    prune(model, 0.5)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == parameters
    model.load_state_dict(case.build().state_dict())


@torch.no_grad()
def test_copies_answer_alike(case) -> None:
    model = prune(case.build(), 0.5)
    x = images()
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert papr.is_pruned(twin)
        assert torch.equal(twin(x), expected)
        papr.unprune(twin)
        assert not papr.is_pruned(twin)
        assert papr.is_pruned(model)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32)])
def test_rectangles(case, height: int, width: int) -> None:
    model = case.build() if case.dynamic else case.build(img_size=(height, width))
    dense = copy.deepcopy(model)
    x = images(2, height, width)
    prune(model, 0.5)
    logits = model(x)
    chosen = papr.selection(model)
    assert chosen.grid == (height // 8, width // 8)
    tokens = dense_on_kept(case, dense, x, chosen.indices)
    assert (logits - dense.forward_head(tokens)).abs().max() < TOLERANCE[torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(case, dtype: torch.dtype) -> None:
    """The proposal follows the host's dtype; the ranking stays in float32."""
    model = prune(case.build(), 0.5).to(dtype)
    x = images(dtype=dtype)
    (state,) = states(model)
    seen = []
    note = state.scorer.net.stem.register_forward_hook(lambda net, x, y: seen.extend([x[0], y]))
    logits = model(x)
    note.remove()  # the replica serves other tests too
    assert logits.dtype == dtype
    assert [t.dtype for t in seen] == [dtype, dtype]  # the network that looked, and once
    chosen = papr.selection(model)
    assert chosen.scores is not None
    assert chosen.scores.dtype == torch.float32
    dense = papr.unprune(model)
    tokens = dense_on_kept(case, dense, x, chosen.indices)
    expected = dense.forward_head(tokens)
    scale = expected.abs().max().clamp(min=1)
    assert (logits - expected).abs().max() < TOLERANCE[dtype] * scale


@torch.no_grad()
def test_autocast(case) -> None:
    model = prune(case.build(), 0.5)
    x = images()
    expected = model(x)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert logits.shape == expected.shape


def test_gradients_reach_the_host_and_not_the_proposal(case) -> None:
    model = prune(case.build(), 0.5).train()
    net = model.patch_embed._papr.scorer.net
    before = copy.deepcopy(net.state_dict())
    model(images()).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_gradient_checkpointing_gives_the_same_gradients(case) -> None:
    """Also when another forward pass comes before the backward pass that recomputes."""
    gradients = []
    x, other = images(2), images(2)
    for checkpointing in (False, True):
        model = prune(case.build(), 0.5).train()
        model.set_grad_checkpointing(checkpointing)
        loss = model(x).square().sum()
        model(other)
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(DEVICE.type != "cpu", reason="GPU kernels change with the batch size")
def test_an_image_keeps_its_patches_in_any_batch(case) -> None:
    model = prune(case.build(), 0.5)
    x = images(5)
    model(x)
    together = papr.selection(model).indices
    for i in range(5):
        model(x[i : i + 1])
        assert torch.equal(papr.selection(model).indices[0], together[i])


def test_threads_do_not_see_each_other(case) -> None:
    model = prune(case.build(), 0.5)
    inputs = [images(2) for _ in range(2)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    barrier = threading.Barrier(2, timeout=60)
    wrong: list[object] = []

    def run(which: int) -> None:
        try:
            for _ in range(10):
                barrier.wait()
                with torch.no_grad():
                    if not torch.equal(model(inputs[which]), expected[which]):
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
def test_dense_features_are_refused_or_honest(case) -> None:
    """Never a grid made of tokens that are not there."""
    model = case.build()
    x = images(2)
    prune(model, 0.5)
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
    model = prune(case.build(), 0.5)
    x = images()
    prune(model, 0.25)
    model(x)
    assert papr.selection(model).indices.shape == (3, 16)
    assert torch.equal(model(x), prune(case.build(), 0.25)(x))
    prune(model, 1.0)
    assert torch.equal(model(x), case.build()(x))
