"""Models that leave Python: the file answers as the model does, or there is no file."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import papr
from papr.exporting import TOLERANCE, differences
from papr.exporting.agreement import _steady, noise, smooth
from papr.exporting.plain import Plain, named_outputs
from papr.graft import Grafted
from papr.proposals.scorers import resize_by_matrices
from tiny import CASES, prune

if TorchVersion(torch.__version__) < (2, 8):
    pytest.skip("ONNX needs torch 2.8", allow_module_level=True)
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: export")
openvino = pytest.importorskip("openvino", reason="needs the extra: export")

pytestmark = [
    pytest.mark.filterwarnings("ignore::papr.PaprWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


Run = Callable[[Tensor], list[Tensor]]


def in_onnx_runtime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [
        torch.from_numpy(a) for a in session.run(None, {"pixels": pixels.numpy()})
    ]


def in_openvino(path: Path) -> Run:
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    return lambda pixels: [
        torch.from_numpy(array.copy()) for array in compiled(pixels.numpy()).values()
    ]


def in_torch(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda pixels: [program(pixels)]


RUNTIMES = {"ONNX Runtime": in_onnx_runtime, "OpenVINO": in_openvino}


@torch.no_grad()
def assert_agrees(model: nn.Module, path: Path, load, size: int, frames: int | None = None) -> None:
    """At batches 1, 3 and 8, on noise and on blobs of colour, by one loaded file."""
    model, run = model.cpu(), load(path)
    shape = (3, size, size) if frames is None else (frames, 3, size, size)
    for batch in (1, 3, 8):
        coarse = torch.randn(batch, 3 * (frames or 1), 5, 5)
        blobs = F.interpolate(coarse, size=(size, size), mode="bicubic").view(batch, *shape)
        for pixels in (torch.randn(batch, *shape), blobs):
            expected = named_outputs(model(pixels)).values()
            for got, own in zip(run(pixels), expected, strict=True):
                assert (got - own).abs().max() < TOLERANCE


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Every family, pruned, and its ONNX file."""
    torch.manual_seed(0)
    host = CASES[request.param]
    model = host.prune(host.build(depth=2), 0.5)
    written = papr.export(model, tmp_path_factory.mktemp("onnx") / "model.onnx", 64)
    return model, written


@pytest.mark.capability("ONNX Runtime")
@pytest.mark.exhaustive
def test_onnx_runtime_agrees(case) -> None:
    model, written = case
    assert_agrees(model, written.path, in_onnx_runtime, 64, written.frames)


@pytest.mark.capability("OpenVINO")
@pytest.mark.exhaustive
def test_openvino_agrees(case) -> None:
    model, written = case
    assert_agrees(model, written.path, in_openvino, 64, written.frames)


