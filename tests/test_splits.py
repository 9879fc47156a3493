"""Splits are told apart wherever they are: in folders, object storage, tables, pictures."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")

from papr.cli.reading import images_of
from papr.errors import DataError
from papr.evaluate import open_source
from papr.splits import of_split, split_folders
from tiny_sources import touch, write_shard


def labels(source) -> list[int | None]:
    return [source.item(i).label for i in range(source.length)]


FOLDERS = {
    "train2017 val2017": "val",
    "train_images test_images": "test",
    "train unlabeled": "train",
    "Data/CLS-LOC/train Data/CLS-LOC/val": "val",
    "images/Train images/Validation": "validation",
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_folders_of_splits_are_not_joined_nor_classes(layout: str, tmp_path: Path) -> None:
    first, second = layout.split()
    touch(tmp_path, f"{first}/x/1.png", f"{second}/x/22.png", f"{second}/y/333.png")
    with pytest.raises(DataError, match=r"expected a split of .* among .* or all of them, as in"):
        open_source(tmp_path, 2)
    word = FOLDERS[layout]
    assert open_source(f"{tmp_path}:{word}", 2).length == (1 if word == "train" else 2)
    assert open_source(f"{tmp_path}:all", 2).length == 3


def test_classes_named_as_splits_are_classes_where_it_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "odd", "car/1.png", "test/1.png", "train/1.png")
    with pytest.raises(DataError, match=r"test, train, car or all of them, as in .*:train"):
        open_source(tmp_path / "odd", 3)
    assert labels(open_source(f"{tmp_path / 'odd'}:all", 3)) == [0, 1, 2]
    touch(tmp_path / "one", "car/1.png", "bullet_train/1.png")
    source = open_source(tmp_path / "one", 2)
    assert labels(source) == [None, None]
    assert "bullet_train may be a split, no class" in source.note
    assert "one:all says that it is one" in source.note
    assert labels(open_source(f"{tmp_path / 'one'}:all", 2)) == [0, 1]
    assert labels(open_source(tmp_path / "one", ["car", "bullet train"])) == [1, 0]


def test_one_vehicle_among_many_classes_is_no_split() -> None:
    assert not split_folders([f"{name}/1.png" for name in ("train", *"abcdefg")])
    assert not split_folders(["train/ant/1.png", "train/bee/1.png"])


def test_splits_in_object_storage_are_not_joined(tmp_path: Path) -> None:
    touch(tmp_path / "obj", "train/1.png", "train/2.png", "val/3.png")
    address = f"file://{tmp_path}/obj"
    with pytest.raises(DataError, match=r"among train, val or all of them, as in .*obj:val, got"):
        open_source(address)
    found = open_source(f"{address}:val")
    assert [found.name(i) for i in range(found.length)] == ["3.png"]
    assert open_source(f"{address}:all").length == open_source(tmp_path / "obj:all").length == 3
    assert open_source(f"{address}/train").length == 2
    with pytest.raises(DataError, match="got dev"):
        open_source(f"{address}:dev")


def test_splits_of_pictures_that_are_compared_are_not_joined(tmp_path: Path) -> None:
    root = touch(tmp_path / "obj", "train/1.png", "val/3.png")
    with pytest.raises(DataError, match=r"among train, val or all of them, as in .*obj:val, got"):
        images_of([root], apart=True)
    assert images_of([Path(f"{root}:val")], apart=True) == [root / "val" / "3.png"]
    assert len(images_of([Path(f"{root}:all")], apart=True)) == len(images_of([root])) == 2
    assert images_of([root / "val", root / "train"], apart=True) == images_of([root])[::-1]


def test_configurations_of_tables_are_not_joined() -> None:
    names = [f"{c}/{s}-00000-of-00001.parquet" for c in "ab" for s in ("train", "test")]
    with pytest.raises(DataError, match=r"among a/train, a/test, b/train, b/test or all of them"):
        of_split(names, None, "pq")
    assert of_split(names, "b/train", "pq") == ([names[2]], "b/train")
    assert of_split(names, "all", "pq") == (names, "all")
    parts = ["000/train-0.tar", "001/train-1.tar"]
    assert of_split(parts, None, "pq") == (parts, "train")


def test_numbers_alone_make_no_split(tmp_path: Path) -> None:
    names = [f"data-0000{n}-of-00002.parquet" for n in range(2)]
    assert of_split(names, None, "pq") == (names, None)
    assert of_split(names, "train", "pq") == (names, "train")
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    for name in ("cats", "dogs"):
        write_shard(tmp_path / f"{name}-00000-of-00001.tar", [("k.png", b"")])
    with pytest.raises(DataError, match="among cats, dogs or all of them"):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}:all").shards) == 2
