"""torch.compile and torch.export: right in every order, one graph, no recompilation."""

import contextlib
import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import papr
from conftest import DEVICE
from tiny import CASES, Case, prune

pytestmark = [
    pytest.mark.filterwarnings("ignore::papr.PaprWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)


class CountingBackend:
    """Runs the captured graph as it is and counts how many were captured."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest):
    return CASES[request.param]


@contextlib.contextmanager
def compiles_where_dense_does(case: Case) -> Iterator[None]:
    """Skip what the dense host cannot do either: torch 2.6 does not compile transformers 5.0."""
    try:
        yield
    except torch._dynamo.exc.Unsupported:
        torch._dynamo.reset()
        dense = torch.compile(case.build(depth=1), fullgraph=True, backend=CountingBackend())
        try:
            dense(case.pixels(2))
        except torch._dynamo.exc.Unsupported as error:
            pytest.skip(f"the dense host does not compile either: {str(error).splitlines()[0]}")
        raise


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "augreg",
        "dinov3",
        "cait",
        "beit",
        "beit_shared",
        "hf_vit",
        "hf_dinov3",
        "hf_beit",
        "hf_beit_shared",
        "hf_timm",
        "hf_videomae",
        "hf_vjepa2",
        pytest.param(
            "torchvision",
            marks=pytest.mark.skipif(
                OLD_TORCH, reason="its fast path knows no symbolic sizes in torch 2.6"
            ),
        ),
        "swin",
        "swin_v2",
        "swin_kept",
        "convnext",
        "convnext_conv_mlp",
        "torchvision_swin_kept",
    ],
)
def test_every_order(name: str, backend: CountingBackend) -> None:
    """Dense, pruned, another keep, unpruned: each answer of compiled code is eager's.

    One host for each behaviour that is grafted; all hosts compile in the tests below.
    """
    case = CASES[name]
    model = case.build(depth=2)
    x = case.pixels(2)
    eager = {}
    for keep in (0.5, 0.25):
        eager[keep] = case.logits(case.prune(copy.deepcopy(model), keep), x)
    eager[1.0] = case.logits(model, x)

    with compiles_where_dense_does(case):
        check_every_order(case, model, x, eager, backend)


def check_every_order(case: Case, model, x, eager: dict, backend: CountingBackend) -> None:
    # a dense model of the same class, compiled earlier in the process: what hooks fail at
    other = torch.compile(case.build(depth=2), fullgraph=True, backend=backend)
    assert case.same(case.logits(other, x), eager[1.0])
    compiled = torch.compile(case.prune(model, 0.5), fullgraph=True, backend=backend)
    assert case.same(case.logits(compiled, x), eager[0.5])
    assert papr.selection(compiled).indices.shape == (2, case.patches() // 2)
    assert case.same(case.logits(other, x), eager[1.0])

    case.prune(compiled, 0.25)
    assert case.same(case.logits(compiled, x), eager[0.25])
    assert papr.selection(model).indices.shape == (2, case.patches() // 4)
    papr.unprune(compiled)
    assert case.same(case.logits(compiled, x), eager[1.0])
    case.prune(compiled, 0.5)
    assert case.same(case.logits(compiled, x), eager[0.5])
    case.prune(compiled, 1.0)
    assert case.same(case.logits(compiled, x), eager[1.0])


@pytest.mark.capability("torch.compile")
@torch.no_grad()
def test_no_recompilation_over_ten_batches(case, backend: CountingBackend) -> None:
    model = case.prune(case.build(depth=2), 0.5)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(10):
        x = case.pixels(2)
        with compiles_where_dense_does(case):
            answer = case.logits(compiled, x)
        assert papr.selection(compiled).mask().sum() == case.patches()
        assert case.same(answer, case.logits(model, x))
    assert backend.graphs == 1


#: Of a host, sizes that its patches fill and sizes that they do not.
SIZES = {
    # not 32, the size that the proposal looks at: not to resize is a graph of its own
    "dynamic_padded": [(64, 64), (96, 64), (88, 72), (72, 72)],
    "convnext": [(65, 65), (67, 66), (72, 76), (70, 73), (96, 64)],
}


@torch.no_grad()
@pytest.mark.parametrize("name", list(SIZES))
def test_other_sizes_recompile_no_more_than_dense(name: str) -> None:
    """Batches and image sizes that change: as many graphs as the dense host needs."""
    graphs = []
    for keep in (1.0, 0.5):
        torch._dynamo.reset()
        backend = CountingBackend()
        model = CASES[name].build(**({"depth": 1} if name == "dynamic_padded" else {}))
        if keep < 1:
            look = nn.Conv2d(3, 8, 8, stride=8)  # test_proposals.py compiles the named ones so
            papr.prune(model, keep, proposal=look, proposal_size=32)
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for height, width in SIZES[name]:
            for batch in (2, 3):
                x = torch.randn(batch, 3, height, width, device=DEVICE)
                assert (compiled(x) - model(x)).abs().max() < 1e-5
        graphs.append(backend.graphs)
    dense, pruned = graphs
    assert pruned <= dense


@torch.no_grad()
def test_moved_or_unpickled_before_the_first_compiled_call(backend: CountingBackend) -> None:
    model = prune(CASES["augreg"].build(), 0.5).to(torch.float64)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, device=DEVICE)
    for twin in (model, copy.deepcopy(model)):
        compiled = torch.compile(twin, fullgraph=True, backend=backend)
        logits = compiled(x)
        assert torch.equal(logits, model(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["augreg", "beit"])
def test_compiled_in_parts(name: str, backend: CountingBackend) -> None:
    """Entry compiled and cut eager, and the other way round, after passes of every kind."""
    x, other = (torch.randn(2, 3, 64, 64, device=DEVICE) for _ in range(2))
    for part in ("patch_embed", "patch_drop" if name == "augreg" else "pos_drop"):
        model = prune(CASES[name].build(depth=1), 0.5)
        expected = model(x)
        chosen = papr.selection(model).indices
        model(other)
        model.get_submodule(part).compile(fullgraph=True, backend=backend)
        for _ in range(2):
            assert torch.equal(model(x), expected)
            assert torch.equal(papr.selection(model).indices, chosen)


@torch.no_grad()
def test_no_selection_outlives_its_pass(backend: CountingBackend) -> None:
    """After whole passes, compiled and eager, tokens alone find nothing to be cut by."""
    model = prune(CASES["augreg"].build(depth=1), 0.5)
    x, tokens = torch.randn(2, 3, 64, 64, device=DEVICE), torch.randn(2, 65, 48, device=DEVICE)
    torch.compile(model, fullgraph=True, backend=backend)(x)
    with pytest.raises(papr.SelectionError, match="got tokens only"):
        model.patch_drop(tokens)
    model(x)
    with pytest.raises(papr.SelectionError, match="got tokens only"):
        model.patch_drop(tokens)
    model.patch_drop.compile(fullgraph=True, backend=backend)
    model(x)
    with pytest.raises(Exception, match="got tokens only"):
        model.patch_drop(tokens)


@torch.no_grad()
def test_eager_after_compiled_and_back(backend: CountingBackend) -> None:
    model = prune(CASES["augreg"].build(depth=1), 0.5)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    inputs = [torch.randn(2, 3, 64, 64, device=DEVICE) for _ in range(2)]
    masks = []
    for x in inputs:
        model(x)
        masks.append(papr.selection(model).indices)
    for turn in range(6):
        which, run = turn % 2, compiled if turn % 3 == 0 else model
        run(inputs[which])
        assert torch.equal(papr.selection(model).indices, masks[which])


@torch.no_grad()
def test_compiled_in_place(backend: CountingBackend) -> None:
    model = CASES["augreg"].build()
    x = torch.randn(2, 3, 64, 64, device=DEVICE)
    dense, pruned = model(x), prune(copy.deepcopy(model), 0.5)(x)
    model.compile(fullgraph=True, backend=backend)
    assert torch.equal(model(x), dense)
    assert torch.equal(prune(model, 0.5)(x), pruned)
    assert torch.equal(papr.unprune(model)(x), dense)
    assert backend.graphs > 0


@torch.no_grad()
@pytest.mark.skipif(
    DEVICE.type == "cpu" and shutil.which("c++") is None,
    reason="inductor needs a C++ compiler on a CPU",
)
def test_inductor_with_glance() -> None:
    """The default backend, proposal and host in one graph."""
    model = papr.prune(CASES["augreg"].build(depth=1), 0.5)
    x = torch.randn(2, 3, 64, 64, device=DEVICE)
    expected = model(x)
    chosen = papr.selection(model).indices
    logits = torch.compile(model, fullgraph=True)(x)
    assert torch.equal(papr.selection(model).indices, chosen)
    assert (logits - expected).abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.skipif(
    DEVICE.type == "cpu" and shutil.which("c++") is None,
    reason="inductor needs a C++ compiler on a CPU",
)
def test_reduce_overhead() -> None:
    """CUDA graphs where there is CUDA, compiled code elsewhere: answers and selections."""
    model = prune(CASES["augreg"].build(depth=1), 0.5)
    inputs = [torch.randn(1, 3, 64, 64, device=DEVICE) for _ in range(5)]
    expected = [(model(x), papr.selection(model).indices) for x in inputs]
    graphed = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    counters.clear()
    for x, (logits, kept) in zip(inputs, expected, strict=True):
        answer = graphed(x)
        assert torch.equal(papr.selection(model).indices, kept)
        assert (answer - logits).abs().max() < 1e-4
    if DEVICE.type == "cuda":  # nothing kept a graph from being recorded
        assert counters["inductor"]["cudagraph_skips"] == 0


@torch.inference_mode()
@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA has graphs that overwrite")
def test_what_graphs_overwrote_is_an_error_and_no_other_pass() -> None:
    model = prune(CASES["augreg"].build(depth=1), 0.5)
    graphed = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    x, other = (torch.randn(1, 3, 64, 64, device=DEVICE) for _ in range(2))
    for _ in range(3):
        graphed(x)
    before, kept = papr.selection(model), papr.selection(model).indices.clone()
    graphed(other)
    with pytest.raises(RuntimeError, match="overwritten"):
        before.mask()
    graphed(x)
    assert torch.equal(papr.selection(model).indices, kept)


@torch.inference_mode()
@pytest.mark.skipif(OLD_TORCH, reason="torch 2.6 marks them otherwise")
@pytest.mark.parametrize("name", ["augreg", "swin_kept", "convnext", "hf_videomae"])
def test_a_graph_copies_pixels_only(name: str) -> None:
    """The proposal's weights, which lie outside the host's module tree, are taken for weights.

    Otherwise the replay of a CUDA graph would copy them at every call.
    """
    copied: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        for node in graph.graph.find_nodes(op="placeholder"):
            if "_dynamo_static_input_type" not in node.meta.get("tensor_dict", {}):
                copied.append(node.name)
        return graph.forward

    case = CASES[name]
    model = case.prune(case.build(depth=1), 0.5)
    case.logits(torch.compile(model, fullgraph=True, backend=backend), case.pixels(1))
    assert len(copied) == 1


@pytest.mark.capability("torch.export")
@pytest.mark.exhaustive
@torch.no_grad()
def test_export_with_a_dynamic_batch(case) -> None:
    model = case.prune(case.build(depth=2), 0.5)
    batch = torch.export.Dim("batch", min=2, max=16)
    x = case.pixels(3)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    with pytest.raises(papr.SelectionError, match="forward pass"):
        papr.selection(model)
    for size in (2, 8):
        x = case.pixels(size)
        assert (case.logits(exported.module(), x) - case.logits(model, x)).abs().max() < 1e-5