@pytest.mark.parametrize("name", ["glance", "efficientnet_lite0"])
def test_with_a_named_proposal(name: str, tmp_path: Path) -> None:
    """Real weights; of one of them pixels are renormalised and shrunk to 160 px in the file."""
    model = CASES["dinov3"].build(depth=2, img_size=192, patch_size=16)
    papr.prune(model, 0.5, name, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for format, suffix in FORMATS.items():
        written = papr.export(model, tmp_path / f"model{suffix}")
        assert (written.format, written.keep, written.grid) == (format, 0.5, (12, 12))
        assert written.size == (192, 192)
        assert set(written.differences) == {1, 3, 8}
        assert written.largest_difference < TOLERANCE
    for load in RUNTIMES.values():
        assert_agrees(model, tmp_path / "model.onnx", load, 192)
    assert_agrees(model, tmp_path / "model.pt2", in_torch, 192)
    assert max(differences(model, tmp_path / "model.onnx", "openvino").values()) < TOLERANCE


def levels(pixels: Tensor) -> Tensor:
    """Scores of two values only, so that most patches are equal."""
    cells = pixels.mean(dim=1)[:, ::8, ::8] * 0
    return cells + (torch.arange(64).view(1, 8, 8) % 3 == 0).to(cells)


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
def test_ties_are_broken_as_in_eager(keep: float, tmp_path: Path) -> None:
    """On a constant image and on tied scores; tokens leave, so that other patches would show."""
    model = CASES["augreg"].build(depth=1, num_classes=0, global_pool="")
    for name, scores in (("constant", lambda pixels: pixels.mean(1)[:, ::8, ::8]), ("two", levels)):
        papr.prune(model, keep, proposal=scores)
        pixels = torch.ones(2, 3, 64, 64)
        expected = model(pixels)
        chosen = papr.selection(model).indices
        if name == "constant":
            assert torch.equal(chosen, torch.arange(int(keep * 64)).expand(2, -1))
        written = papr.export(model, tmp_path / "tokens.onnx")
        for load in RUNTIMES.values():
            (tokens,) = load(written.path)(pixels)
            assert (tokens - expected).abs().max() < TOLERANCE


def test_the_torch_file_needs_no_papr(tmp_path: Path) -> None:
    model = papr.prune(CASES["dinov2_registers"].build(depth=2), 0.5)
    pixels = torch.randn(3, 3, 64, 64)
    papr.export(model, tmp_path / "model.pt2")
    torch.save(pixels, tmp_path / "pixels.pt")
    script = (
        "import sys, torch; program = torch.export.load('model.pt2').module();"
        "torch.save(program(torch.load('pixels.pt')), 'logits.pt');"
        "assert not {'papr', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    with torch.no_grad():
        assert (torch.load(tmp_path / "logits.pt") - model(pixels)).abs().max() < 1e-5


class Mean(nn.Module):
    """A model that can be exported."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))


class Branching(Mean):
    """Control flow that depends on data: no exporter can follow it."""

    def forward(self, pixels: Tensor) -> Tensor:
        means = super().forward(pixels)
        return means if pixels.sum() > 0 else -means


class Baked(Mean):
    """Its batch cannot vary."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).reshape(2 if pixels.shape[0] == 2 else -1, 3)


class Lying(Mean):
    """What is exported is not what is run."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) + (1e-3 if torch.compiler.is_compiling() else 0)


class LyingAboutSmoothImages(Mean):
    """Right on noise, whose mean is near zero; wrong on images."""

    def forward(self, pixels: Tensor) -> Tensor:
        means = super().forward(pixels)
        return means.clamp(-0.1, 0.1) if torch.compiler.is_compiling() else means


def other_patches() -> nn.Module:
    """A host that keeps other patches once it is exported."""

    def scores(pixels: Tensor) -> Tensor:
        cells = pixels.mean(1)[:, ::8, ::8]
        return -cells if torch.compiler.is_compiling() else cells

    return papr.prune(CASES["augreg"].build(depth=1), 0.5, proposal=scores)


@pytest.mark.parametrize("suffix", FORMATS.values())
@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, "^cannot export Branching: "),
        (Baked, "^cannot export Baked: |^the exported file cannot be run at batch 1: "),
        (Lying, r"^expected the exported file to answer within 0.0001 .* got 1.0e-03 at batch 1"),
        (LyingAboutSmoothImages, "^expected the exported file to answer within"),
        (other_patches, "^expected the exported file to answer within"),
    ],
)
def test_a_failing_export_leaves_no_file(
    model, message: str, before: bytes | None, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(papr.ExportError, match=message) as caught:
        papr.export(model().eval(), path, 64)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else [path.name])
    assert before is None or path.read_bytes() == before


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = prune(CASES["dinov3"].build(depth=1), 0.5)
    pixels = torch.randn(2, 3, 64, 64)
    expected = model(pixels)
    chosen = papr.selection(model).indices
    weights = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    for suffix in FORMATS.values():
        papr.export(model, tmp_path / f"model{suffix}", pixels)
        assert papr.selection(model).indices is chosen
    assert torch.equal(model(pixels), expected)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == weights[name][0]
        assert torch.equal(tensor, weights[name][1])


def test_dense_models_leave_too(tmp_path: Path) -> None:
    dense = CASES["augreg"].build(depth=1)
    written = papr.export(torch.compile(dense), tmp_path / "deep" / "dense.onnx")
    assert (written.keep, written.grid, written.opset) == (1.0, None, 18)
    assert (written.inputs, written.outputs) == (("pixels",), ("logits",))
    assert_agrees(dense, written.path, in_onnx_runtime, 64)
    assert [p.name for p in written.path.parent.iterdir()] == ["dense.onnx"]


def test_records_of_transformers(tmp_path: Path) -> None:
    """Of a ModelOutput leaves what is wanted, under its name."""
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(**tiny, num_labels=5)
    for cls, outputs in (
        (transformers.ViTForImageClassification, ("logits",)),
        (transformers.ViTModel, ("last_hidden_state", "pooler_output")),
    ):
        model = cls(config).eval()
        for suffix in FORMATS.values():
            written = papr.export(model, tmp_path / f"model{suffix}")
            assert (written.outputs, written.size) == (outputs, (32, 32))
    pixels = torch.randn(3, 3, 32, 32)
    hidden, pooled = in_onnx_runtime(tmp_path / "model.onnx")(pixels)
    with torch.no_grad():
        expected = model(pixels)
    assert (hidden - expected.last_hidden_state).abs().max() < TOLERANCE
    assert (pooled - expected.pooler_output).abs().max() < TOLERANCE


def test_half_precision(tmp_path: Path) -> None:
    """torch.export takes it; ONNX says why not."""
    model = prune(CASES["augreg"].build(depth=1), 0.5).bfloat16()
    assert papr.export(model, tmp_path / "model.pt2").largest_difference < TOLERANCE
    with pytest.raises(papr.ExportError, match="expected float32 weights for ONNX, got bfloat16"):
        papr.export(model, tmp_path / "model.onnx")


class Heavy(Mean):
    """More weights than one ONNX file holds, on paper."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(1).expand(600_000_000))


@pytest.mark.parametrize(
    ("model", "name", "example", "error", "message"),
    [
        (Mean, "m.bin", 32, papr.ConfigError, r"ends in \.onnx or \.pt2, or a format, got .*m.bin"),
        (Mean, ".", 32, papr.ConfigError, "expected a path that ends in"),
        (Mean, "m.onnx", None, papr.ConfigError, "Mean does not say what size it takes"),
        (Mean, "m.onnx", "input", papr.ConfigError, "expected an example"),
        (Mean, "m.onnx", 0, papr.ConfigError, "expected example to be"),
        (
            Mean,
            "m.onnx",
            torch.zeros(3, 8, 8),
            papr.ConfigError,
            r"pixels \(B, C, H, W\) or .* got a",
        ),
        (lambda: Mean().train(), "m.onnx", 32, papr.ExportError, "got Mean in training mode"),
        (Heavy, "m.onnx", 32, papr.ExportError, r"at most 2.1 GB .* got 2.4 GB: write a .pt2"),
        (lambda: nn.Linear(5, 2).eval(), "m.onnx", 32, papr.ExportError, "Linear cannot be run on"),
        (lambda: Plain(nn.Identity()).eval, "m.onnx", 32, papr.UnsupportedModelError, "nn.Module"),
        (lambda: CASES["augreg"].build(), "m.onnx", 63, papr.ExportError, "cannot be run on pixel"),
    ],
)
def test_bad_input(model, name: str, example, error, message: str, tmp_path: Path) -> None:
    built = model() if model not in (Mean, Heavy) else model().eval()
    with pytest.raises(error, match=message) as caught:
        papr.export(built, tmp_path / name, example)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Record(Mean):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, pixels: Tensor):
        return self.output


@pytest.mark.parametrize("output", ["text", {"logits": 1}, {}, [torch.zeros(1), None]])
def test_what_is_no_tensor_cannot_leave(output, tmp_path: Path) -> None:
    with pytest.raises(papr.ExportError, match="expected a model that returns tensors, got"):
        papr.export(Record(output).eval(), tmp_path / "m.onnx", 32)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it cannot be found
    with pytest.raises(papr.ExportError) as caught:
        papr.export(nn.Identity().eval(), tmp_path / "m.onnx", 32)
    assert str(caught.value) == (
        "expected the packages onnx, onnxscript, not installed: pip install 'papr-torch[export]'"
    )


class Jumping(Mean):
    """Where the second channel is negative, rounding decides the answer."""

    def forward(self, pixels: Tensor) -> Tensor:
        wild = (pixels[:, :1, 0, 0] * 1e6).floor() % 2
        return torch.where(pixels[:, 1:2, 0, 0] < 0, wild, super().forward(pixels))


@pytest.mark.parametrize("draw", [noise, smooth])
def test_images_that_rounding_decides_are_drawn_again(draw) -> None:
    with torch.no_grad():
        images = _steady(Plain(Jumping()), draw, (3, 16, 16))
    assert images.shape == (8, 3, 16, 16)
    assert len(images.flatten(1).unique(dim=0)) == 8
    # the wild answers stay now and then, by chance
    assert (images[:, 1, 0, 0] > 0).sum() >= 6


@pytest.mark.parametrize("before", [(224, 224), (64, 96), (50, 70), (33, 518)])
@pytest.mark.parametrize("after", [(160, 160), (24, 160)])
def test_the_resize_for_onnx_is_the_resize(before: tuple, after: tuple) -> None:
    pixels = torch.rand(2, 3, *before)
    expected = F.interpolate(pixels, size=after, mode="bilinear", antialias=True)
    assert (resize_by_matrices(pixels, after) - expected).abs().max() < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["augreg", "dinov3", "beit", "cait"])
def test_strict_export_and_jit_trace(name: str) -> None:
    """With a proposal that resizes, which is where traced sizes are counted with."""
    model = prune(CASES[name].build(depth=1), 0.5, proposal_size=32)
    pixels, other = torch.randn(2, 3, 64, 64), torch.randn(5, 3, 64, 64)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (pixels,), dynamic_shapes=shapes, strict=True)
    assert (exported.module()(other) - model(other)).abs().max() < 1e-5
    traced = torch.jit.trace(model, pixels)
    assert (traced(other) - model(other)).abs().max() < 1e-5
    assert any(isinstance(module, Grafted) for module in model.modules())
