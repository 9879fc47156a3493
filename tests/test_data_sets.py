"""Data sets of Hugging Face: rows undecoded, splits and columns by name, Parquet, no hub."""

import pickle
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")

import pyarrow as pa
import pyarrow.parquet as pq

from papr.evaluate import DataError, open_source
from papr.evaluate.loading import Plan, loader
from tiny_sources import everything, png, prepare, rows, skips


def data_set(library, count: int = 7, names: tuple[str, ...] = ("x", "y", "z"), shift: int = 0):
    images = [{"bytes": png(n), "path": None} for n in range(count)]
    columns = {"id": list(range(count)), "picture": images}
    columns["kind"] = [(n + shift) % len(names) for n in range(count)]
    features = library.Features(
        {
            "id": library.Value("int64"),
            "picture": library.Image(),
            "kind": library.ClassLabel(names=list(names)),
        }
    )
    return library.Dataset.from_dict(columns, features=features)


def test_saved_data_sets_are_read_undecoded(library, tmp_path: Path) -> None:
    data_set(library).save_to_disk(tmp_path / "one")
    source = open_source(tmp_path / "one", 3)
    expected = [(0, n, str(n), n % 3, float(n)) for n in range(7)]
    assert source.item(4).content == png(4)
    assert rows(everything(source)) == rows(everything(pickle.loads(pickle.dumps(source))))
    assert rows(everything(source)) == expected
    plan = Plan(2, 4)
    assert rows(loader(source, plan, plan.parts(source), prepare, workers=2)) == expected
    other = open_source(tmp_path / "one", 5)
    assert other.note == "kind: 3 classes for the host's 5: labels are not used"
    assert other.item(0).label is None
    data_set(library, shift=1).save_to_disk(tmp_path / "two")
    seen = [open_source(tmp_path / name, 3).identity() for name in ("one", "one", "two")]
    assert seen[0] == seen[1] != seen[2]
    data_set(library, names=("n01443537", "n01440764")).save_to_disk(tmp_path / "three")
    assert [open_source(tmp_path / "three", 1000).item(i).label for i in (0, 1)] == [1, 0]


def test_splits_and_columns_are_named(library, tmp_path: Path) -> None:
    splits = {"train": data_set(library), "test": data_set(library, 3)}
    library.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert open_source(f"{tmp_path}/two:test", 3).length == 3
    by_id = open_source(f"{tmp_path}/two:train:id", 10)
    assert [by_id.item(i).label for i in range(7)] == list(range(7))
    with pytest.raises(DataError, match=r"among train, test, as in .*two:test, got none"):
        open_source(tmp_path / "two", 3)
    with pytest.raises(DataError, match="among id, picture, kind, got 'colour'"):
        open_source(f"{tmp_path}/two:test:colour", 3)
    splits["test"].select_columns(["id"]).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="got columns id"):
        open_source(tmp_path / "none", 3)


def test_parquet_is_read_and_a_row_without_an_image_is_named(library, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    data_set(library, 4).to_parquet(folder / "a.parquet")
    assert [row[2:] for row in rows(everything(open_source(folder, 3)))] == [
        (str(n), n % 3, float(n)) for n in range(4)
    ]
    table = pa.table({"image": [png(5), None, b"junk"], "label": [2, 0, -1]})
    pq.write_table(table, tmp_path / "plain.parquet")
    batches = everything(open_source(tmp_path / "plain.parquet", 3))
    assert [row[2:] for row in rows(batches)] == [("0", 2, 5.0)]
    assert [(s.id, s.reason[:27]) for s in skips(batches)] == [
        ("1", "expected an image in row 1,"),
        ("2", "cannot read the image in me"),
    ]


@pytest.mark.usefixtures("library")
def test_what_is_not_there_is_said_and_no_hub_waited_for(tmp_path: Path) -> None:
    for name in ("nobody/nothing:test", "hfds/cifar10", "hfds/a/b/plain:train[:10%]:label"):
        with pytest.raises(DataError, match=r"cannot load the data set .* the hub cannot be"):
            open_source(name, 10)
    for name in ("nothing", str(tmp_path / "a.zip"), "x" * 5000):
        with pytest.raises(DataError, match=r"expected images, shards or a data set, .* does not"):
            open_source(name, 10)
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"a\.zip is none of these"):
        open_source(tmp_path / "a.zip", 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected images \(.*\) in .*empty, none"):
        open_source(tmp_path / "empty", 10)
