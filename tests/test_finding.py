"""Ambiguous data are refused with what was found, can be chosen, are said: before any model."""

import json
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("pyarrow", reason="needs the extra: eval")

import pyarrow as pa
import pyarrow.parquet as pq

from papr.cli import app
from papr.cli.hosting import in_short
from papr.evaluate import DataError, evaluate, open_source
from papr.evaluate.finding import find
from papr.splits import split_of
from tiny_data import KEEPS, host, pictures
from tiny_sources import everything, png, rows, touch, write_shard

NAMES = {
    "train-00000-of-00002.parquet": "train",
    "data/imagenet1k-validation-07.tar": "validation",
    "test/0000.parquet": "test",
    "cats-00001-of-00003.parquet": "cats",
    "000.tar": "",
    "contest.tar": "",  # a word within a word says nothing
    "training.tar": "training",
}


def test_splits_are_told_by_the_names_of_files() -> None:
    assert {name: split_of(name) for name in NAMES} == NAMES


def levels(source) -> list[float]:
    return [row[-1] for row in rows(everything(source))]


def table(path: Path, level: int, *columns: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {c: [png(level + n)] for n, c in enumerate(columns or ("image",))}
    pq.write_table(pa.table(cells), path)
    return path


@pytest.mark.usefixtures("library")
def test_splits_of_tables_are_not_joined(tmp_path: Path) -> None:
    root = tmp_path / "tables"
    table(root / "train-00000-of-00001.parquet", 1)
    table(root / "test-00000-of-00001.parquet", 2)
    with pytest.raises(
        DataError, match=r"test, train or all of them, as in .*tables:train, got none$"
    ):
        open_source(root, 3)
    source = open_source(f"{root}:test", 3)
    assert levels(source) == [2.0]
    assert (source.about["split"], source.identity()["split"]) == ("test", "test")
    assert in_short(source) == "1 image; split test; images from image"
    table(root / "more.parquet", 3)
    with pytest.raises(DataError, match="among test, train and files of none or all of them, as"):
        open_source(root, 3)


def test_splits_of_shards_and_of_pictures_are_not_joined(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    write_shard(tmp_path / "tars" / "a-train-0.tar", [("k.png", png(1))])
    write_shard(tmp_path / "tars" / "a-val-0.tar", [("k.png", png(2))])
    touch(tmp_path / "folders", "train/ant/1.png", "val/ant/33.png", "val/bee/4.png")
    for name in ("tars", "folders"):
        with pytest.raises(
            DataError, match=rf"train, val or all of them, as in .*{name}:val, got none"
        ):
            open_source(tmp_path / name, 2)
        with pytest.raises(DataError, match="got dev"):
            open_source(f"{tmp_path / name}:dev", 2)
    assert levels(open_source(f"{tmp_path / 'tars'}:val", 2)) == [2.0]
    source = open_source(f"{tmp_path / 'folders'}:val", 2)
    assert [source.name(i) for i in range(source.length)] == ["ant/33.png", "bee/4.png"]
    assert [source.item(i).label for i in (0, 1)] == [0, 1]


def test_one_of_two_image_columns_is_chosen(library, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found jpg, png: choose one, as in --image-column jpg"):
        open_source(table(tmp_path / "two.parquet", 1, "png", "jpg"), 3)
    assert levels(open_source(tmp_path / "two.parquet", 3, image_column="png")) == [1.0]
    with pytest.raises(DataError, match=r"among the columns of images, jpg, png, got 'mask'"):
        open_source(tmp_path / "two.parquet", 3, image_column="mask")
    with pytest.raises(DataError, match=r"that --image-column names, got columns photo"):
        open_source(table(tmp_path / "odd.parquet", 1, "photo"), 3)
    assert levels(open_source(tmp_path / "odd.parquet", 3, image_column="photo")) == [1.0]
    cells = {name: [{"bytes": png(n), "path": None}] for n, name in enumerate(("mask", "img"))}
    features = library.Features({name: library.Image() for name in cells})
    library.Dataset.from_dict(cells, features=features).save_to_disk(tmp_path / "saved")
    usual = open_source(tmp_path / "saved", 3)
    assert (levels(usual), usual.about["column"]) == ([1.0], "img")
    mask = open_source(tmp_path / "saved", 3, image_column="mask")
    assert (levels(mask), mask.identity()["column"]) == ([0.0], "mask")
    touch(tmp_path / "folder", "1.png")
    with pytest.raises(DataError, match="expected tables or shards with an image column, got 'a'"):
        open_source(tmp_path / "folder", 3, image_column="a")


def test_one_of_two_images_of_a_shard_is_chosen(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    two = [("a.jpg", png(1)), ("a.png", png(2)), ("a.cls", b"1")]
    path = write_shard(tmp_path / "two.tar", two)
    with pytest.raises(DataError, match="found jpg, png: choose one, as in --image-column jpg"):
        open_source(path, 3)
    assert rows(everything(open_source(path, 3, image_column="png")))[0][2:] == ("a", 1, 2.0)
    with pytest.raises(DataError, match=r"among the files of a sample, cls, jpg, png, got 'gif'"):
        open_source(path, 3, image_column="gif")
    roles = [("a.mask.png", png(1)), ("a.image.png", png(2))]
    source = open_source(write_shard(tmp_path / "roles.tar", roles), 3)
    assert (levels(source), source.about["column"]) == ([2.0], "image.png")


def test_what_was_taken_is_recorded_and_said(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", 4)
    report = evaluate(host(), root, KEEPS[:1], tmp_path / "run", workers=0)
    stored = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert stored["data"]["classes"] == {"ant": 0, "bee": 1, "cat": 2}
    assert report.note == "labels: folders in sorted order"
    said = in_short(open_source(root, 3))
    assert said == "4 images; folders as classes: ant 0, bee 1, cat 2"
    deep = open_source(touch(tmp_path / "deep", "x/n01440764/1.png", "x/n01443537/2.png"), 1000)
    assert deep.about["classes"] == {"x/n01440764": 0, "x/n01443537": 1}


COMMANDS = {
    "eval": ["--data", "{}"],
    "sweep": ["--data", "{}"],
    "predict": ["--data", "{}", "--out", "out"],
    "drift": ["--data", "{}"],
    "tune": ["--data", "{}", "--target-agreement", "0.9"],
    "doctor": ["--data", "{}"],
    "reproduce": ["augreg", "--data", "{}", "--random-weights"],
    "compare": ["{}"],
    "compare-cam": ["{}"],
    "mask": ["{}"],
    "video": ["{}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_data_are_looked_up_before_any_model_is_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nn.Module, "__init__", refuse)
    arguments = [part.format("/no/such/data.png") for part in COMMANDS[command]]
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 1
    assert not isinstance(result.exception, AssertionError)
    assert "/no/such/data.png" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_samples_are_found_once_for_hosts_of_images_and_of_clips(tmp_path: Path) -> None:
    found = find(touch(tmp_path, "a/1.png", "b/2.mp4", "b/3.gif"))
    images, clips = found.open(2), found.open(2, clips=True)
    assert [images.name(i) for i in range(images.length)] == ["a/1.png", "b/3.gif"]
    assert [clips.name(i) for i in range(clips.length)] == ["b/2.mp4", "b/3.gif"]
    only = find(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"expected videos in .*this model takes, got images"):
        only.open(2, clips=True)
    for empty in ("", str(tmp_path / "a" / "no.png")):
        with pytest.raises(DataError, match="expected"):
            find(empty)
