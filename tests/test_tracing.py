"""Pruned hosts under tracers: torch.jit, the older ONNX exporter, OpenVINO; and batches of none."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import papr
from tiny import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore")

#: One of each way to cut.
TRACED = [
    *("augreg", "hf_dinov3", "hf_beit", "torchvision", "hf_videomae"),
    *("augreg_merged", "hf_vit_pooled", "convnext", "convnext_v2_conv_mlp"),
    *("torchvision_convnext", "hf_dinov3_convnext", "swin", "swin_kept_padded"),
    *("torchvision_swin_kept_padded", "hf_swin_v2_kept"),
]
CONVERTED = ["augreg", "convnext", "torchvision_convnext", "swin_kept_padded", "hf_swin_v2_kept"]
#: Whose dense hosts answer a batch of none; the others reshape by -1, which fails there.
EMPTY = [
    *("augreg", "siglip", "parallel", "hybrid", "cait", "hf_timm", "torchvision"),
    *("augreg_merged", "torchvision_merged"),
    *(name for name in CASES if "convnext" in name or name.startswith("torchvision_swin")),
]


class Logits(nn.Module):
    """What a case wants of its host, as one module."""

    def __init__(self, case: Case, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self._case = case

    def forward(self, pixels: Tensor) -> Tensor:
        return self._case.logits(self.host, pixels)


def pruned(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A host to trace, pixels to trace it with, others, and the answer to those."""
    case = CASES[name]
    host = Logits(case, case.prune(case.build(depth=2), 0.5)).eval()
    pixels, others = case.pixels(2).cpu(), case.pixels(2).cpu()
    return host.cpu(), pixels, others, host(others)


@torch.no_grad()
@pytest.mark.parametrize("name", TRACED)
def test_a_traced_host_answers_as_the_host_does(name: str) -> None:
    host, pixels, others, expected = pruned(name)
    traced = torch.jit.trace(host, pixels, check_trace=False)
    assert (traced(others) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", CONVERTED)
def test_the_older_onnx_exporter_writes_what_answers_alike(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    host, pixels, others, expected = pruned(name)
    path = str(tmp_path / "host.onnx")
    try:
        torch.onnx.export(host, (pixels,), path, dynamo=False, opset_version=18)
    except TypeError as error:
        pytest.skip(f"this torch has it no more: {error}")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: others.numpy()})
    assert (torch.from_numpy(answer) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
@pytest.mark.parametrize("name", ["convnext", "swin_kept_padded"])
def test_openvino_converts_the_module_itself(name: str) -> None:
    import openvino

    host, pixels, others, expected = pruned(name)
    converted = openvino.convert_model(host, example_input=pixels)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    answer = openvino.Core().compile_model(converted, "CPU", options)(others.numpy())[0]
    assert (torch.from_numpy(answer.copy()) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_is_answered_as_the_dense_host_answers_it(name: str) -> None:
    case = CASES[name]
    model, nothing = case.build(depth=2), case.pixels(2)[:0]
    expected = case.logits(model, nothing)
    case.prune(model, 0.5)
    assert case.logits(model, nothing).shape == expected.shape
    assert papr.selection(model).mask().shape == (0, *case.grid())
