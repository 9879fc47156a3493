"""Video hosts leave Python with the proposals and scores that only they have."""

from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

import papr
from papr.exporting import TOLERANCE, differences
from tiny_video import FRAMES, VIDEO_CASES

pytestmark = [
    pytest.mark.filterwarnings("ignore::papr.PaprWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

MAE = VIDEO_CASES["hf_videomae"]


@pytest.fixture
def model() -> torch.nn.Module:
    """A clip network that sees fewer frames and pixels than there are, mixed with motion."""
    torch.manual_seed(0)
    who = papr.Proposal("x3d_s", pretrained=False, size=(3, 48, 40))
    return papr.prune(MAE.build(depth=1), 0.5, who, score="motion")


@torch.no_grad()
def test_compiled_in_one_graph(model: torch.nn.Module) -> None:
    torch._dynamo.reset()
    clips = MAE.pixels(2)
    expected = model(clips).logits
    try:
        found = torch.compile(model, fullgraph=True, backend="eager")(clips).logits
    except torch._dynamo.exc.Unsupported as error:
        pytest.skip(f"torch 2.6 does not compile transformers 5.0: {str(error).splitlines()[0]}")
    assert torch.equal(found, expected)


@pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 8), reason="ONNX needs torch 2.8")
def test_one_file_answers_as_the_model_does(model: torch.nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra: export")
    pytest.importorskip("openvino", reason="needs the extra: export")
    written = papr.export(model, tmp_path / "clip.onnx")
    assert (written.frames, written.size, written.grid) == (FRAMES, (64, 64), (4, 4, 4))
    assert written.largest_difference < TOLERANCE
    assert max(differences(model, written.path, "openvino").values()) < TOLERANCE


def test_a_host_that_reuses_its_map_is_not_exported(tmp_path: Path) -> None:
    """A file has no memory of the last clip."""
    model = papr.prune(MAE.build(depth=1), 0.5, reuse=3)
    with pytest.raises(papr.ExportError, match="expected reuse=1"):
        papr.export(model, tmp_path / "clip.pt2")
    assert list(tmp_path.iterdir()) == []
