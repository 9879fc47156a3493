"""score="softcam": the map against NumPy, and everything else that holds for the channel mean."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from typer.testing import CliRunner

import papr
import reference
from conftest import DEVICE
from papr import images
from papr.baselines import centre_scores
from papr.cli import app
from papr.errors import ConfigError, ProposalError
from papr.proposals import wheels
from tiny import CASES, TinyProposal

CPU = torch.device("cpu")
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class TinyClassifier(nn.Module):
    """The small ConvNet with classes, sure of some of them: as timm's are, or with a twist."""

    def __init__(self, twist: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.twist = TinyProposal(), nn.Linear(12, 7), twist
        nn.init.normal_(self.head.weight, std=3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.forward_features(x).mean((2, 3))
        return self.head(pooled.relu() if self.twist else pooled)

    def get_classifier(self) -> nn.Module:
        return self.head


def small(name: str, **options: object) -> nn.Module:
    """A small random classifier of timm, with batch norms that are not the identity."""
    torch.manual_seed(0)
    net = timm.create_model(name, **{"num_classes": 7, **options}).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    if options.get("num_classes") != 0:
        nn.init.normal_(net.get_classifier().weight, std=2)
    return net


def map_by_hand(net: nn.Module, pixels: Tensor) -> np.ndarray:
    """The sum over classes of probability times class activation map, class by class."""
    with torch.no_grad():
        features = net.forward_features(pixels).double().numpy()
    weight = net.get_classifier().weight.detach().double().numpy()
    bias = net.get_classifier().bias.detach().double().numpy()
    maps = np.zeros((len(features), *features.shape[2:]))
    for i, image in enumerate(features):
        logits = weight @ image.mean(axis=(1, 2)) + bias
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        for c, p in enumerate(probabilities):
            maps[i] += p * np.tensordot(weight[c], image, 1)
    return maps


def pruned(keep: float = 0.5, net: nn.Module | None = None, **options: object) -> nn.Module:
    """A small host, pruned by what the classes of a small network say."""
    model = CASES["augreg"].build(depth=1)
    options = {"score": "softcam", "proposal": net or TinyClassifier(), **HALF, **options}
    return papr.prune(model, keep, **options)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_map_and_selection_are_numpys(name: str) -> None:
    net, x = small(name), torch.randn(3, 3, 96, 96)
    own = {key: net.pretrained_cfg[key] for key in ("mean", "std")}  # pixels stay as they are
    wanted = map_by_hand(net, x)
    found = papr.Proposal(net, size="input").scorer(CPU, torch.float32, score="softcam")(x)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    model = CASES["augreg"].build(depth=1, size=(96, 96))
    papr.prune(model, 0.25, net, proposal_size="input", score="softcam", **own)
    model(x.to(DEVICE))
    scores = np.stack([reference.bicubic(image, 12, 12) for image in wanted])
    assert papr.selection(model).indices.cpu().tolist() == reference.kept(scores, 36).tolist()
    mean = papr.prune(copy.deepcopy(model), 0.25, net, proposal_size="input", **own)
    mean(x.to(DEVICE))
    assert not torch.equal(papr.selection(model).indices, papr.selection(mean).indices)


@torch.no_grad()
def test_a_named_network_gets_its_classifier_when_it_is_asked_for() -> None:
    """Real weights, folded and run at their own size, against the classifier as it is."""
    proposal = papr.Proposal(wheels.LITE0)
    assert proposal._head is None
    x = torch.rand(2, 3, 96, 96) * 2 - 1
    found = proposal.scorer(CPU, torch.float32, "input", score="softcam")(x)
    wanted = map_by_hand(wheels.classifier(wheels.LITE0), x)
    assert np.abs(found.numpy() - wanted).max() < 1e-3 * np.abs(wanted).max()
    again = pickle.loads(pickle.dumps(proposal))
    assert torch.equal(again.scorer(CPU, torch.float32, "input", score="softcam")(x), found)


@torch.no_grad()
def test_copies_keep_the_same_patches() -> None:
    model, x = pruned(), torch.randn(2, 3, 64, 64, device=DEVICE)
    logits = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), logits)
    assert not any("head" in key and "_papr" in key for key in model.state_dict())


