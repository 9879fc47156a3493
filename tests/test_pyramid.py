"""What is particular to hosts with stages: which are pruned, what each keeps, what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import papr
from conftest import DEVICE
from operations import more, operations
from papr.graft import Grafted, states
from papr.proposals.scorers import Scorer
from papr.reducers import windows
from papr.selecting import kept_count, select
from papr.significance import to_grid
from tiny import CASES
from tiny_case import proposal
from tiny_pyramid import PYRAMID_CASES, KeptCase

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, device=DEVICE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "convnext", "hf_swin", "torchvision_convnext"])
def test_each_stage_has_its_own_selection(name: str) -> None:
    """The same scores, resized to each stage's own grid."""
    case = PYRAMID_CASES[name]
    model = case.prune(case.build(), 0.4)
    x = images(2, 64, 96) if name != "swin" else images()
    case.logits(model, x)
    raw = proposal().scorer(x.device, x.dtype, host_mean=None)(x)
    rows, columns = x.shape[2] // 4, x.shape[3] // 4
    for stage in range(2):
        chosen = papr.selection(model, stage)
        grid = (rows >> stage, columns >> stage)
        assert chosen.grid == grid
        count = kept_count(0.4, grid[0] * grid[1])
        assert torch.equal(chosen.indices, select(to_grid(raw, grid), count).indices)
    assert papr.selection(model).grid == (rows, columns)


@torch.no_grad()
def test_the_proposal_runs_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda *args: calls.append(1) or forward(*args))
    case = PYRAMID_CASES["swin"]
    case.logits(case.prune(case.build(), 0.5), images())
    assert calls == [1]


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMID_CASES)
def test_stages_left_dense(name: str) -> None:
    """Only stage 1 is pruned: the answer is the oracle's, and stage 0 is not touched."""
    case = PYRAMID_CASES[name]
    model = case.prune(case.build(), 0.5, stages=[1])
    dense = case.build()
    x = images()
    answer = case.logits(model, x)
    assert (answer - case.logits_on_kept(dense, x, model)).abs().max() < 1e-5
    assert papr.selection(model).grid == (8, 8)
    with pytest.raises(papr.SelectionError, match=r"expected a stage among \[1\], got 0"):
        papr.selection(model, stage=0)
    for stage, block in case.blocks(model):
        assert any(isinstance(m, Grafted) for m in block.modules()) == (stage == 1)


def bound(name: str) -> int:
    """Operations that a block may have more when it is pruned; on a fast GPU each is a launch.

    Swin: rows are taken, and put among zeros. ConvNeXt: rows of the shortcut are taken too, or the
    map is made zero elsewhere. Kept attention needs no more than dense attention with its rolls and
    windows; in transformers, whose layers hand it those, it takes their rows and puts them back.
    """
    if isinstance(PYRAMID_CASES[name], KeptCase):
        return 12 if name.startswith("hf") else 0
    return 4 if "convnext" in name else 3


@torch.no_grad()
@pytest.mark.parametrize("name", PYRAMID_CASES)
def test_how_many_operations_a_pruned_block_has_more(name: str) -> None:
    """Two blocks, the grid of one shifted where there are windows; none is the first of a kind."""
    case, x = PYRAMID_CASES[name], images()

    def names(depth: int, pruned: bool) -> list[str]:
        model = case.build(depth)
        return operations(case.logits, case.prune(model) if pruned else model, x)

    dense, pruned = ([names(depth, p) for depth in (2, 4)] for p in (False, True))
    added = len(pruned[1]) - len(pruned[0]) - (len(dense[1]) - len(dense[0]))
    assert added <= 2 * bound(name), more(pruned[1], dense[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "swin_kept_padded", "hf_convnext", "convnext"])
def test_what_blocks_share_is_not_held_beyond_their_stage(name: str) -> None:
    """Row indices stay with the selection; masks and windows are gone when the stage has ended."""
    case = PYRAMID_CASES[name]
    model = case.prune(case.build())
    with states(model)[0].passes.watched() as seen:
        case.logits(model, images())
    for part in seen[0]:
        assert part is not None
        assert set(part[3]) == {"rows", "shared", "taken"}
        assert part[3]["shared"] == {}


