"""Fine-tuning on photographs in folders: the split, the classes, the figures and their file."""

import argparse
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import finetune  # noqa: E402
import folders  # noqa: E402
import outcome  # noqa: E402
from papr.errors import DataError  # noqa: E402
from papr.images import load_image  # noqa: E402
from papr.measure import Timing  # noqa: E402
from papr.preprocessing import preprocessing  # noqa: E402
from tiny_folder import NAMES, SIZE, timm_folder  # noqa: E402

EACH = 8  # images of a class
STRAY = "BACKGROUND"
Finetune = Callable[..., None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of the tiny host's three classes, and three of none."""
    generator = torch.Generator().manual_seed(0)
    for name in (*NAMES, STRAY):
        folder = tmp_path / "photographs" / name
        folder.mkdir(parents=True)
        for number in range(3 if name == STRAY else EACH):
            noise = torch.randint(256, (40 + number, 50, 3), generator=generator)
            Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number}.jpg")
    return tmp_path / "photographs"


@pytest.fixture
def host(tmp_path: Path) -> nn.Module:
    """The tiny host, as it lies in the folder `host`."""
    return timm_folder(tmp_path / "host")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finetune:
    """Fine-tune the host in `host` on `photographs`."""

    def here(*options: object) -> None:
        model = ["--model", f"local-dir:{tmp_path / 'host'}", "--pretrained"]
        given = [*model, "--data", tmp_path / "photographs", "--batch", 4, *options]
        monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, given)])
        runpy.run_path(str(EXAMPLES / "finetune.py"), run_name="__main__")

    return here


def test_every_fourth_image_of_each_class_is_for_testing(data: Path) -> None:
    split = folders.read(data, list(NAMES), test_every=4, seed=0)
    by_name = [(p.path.parent.name, p.path.name) for p in split.test]
    assert sorted(by_name) == [(n, f"{i}.jpg") for n in sorted(NAMES) for i in (3, 7)]
    assert all(NAMES[p.label] == p.path.parent.name for p in (*split.train, *split.test))
    assert len({*split.train, *split.test}) == 3 * EACH
    assert not {*split.train} & {*split.test}
    assert (split.classes, split.left_out) == (3, {STRAY: 3})
    assert split.note() == f"left out, no class of the host: {STRAY} (3 images)"


def test_without_names_all_folders_are_classes_and_a_random_fifth_is_for_testing(
    data: Path,
) -> None:
    split, other = (folders.read(data, None, test_every=None, seed=seed) for seed in (0, 1))
    assert (len(split.train), len(split.test), split.classes) == (22, 5, 4)
    assert len({*split.train, *split.test}) == 27
    assert all(sorted([STRAY, *NAMES])[p.label] == p.path.parent.name for p in split.train)
    assert split.note() == ""
    assert split.test != other.test
    assert split == folders.read(data, None, test_every=None, seed=0)


def test_folders_that_are_no_classes_are_refused(data: Path) -> None:
    wanted = "named like classes of the host, such as owl, yak, got BACKGROUND, ant, bee"
    with pytest.raises(DataError, match=wanted):
        folders.read(data, ["owl", "yak"], test_every=4, seed=0)
    with pytest.raises(DataError, match="to train on and at least 2 to test on, got 24 and 0"):
        folders.read(data, list(NAMES), test_every=9, seed=0)


def test_of_many_folders_left_out_five_are_told() -> None:
    split = folders.Split([], [], 3, {f"f{number}": 2 for number in range(7)})
    told = "f0, f1, f2, f3, f4 and 2 more folders (14 images)"
    assert split.note() == f"left out, no class of the host: {told}"