@torch.no_grad()
def test_in_other_dtypes_the_map_is_float32() -> None:
    """In a bfloat16 host and under autocast: the head itself computes in float32."""
    model, x = pruned().to(torch.bfloat16), torch.randn(2, 3, 64, 64, device=DEVICE)
    model(x.bfloat16())
    assert papr.selection(model).scores.dtype == torch.float32
    scorer = model.patch_embed._papr.scorer
    assert scorer.reduce.weight.dtype == torch.float32
    features = torch.randn(2, scorer.reduce.weight.shape[1], 3, 3, device=DEVICE)
    wanted = scorer.reduce(features)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(scorer.reduce(features), wanted)


@torch.no_grad()
def test_alone_or_batched() -> None:
    model, x = pruned(), torch.randn(4, 3, 64, 64, device=DEVICE)
    model(x)
    together = papr.selection(model).indices
    for image, kept in zip(x.split(1), together, strict=True):
        model(image)
        assert torch.equal(papr.selection(model).indices[0], kept)


@torch.no_grad()
def test_compiled_and_exported() -> None:
    model, x = pruned(), torch.randn(3, 3, 64, 64, device=DEVICE)
    logits, kept = model(x), papr.selection(model).indices
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), logits)
    assert torch.equal(papr.selection(compiled).indices, kept)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        expected = model(x)
        assert torch.equal(compiled(x), expected)
    torch._dynamo.reset()
    batch = torch.export.Dim("batch", min=2, max=16)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    for size in (2, 5):
        x = torch.randn(size, 3, 64, 64, device=DEVICE)
        assert (exported.module()(x) - model(x)).abs().max() < 1e-5


@pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 8), reason="ONNX needs torch 2.8")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra: export")
    model, x = pruned().cpu(), torch.randn(3, 3, 64, 64)
    path = tmp_path / "host.onnx"
    papr.export(model, path, x)
    session = runtime.InferenceSession(path)
    answer = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert np.abs(answer - model(x).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("proposal", "error", "message"),
    [
        (centre_scores(), ConfigError, "got scores, a callable"),
        (TinyProposal(), ProposalError, "got TinyProposal, which has no get_classifier"),
        (small("test_resnet", num_classes=0), ProposalError, "whose classifier is an Identity"),
        (TinyClassifier(twist=True), ProposalError, "got TinyClassifier, whose logits differ by"),
        (small("test_convnext"), ProposalError, "got ConvNeXt, whose logits differ by"),
    ],
)
def test_networks_without_a_linear_classifier(proposal, error: type, message: str) -> None:
    model, x = CASES["augreg"].build(depth=1), torch.randn(2, 3, 64, 64, device=DEVICE)
    before = model(x)
    with pytest.raises(error, match=message) as caught:
        papr.prune(model, 0.5, proposal, score="softcam", **HALF)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)
    assert torch.equal(model(x), before)


def test_not_for_clips_and_not_in_reference_mode() -> None:
    with pytest.raises(ConfigError, match='score="significance" in reference mode'):
        papr.PruneConfig(score="softcam", reference=True)
    with pytest.raises(ConfigError, match="got a host of clips"):
        papr.prune(
            CASES["hf_videomae"].build(depth=1), 0.5, TinyClassifier(), score="softcam", **HALF
        )
    clips = papr.Proposal(nn.Conv3d(3, 4, 8, stride=8))
    with pytest.raises(ConfigError, match="got Conv3d, which looks at clips"):
        papr.prune(CASES["augreg"].build(depth=1), 0.5, clips, score="softcam", **HALF)


def test_papr_mask(tmp_path: Path) -> None:
    """The command keeps what the call keeps, which is not what the channel mean keeps."""
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "a.png")
    done = CliRunner().invoke(app, [*_mask(tmp_path), "--score", "softcam"])
    assert done.exit_code == 0, done.output
    line = json.loads((tmp_path / "masks.jsonl").read_text())
    pixels, proposal = (
        images.to_pixels(images.load_image(tmp_path / "a.png")),
        papr.Proposal(wheels.LITE0),
    )
    kept = {
        score: images.select_patches(pixels, 0.5, proposal, score=score).indices[0].tolist()
        for score in ("softcam", "significance")
    }
    assert (line["score"], line["kept"]) == ("softcam", kept["softcam"])
    assert line["kept"] != kept["significance"]
    done = CliRunner().invoke(app, [*_mask(tmp_path), "--score", "motion"])
    assert isinstance(done.exception, ConfigError)


def _mask(folder: Path) -> list[str]:
    options = ["--out", str(folder), "--img-size", "64", "--proposal", wheels.LITE0]
    return ["mask", str(folder / "a.png"), *options]
