"""One host has one preprocessing: whatever command shows it a picture, it gets the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from typer.testing import CliRunner

from papr.cli import app
from papr.images import ImageError
from papr.preprocessing import apply, preprocessing

NAME, SIDE = "test_vit", 160
COUNT = 4
#: What each command needs beside the pictures and the host.
COMMANDS = {
    "eval": ["--keep", "0.5", "--out", "{out}", "--workers", "0"],
    "predict": ["--keep", "0.5", "--out", "{out}", "--workers", "0"],
    "drift": ["--keep", "0.5", "--out", "{out}", "--workers", "0", "--k", "1"],
    "sweep": ["--keep", "0.5", "--out", "{out}", "--workers", "0", "--no-baselines", "--no-html"],
    "tune": ["--target-cosine", "0.01", "--out", "{out}-o", "--workers", "0", "--rounds", "1"],
    "compare": ["--keep", "0.5", "--out", "{out}", "--rounds", "1", "--figures", "1"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in which the crop matters, and the weights of a host."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        noise = random.integers(0, 256, (210, 300, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{number}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model(NAME).state_dict(), folder / "weights.pt")
    return folder


def shown(line: list[str]) -> set[bytes]:
    """The pictures that a command shows a ViT, each once."""
    found: set[bytes] = set()

    def note(module: nn.Module, given: tuple) -> None:
        if isinstance(module, VisionTransformer) and given[0].any() and given[0].shape[-1] == SIDE:
            found.update(image.numpy().tobytes() for image in given[0].contiguous())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        CliRunner().invoke(app, line, catch_exceptions=False)
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_host_gets_the_pixels_of_its_library(command: str, given: Path, tmp_path: Path) -> None:
    host = timm.create_model(NAME)
    own = create_transform(**resolve_data_config({}, model=host))
    folder = given / "pictures"
    expected = {own(Image.open(path)).numpy().tobytes() for path in folder.iterdir()}
    pictures = [str(folder)] if command == "compare" else ["--data", str(folder)]
    options = [option.format(out=tmp_path / "out") for option in COMMANDS[command]]
    line = [command, *pictures, "--model", NAME, "--checkpoint", str(given / "weights.pt")]
    found = shown([*line, "--device", "cpu", "--batch", "2", *options])
    assert len(expected) == COUNT
    assert found == expected


def test_the_picture_of_what_a_host_sees() -> None:
    prepare = preprocessing(timm.create_model(NAME), NAME)
    level = Image.new("RGB", (300, 200), (255, 0, 51))
    seen = prepare.picture(apply(prepare.transform, level))
    assert seen.size == (160, 160)
    assert seen.getpixel((5, 7)) == (255, 0, 51)


def test_a_picture_that_cannot_be_prepared_is_named() -> None:
    def fails(image: Image.Image) -> torch.Tensor:
        raise ValueError("odd")

    with pytest.raises(ImageError, match=r"cannot prepare the image x.png: ValueError: odd"):
        apply(fails, Image.new("RGB", (4, 3)), "x.png")
    with pytest.raises(ImageError, match="at most 32 times as long"):
        apply(fails, Image.new("RGB", (400, 3)), "x.png")
