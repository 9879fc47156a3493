"""Reference mode: against golden outputs where they are at hand, and against NumPy everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import papr
import reference

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}


def feature_proposal(features: torch.Tensor):
    """A proposal that answers with the channel mean of given features."""
    return lambda pixels: features.mean(1)


@pytest.mark.parametrize("name", ["augreg", "augreg_z3", "ctfree", "mae", "tome", "augreg_tome"])
def test_golden_files(name: str, shared_data: Path) -> None:
    data = np.load(shared_data / "golden" / f"{name}.npz")
    meta = json.loads(str(data["meta"]))
    weights = {k[3:]: torch.from_numpy(data[k]) for k in data.files if k.startswith("sd/")}
    model = VisionTransformer(**meta["vit"]).eval()
    model.load_state_dict(weights)
    features = torch.from_numpy(data["arr/features"])
    merge = papr.Merge(meta["r"]) if "r" in meta else None
    scores = feature_proposal(features)
    papr.prune(model, keep=meta["z"], proposal=scores, reference=True, merge=merge)
    with torch.no_grad():
        logits = model(torch.from_numpy(data["arr/images"]))
    assert np.abs(logits.numpy() - data["arr/logits"]).max() < 1e-5
    if "arr/indices_by_rank" in data.files:
        expected = np.sort(data["arr/indices_by_rank"], axis=1)
        assert (papr.selection(model).indices.numpy() == expected).all()


@pytest.mark.parametrize(("name", "cls"), [("swin", SwinTransformer), ("convnext", ConvNeXt)])
def test_golden_files_of_hierarchical_hosts(
    name: str, cls: type[torch.nn.Module], shared_data: Path
) -> None:
    data = np.load(shared_data / "golden" / f"{name}.npz")
    meta = json.loads(str(data["meta"]))
    model = cls(**meta[name]).eval()
    model.load_state_dict({k[3:]: torch.from_numpy(data[k]) for k in data.files if k[:3] == "sd/"})
    features = torch.from_numpy(data["arr/features"])
    papr.prune(model, keep=meta["z"], proposal=feature_proposal(features), reference=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(data["arr/images"]))
    assert np.abs(logits.numpy() - data["arr/logits"]).max() < 1e-5


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77, 0.999])
@pytest.mark.parametrize(
    "guise",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"global_pool": "avg"},
    ],
    ids=["class token", "no class token", "mae"],
)
def test_equals_numpy(guise: dict, keep: float) -> None:
    model = VisionTransformer(**TINY, **guise).eval()
    with torch.no_grad():  # biases and norms are 0 and 1 when new, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images = torch.randn(3, 3, 32, 32)
    features = torch.randn(3, 7, 3, 2)
    papr.prune(model, keep=keep, proposal=feature_proposal(features), reference=True)
    with torch.no_grad():
        logits = model(images).numpy()

    counted = 16 + (guise.get("class_token", True))
    chosen = reference.kept(
        reference.significance(features.numpy(), 4, 4), min(16, int(keep * counted))
    )
    assert (papr.selection(model).indices.numpy() == chosen).all()
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    for image, patches, answer in zip(images.numpy(), chosen, logits, strict=True):
        expected = reference.vit_logits(image, weights, 8, 3, patches)
        assert np.abs(answer - expected).max() < 1e-5


def test_reference_mode_shows_the_proposal_the_hosts_pixels() -> None:
    """Default mode renormalises and shrinks; reference mode does neither."""
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return x

    images = torch.randn(2, 3, 32, 32)
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    proposal = papr.Proposal(Watching(), size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.6))
    model = VisionTransformer(**TINY).eval()
    for is_reference in (True, False):
        papr.prune(
            model,
            proposal=proposal,
            proposal_size="input",
            reference=is_reference,
            **statistics,
        )
        model(images)
    as_is, renormalised = seen[-2:]
    assert torch.equal(as_is, images)
    mean, std = (torch.tensor(statistics[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    own_mean, own_std = (torch.tensor(t).view(1, 3, 1, 1) for t in (proposal.mean, proposal.std))
    assert torch.allclose(renormalised, (images * std + mean - own_mean) / own_std, atol=1e-6)

    papr.prune(model, proposal=proposal, **statistics)
    model(images)
    assert seen[-1].shape == (2, 3, 16, 16)
