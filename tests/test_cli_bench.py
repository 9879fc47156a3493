"""`papr bench` takes hosts of any library by name, and suggests some for a name that is none."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from papr.cli import app
from papr.errors import ConfigError
from papr.named import meant

transformers = pytest.importorskip("transformers", reason="needs the extra: hf")
TINY = {
    **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
#: Names of small hosts of each library; those of transformers are folders, made by `saved`.
HOSTS = {
    "classifier": ("ViTForImageClassification", "ViTConfig"),
    "backbone": ("Dinov2Model", "Dinov2Config"),
    "torchvision/vit_b_32": None,
    "torchvision/convnext_tiny": None,
    "test_vit": None,
}


def saved(kind: str, folder: Path) -> str:
    made = HOSTS[kind]
    if made is None:
        return kind
    model, config = (getattr(transformers, name) for name in made)
    torch.manual_seed(0)
    model(config(**TINY)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)


@pytest.mark.parametrize("kind", HOSTS)
def test_hosts_of_images_of_every_library(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    arguments = ["--model", saved(kind, tmp_path / "host"), "--json", str(path), "--keep", "0.5"]
    more = ["--batch", "1", "--rounds", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", *arguments, *more])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "ms/image" in result.output
    dense, pruned = json.loads(path.read_text())["rows"]
    assert (dense["keep"], pruned["keep"]) == (1, 0.5)
    assert pruned["gmacs_host"] < dense["gmacs_host"]


@pytest.mark.parametrize(
    "arguments",
    [["bench"], ["doctor"], ["export", "--random-weights"]],
    ids=lambda words: words[0],
)
def test_names_that_are_none_are_answered_with_names(arguments: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"got 'vit_tiny'; is it vit_tiny_patch16_224 or vit_tiny"
    ):
        CliRunner().invoke(app, [*arguments, "--model", "vit_tiny"], catch_exceptions=False)


def test_names_of_torchvision_are_suggested_too() -> None:
    with pytest.raises(ConfigError, match="got 'vit_b'; is it vit_b_16 or vit_b_32"):
        CliRunner().invoke(app, ["bench", "--model", "torchvision/vit_b"], catch_exceptions=False)


def test_what_a_name_may_mean() -> None:
    assert meant("vit_tiny_patch16_244").startswith("; is it vit_tiny_patch16_224")
    assert meant("dinov2") != ""
    assert meant("nothing at all") == meant("") == ""
    assert meant("b", ["abc", "xbx", "c"]) == "; is it abc or xbx?"
