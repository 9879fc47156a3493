"""What the caller has set for his own code changes nothing of what papr builds, and stays set."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import papr
from conftest import DEVICE
from papr import hub
from papr.ambient import neutral
from papr.baselines import centre_scores, random_scores, stride_scores
from papr.budgets import budgets
from papr.exporting.agreement import noise, smooth
from papr.graft import states
from papr.motion import motion_map
from tiny import CASES, TinyProposal

Ambient = Callable[[], contextlib.AbstractContextManager]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def everything() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("float16", "meta", "autocast", "coarse products", "inference"):
            stack.enter_context(AMBIENT[name]())
        yield


AMBIENT: dict[str, Ambient] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: default_device("meta"),
    "cpu": lambda: torch.device("cpu"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "coarse products": coarse_products,
    "everything": everything,
}


@pytest.fixture(params=AMBIENT)
def ambient(request: pytest.FixtureRequest) -> Ambient:
    return AMBIENT[request.param]


def set_for_now() -> tuple[object, ...]:
    """What must be afterwards as it was."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch._C._get_mkldnn_enabled(),
        torch.get_rng_state().tolist(),
        [torch.cuda.get_rng_state().tolist()] if torch.cuda.is_available() else [],
    )


def scorer_of(host: nn.Module) -> dict[str, Tensor]:
    scorer = states(host)[0].scorer
    return {**scorer.state_dict(), **{n: b for n, b in scorer.named_buffers() if b is not None}}


JOBS = {
    "module": ("augreg", TinyProposal, {}),
    "merging": ("augreg", TinyProposal, {"merge": papr.Merge(4)}),
    "torchvision": ("torchvision", TinyProposal, {"recut": papr.Recut(0.5, by="attention")}),
    "pyramid": ("swin", TinyProposal, {"attention": "kept"}),
}


def check_same(job: tuple, ambient: Ambient) -> None:
    name, source, options = job
    case = CASES[name]
    images = case.pixels()
    torch.manual_seed(3)
    net = source().eval() if isinstance(source, type) else source
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def pruned() -> nn.Module:
        own = {} if isinstance(net, str) else statistics
        return papr.prune(host, 0.5, papr.Proposal(net, **own), **statistics, **options)

    host = case.build()
    plain = pruned()
    with torch.no_grad():
        expected = case.logits(plain, images)
    host = case.build()
    with ambient():
        before = set_for_now()
        other = pruned()
        assert set_for_now() == before
    with torch.no_grad():
        assert torch.equal(case.logits(other, images), expected)
    ours, theirs = scorer_of(other), scorer_of(plain)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert not value.is_inference()
        assert torch.equal(value, theirs[key])


@pytest.mark.parametrize("job", JOBS)
def test_a_host_is_pruned_the_same_under_any_ambient_state(job: str, ambient: Ambient) -> None:
    check_same(JOBS[job], ambient)


@pytest.mark.parametrize(
    ("name", "score"), [("glance", "significance"), ("efficientnet_lite0", "softcam")]
)
def test_a_named_proposal_is_loaded_the_same_under_all_of_it(name: str, score: str) -> None:
    check_same(("augreg", name, {"score": score}), everything)


@pytest.mark.parametrize("name", ["bfloat16", "float64", "meta", "cpu"])
@pytest.mark.parametrize("host", ["augreg", "hf_videomae", "augreg_merged", "swin_kept"])
def test_a_pruned_host_answers_the_same_under_any_default(host: str, name: str) -> None:
    case = CASES[host]
    images = case.pixels()
    model = case.prune(case.build(), 0.5)
    with torch.no_grad():
        expected = case.logits(model, images)
        again = case.prune(
            case.build(), 0.5
        )  # whose scorer is made in the pass: no copy of `model`
        with AMBIENT[name]():
            assert torch.equal(case.logits(again, images), expected)
        assert torch.equal(papr.selection(again).mask(), papr.selection(model).mask())


def test_a_network_made_by_name_is_the_same_under_any_ambient_state(ambient: Ambient) -> None:
    torch.manual_seed(1)
    plain = hub.create("test_vit", pretrained=False).state_dict()
    torch.manual_seed(1)
    with ambient():
        before = set_for_now()[:-2]
        other = hub.create("test_vit", pretrained=False).state_dict()
        assert set_for_now()[:-2] == before
    for key, value in plain.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key])


def test_scores_and_pictures_that_papr_draws_do_not_follow_the_defaults(ambient: Ambient) -> None:
    pixels = torch.rand(2, 3, 32, 32, device=DEVICE)
    clip = torch.rand(2, 3, 4, 32, 32, device=DEVICE)
    shape = (3, 32, 32)

    def drawn() -> list[Tensor]:
        scores = [make()(pixels) for make in (random_scores, centre_scores, stride_scores)]
        images = [draw(2, shape, torch.Generator().manual_seed(1)) for draw in (noise, smooth)]
        kept = budgets(pixels[:, 0], 0.5, 0.5)
        return [*scores, *images, kept, motion_map(clip, (1, 4, 4)), motion_map(clip, (2, 4, 4))]

    expected = drawn()
    with ambient():
        found = drawn()
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_what_is_meant_to_be_random_moves_the_random_state_and_nothing_else_does() -> None:
    before = torch.get_rng_state()
    with neutral(seed=3):
        first = torch.rand(4)
    with neutral(seed=3):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)
    one, other = (papr.Proposal("x3d_s", pretrained=False) for _ in range(2))
    pairs = zip(one.net.parameters(), other.net.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(torch.get_rng_state(), before)


def in_threads(jobs: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_spells_of_two_threads_do_not_overlap() -> None:
    inside, overlapped = threading.Event(), []

    def first() -> None:
        with neutral():
            inside.set()
            overlapped.append(second_in.wait(0.3))

    def second() -> None:
        inside.wait()
        with neutral():
            second_in.set()

    second_in = threading.Event()
    with default_dtype(torch.bfloat16):
        in_threads([first, second])
        assert torch.get_default_dtype() == torch.bfloat16
    assert overlapped == [False]


def test_what_other_threads_draw_while_a_host_is_pruned_stays_drawn() -> None:
    class Drawing(nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            in_threads([lambda: drawn.append(torch.rand(4))])
            return super().forward(x)

    drawn: list[Tensor] = []
    host = CASES["augreg"].build()
    for block in host.blocks:
        block.mlp.act = Drawing()
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    proposal = papr.Proposal(TinyProposal().eval(), **statistics)
    torch.manual_seed(5)
    papr.prune(host, 0.5, proposal, merge=papr.Merge(4), **statistics)
    assert drawn
    drawn.append(torch.rand(4))
    torch.manual_seed(5)
    assert all(torch.equal(t, torch.rand(4)) for t in drawn)