@torch.no_grad()
def test_a_window_without_kept_patches_is_finite() -> None:
    """All kept patches in one corner: the other windows have no keys at all."""
    case = PYRAMID_CASES["swin_kept"]
    model = case.build()
    corner = torch.zeros(1, 16, 16, device=DEVICE)
    corner[:, :4, :4] = 1
    papr.prune(model, 0.0625, lambda pixels: corner, attention="kept")
    with torch.enable_grad():
        answer = model(images(1))
        answer.sum().backward()
    assert answer.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["swin_kept", "torchvision_swin_v2_kept", "hf_swin_kept"])
def test_an_image_that_is_not_finite_spoils_no_other(name: str, grad: bool) -> None:
    """What stands where a key is masked is of the same image: 0 times NaN is NaN."""
    case, scores = PYRAMID_CASES[name], torch.rand(2, 16, 16, device=DEVICE)
    model = papr.prune(case.build(2), 0.5, lambda x: scores, **case.pruning)
    x = images()
    with torch.set_grad_enabled(grad):
        expected = case.logits(model, x)[1]
        x[0] = torch.nan
        assert torch.equal(case.logits(model, x)[1], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_kept_padded", "torchvision_swin_v2_kept", "hf_swin_kept"])
def test_masks_as_cuda_wants_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of masks that lie further apart in memory change no answer."""
    case, x = PYRAMID_CASES[name], images()
    model = case.prune(case.build())
    wanted, strides = case.logits(model, x), []
    fused = F.scaled_dot_product_attention

    def seen(q, k, v, mask, **options):
        strides.append(mask.stride())
        return fused(q, k, v, mask, **options)

    monkeypatch.setattr(windows, "_aligned", lambda area, device: area + 24 + -area % 8)
    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    assert (case.logits(model, x) - wanted).abs().max() < 1e-6
    assert len(strides) == 4
    assert all(stride % 8 == 0 and last == 1 for *rows, last in strides for stride in rows)


@torch.no_grad()
def test_keeping_nearly_all_is_nearly_dense() -> None:
    """One patch of 256 pruned in one stage: kept attention differs little from dense."""
    case = PYRAMID_CASES["swin_kept_padded"]
    model, x = case.build(), images()
    dense = model(x)
    case.prune(model, 0.999, stages=[0])
    assert 0 < (model(x) - dense).abs().max() < 0.1 * dense.abs().max()
    assert papr.selection(model).indices.shape == (2, 255)


def test_a_reentrant_checkpoint_is_refused() -> None:
    """It loses the block's input, and with it which pass the block belongs to."""
    case = PYRAMID_CASES["convnext"]
    model = case.prune(case.build(), 0.5).train()

    class Reentrant(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.block, x, use_reentrant=True)

    blocks = model.stages[1].blocks
    blocks[0] = Reentrant(blocks[0])
    loss = model(images()).sum()
    with pytest.raises(papr.SelectionError, match="use_reentrant=False"):
        loss.backward()


def test_a_whole_model_under_a_checkpoint() -> None:
    case = PYRAMID_CASES["swin"]
    gradients = []
    x, other = images(), images()
    for wrapped in (False, True):
        model = case.prune(case.build(), 0.5).train()
        run = (lambda t, m=model: checkpoint(m, t, use_reentrant=False)) if wrapped else model
        loss = run(x).square().sum()
        run(other)
        chosen = papr.selection(model).indices
        loss.backward()
        assert torch.equal(papr.selection(model).indices, chosen)  # still the last forward pass
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin", {"stages": [2]}, r"expected stages that SwinTransformer has, got \(2,\).*0 to 1"),
        ("augreg", {"stages": [0]}, "expected stages that VisionTransformer has.*no stages"),
        ("swin", {"stages": []}, "expected stages to be distinct numbers"),
        ("swin", {"stages": [0, 0]}, "expected stages to be distinct numbers"),
        ("swin", {"stages": "01"}, "expected stages to be distinct numbers"),
        ("swin", {"attention": "some"}, 'expected attention "dense" or "kept", got'),
        ("augreg", {"attention": "kept"}, 'expected attention="dense" for a timm VisionTransf'),
        ("convnext", {"attention": "kept"}, 'expected attention="dense" for a timm ConvNeXt'),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict, message: str) -> None:
    model = CASES[name].build()
    with pytest.raises(papr.ConfigError, match=message) as caught:
        CASES[name].prune(model, 0.5, **options)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)


def test_configuration_round_trip() -> None:
    config = papr.PruneConfig(0.5, stages=[3, 1], attention="kept")
    assert config.stages == (1, 3)
    assert papr.PruneConfig.from_json(config.to_json()) == config
