"""Libraries: none is imported for nothing, and what they must be is said with what they are."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
import transformers

import papr
from papr.errors import UnsupportedModelError
from papr.hosts.versions import TESTED, describe, is_tested
from tiny import CASES, prune

LEAN = """
import sys, torch, papr
def imported():
    return [name for name in ("timm", "transformers", "torchvision") if name in sys.modules]
{code}
print(imported())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LEAN.format(code=code)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "libraries"),
    [
        (
            """
assert not papr.supported(torch.nn.Linear(2, 2))
try:
    papr.prune(torch.nn.Linear(2, 2))
except papr.UnsupportedModelError:
    print(imported())
""",
            "[]\n[]",
        ),
        (
            """
from torchvision.models.vision_transformer import VisionTransformer
assert papr.supported(VisionTransformer(32, 16, 1, 1, 8, 8))
""",
            "['torchvision']",
        ),
    ],
)
def test_no_library_is_imported_for_nothing(code: str, libraries: str) -> None:
    assert run(code) == libraries


def test_a_timm_host_imports_no_transformers() -> None:
    code = """
import timm
model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
papr.prune(model, 0.5)(torch.zeros(1, 3, 224, 224))
"""
    assert "transformers" not in run(code)


def test_the_versions_installed_are_tested() -> None:
    for library in (timm, transformers, torchvision):
        assert is_tested(library.__name__)


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("1.0.19", False),
        ("1.0.20", True),
        (TESTED["timm"][1] + ".post1", True),
        ("1.0.30+local", True),
        ("1.1.0", False),
        ("unknown", False),
    ],
)
def test_range(version: str, tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "__version__", version)
    assert is_tested("timm") is tested
    assert f"got timm {version}; papr is tested with 1.0.20 to" in describe("timm")


@pytest.mark.parametrize("version", ["4.57.1", "4.0.0.dev0"])
def test_transformers_4_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["hf_vit"].build()
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    message = f"ViTForImageClassification: expected transformers 5.0 or newer, got .* {version};"
    with pytest.raises(UnsupportedModelError, match=message):
        prune(model)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize(
    ("name", "site", "library", "version"),
    [
        ("augreg", "patch_drop", "timm", "1.3.0"),
        ("augreg", "patch_embed", "timm", "0.9.16"),
        ("hf_dinov3", "rope_embeddings", "transformers", "6.1.0"),
        ("hf_beit", "beit.embeddings", "transformers", "6.1.0"),
        ("torchvision", "encoder.dropout", "torchvision", "0.15.2"),
    ],
)
def test_a_site_that_moved_names_the_versions(
    name: str, site: str, library: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host as another version of its library might build it."""
    model = CASES[name].build()
    parent, _, attribute = site.rpartition(".")
    delattr(model.get_submodule(parent), attribute)
    monkeypatch.setattr(sys.modules[library], "__version__", version)
    oldest, newest = TESTED[library]
    message = f"got {library} {version}; papr is tested with {oldest} to {newest}"
    for attempt in (lambda: prune(model), lambda: prune(model, 1.0)):
        with pytest.raises(UnsupportedModelError) as caught:
            attempt()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert message in papr.supported(model).reason
    assert not papr.is_pruned(model)


def test_an_untested_version_whose_sites_are_there_is_pruned(monkeypatch) -> None:
    monkeypatch.setattr(timm, "__version__", "1.9.0")
    model = prune(CASES["augreg"].build(), 0.5)
    model(torch.randn(1, 3, 64, 64))
    assert papr.selection(model).indices.shape == (1, 32)