def test_images_are_tested_as_papr_eval_shows_them_and_trained_on_in_parts(
    data: Path, host: nn.Module, tmp_path: Path
) -> None:
    own = timm.create_model(f"local-dir:{tmp_path / 'host'}", pretrained=True)
    split = folders.read(data, list(NAMES), test_every=4, seed=0)
    asked = argparse.Namespace(data=data, steps=None, epochs=2, batch=4, seed=0, test_every=4)
    shown = finetune.photographs(asked, own, SIZE, split)
    transform = preprocessing(own, f"local-dir:{tmp_path / 'host'}").transform
    pixels, labels = next(iter(shown.test))
    assert labels.tolist() == [p.label for p in split.test]
    assert torch.equal(pixels, torch.stack([transform(load_image(p.path)) for p in split.test]))
    assert shown.steps == 2 * 5, "two passes over 18 images, four a step"

    half = Image.new("RGB", (60, 40), "black")
    half.paste("white", (30, 0, 60, 40))
    parts = [folders.training_transform(own, SIZE)(half) for _ in range(16)]
    assert {tuple(part.shape) for part in parts} == {(3, SIZE, SIZE)}
    whitest = torch.stack(parts).amax((0, 2, 3))
    assert torch.allclose(whitest, torch.tensor([2.5, 2.0, 1.75])), "the host's mean and std"
    left = torch.stack(parts)[:, 0, :, 0] > 0
    assert 0 < left.sum() < left.numel(), "some are mirrored"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_the_result_is_on_disk_before_it_is_printed_and_comes_out_again(
    data: Path, host: nn.Module, run: Finetune, tmp_path: Path, capsys, monkeypatch
) -> None:
    asked = ("--test-every", 4, "--epochs", 1, "--lr", 0.01)
    with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as there:
        there.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        with pytest.raises(OSError, match="No space left"):
            run(*asked, "--json", tmp_path / "one.json")
    assert f"left out, no class of the host: {STRAY} (3 images)\n" in capsys.readouterr().err
    run(*asked, "--json", tmp_path / "two.json")
    printed = capsys.readouterr().out
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))

    assert list(one["rivals"]) == ["dense", "papr", "random", outcome.LATE]
    for name, row in one["rivals"].items():
        assert row.get("before") == two["rivals"][name].get("before")
        assert row["after"] == two["rivals"][name]["after"]
    assert one["differences"] == two["differences"]

    assert str(tmp_path) not in json.dumps(one)
    assert "--model local-dir:host --pretrained --data photographs" in one["command"]
    assert one["weights"]["kind"] == "pretrained"
    assert one["data"] == {
        "name": "photographs",
        "classes": 3,
        "train": 18,
        "test": 6,
        "test_every": 4,
        "left_out": {STRAY: 3},
    }
    assert (one["steps"], one["epochs"], one["batch"]) == (5, 1, 4)
    dense, papr = one["rivals"]["dense"], one["rivals"]["papr"]
    assert len(papr["ms_per_step"]) == len(papr["speedup"]) == 3
    assert dense["before"][0] == pytest.approx(accuracy(tmp_path / "host", data))
    gain = papr["after"][0] - dense["before"][0]
    assert one["differences"]["papr after - dense before"][0] == pytest.approx(gain)
    line = next(line for line in printed.splitlines() if "papr after - dense before" in line)
    assert f" {gain:+.3f} (" in line


def accuracy(host: Path, data: Path) -> float:
    """Of a host as it lies in its folder, on the photographs to test on."""
    net = timm.create_model(f"local-dir:{host}", pretrained=True).eval()
    show = preprocessing(net, f"local-dir:{host}").transform
    right = [
        NAMES[int(net(show(load_image(data / name / f"{i}.jpg"))[None]).argmax())] == name
        for name in NAMES
        for i in (3, 7)
    ]
    return sum(right) / len(right)


def test_a_difference_is_taken_image_by_image() -> None:
    dense, papr = torch.tensor([1.0, 1, 0, 1]), torch.tensor([0.0, 1, 0, 1])
    answers = {name: dense.double() for pair in outcome.COMPARED for name in pair}
    answers["papr after"] = papr.double()
    timings = {
        "dense": Timing((1.0, 1.0)),
        "papr": Timing((0.5, 0.5)),
        "random": Timing((1.0, 0.5)),
    }
    found = outcome.figures(timings, answers)
    assert found["differences"]["papr after - dense before"] == [-0.25, 0.25]
    assert found["rivals"]["papr"]["after"] == [0.5, pytest.approx((1 / 12) ** 0.5)]
    assert found["rivals"]["papr"]["speedup"] == (2, 2, 2)
    assert "papr after - dense, pruned afterwards" in found["differences"]


def test_the_learning_rate_falls_to_nothing() -> None:
    net, steps = nn.Linear(3, 2), 4
    batch = torch.ones(2, 3), torch.tensor([0, 1])
    feed = finetune.Feed(iter([batch] * 9), 1, torch.device("cpu"))
    step = finetune.training_step(net, 0.1, steps, feed)
    moved = []
    for _ in range(steps + 1):
        before = net.weight.detach().clone()
        step()
        moved.append(float((net.weight - before).detach().abs().max()))
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 0.05
    assert moved[steps] == 0


def test_the_file_names_no_folder_of_this_machine(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for given, told in {
        f"local-dir:{tmp_path}/a/vit": "local-dir:a/vit",
        "--data=/elsewhere/photographs": "--data=photographs",
        "../shared/data": "../shared/data",
        "0.5": "0.5",
    }.items():
        assert outcome.told(given) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", 1], "expected --data with --epochs, got none"),
        (["--data", ".", "--epochs", 0], "expected --epochs of at least 1, got 0"),
        (["--data", ".", "--epochs", 1, "--steps", 3], "not allowed with argument"),
        (["--test-every", 4], "expected --data with --test-every, got none"),
        (["--data", ".", "--test-every", 1], "expected --test-every of at least 2, got 1"),
        (["--batch", 0], "expected --batch of at least 1, got 0"),
        (["--json", "."], "expected --json to be a file, got the folder ."),
        (["--model", "vit_tinny_patch16_224"], "expected a model of timm, got 'vit_tinny"),
    ],
)
def test_refused_before_anything_is_read(
    options: list[object], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        finetune.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_wrong_with_the_data_is_one_line(
    data: Path, host: nn.Module, run: Finetune
) -> None:
    for name in NAMES:
        (data / name).rename(data / f"no {name}")
    with pytest.raises(SystemExit) as stopped:
        run("--json", data / "result.json")
    told = str(stopped.value.code)
    assert told.startswith("finetune.py: error: expected folders in ")
    assert "\n" not in told
    assert not (data / "result.json").exists()
