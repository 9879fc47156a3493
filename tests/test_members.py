"""Names in shards as they come: each image is answered under a name of its own, or named."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")
pytest.importorskip("webdataset", reason="needs the extra: eval")

from papr.evaluate import DataError, open_source
from tiny_sources import everything, png, rows, skips, write_shard


def answered(path: Path, files: list[tuple[str, bytes]]) -> tuple[list, dict[str, str]]:
    batches = everything(open_source(write_shard(path / "a.tar", files), 9))
    return [row[2:] for row in rows(batches)], {s.id: s.reason for s in skips(batches)}


def test_keys_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    files = [(f"IMG.2023.{n:02d}.jpg", png(n)) for n in range(6)]
    found, named = answered(tmp_path, files)
    assert found == [(f"IMG.2023.{n:02d}", None, float(n)) for n in range(6)]
    assert not named


def test_labels_of_keys_with_dots_stay_with_them(tmp_path: Path) -> None:
    files = [("x/c.cls", b"7")]
    for n in range(3):
        files += [(f"IMG.{n}.jpg", png(n)), (f"IMG.{n}.cls", str(n).encode())]
    files += [("t.jpg", png(5)), ("t.seg.png", png(6)), ("t.mask0.png", png(7)), ("t.cls", b"3")]
    found, named = answered(tmp_path, files)
    assert found == [
        *((f"IMG.{n}", n, float(n)) for n in range(3)),
        ("t", 3, 5.0),
    ]
    assert named == {"x/c": "expected an image in the sample x/c, none"}


def test_a_key_with_dots_that_stands_alone_keeps_its_label_and_its_name(tmp_path: Path) -> None:
    names = ["cat.1", "dog.2", "dog.3", "cat.4"]
    labelled = [
        file
        for n, key in enumerate(names)
        for file in ((f"{key}.jpg", png(n)), (f"{key}.cls", str(n).encode()))
    ]
    for files, labels in ((labelled, [0, 1, 2, 3]), (labelled[::2], [None] * 4)):
        found, named = answered(tmp_path, files)
        assert found == [(key, labels[n], float(n)) for n, key in enumerate(names)]
        assert not named


VIEWS = {
    "left.png right.png cls": "left.png, right.png",
    "input.jpg seg.png cls": "input.jpg, seg.png",
    "mask0.png mask1.png cls": "mask0.png, mask1.png",
    "depth.png rgb.png": "depth.png, rgb.png",
}


@pytest.mark.parametrize("kinds", VIEWS)
def test_views_of_one_sample_are_not_answered_as_several(kinds: str, tmp_path: Path) -> None:
    files = [
        (f"a.{kind}", b"4" if kind == "cls" else png(n)) for n, kind in enumerate(kinds.split())
    ]
    with pytest.raises(DataError, match=f"found {VIEWS[kinds]}: choose one"):
        answered(tmp_path, files)
    path, chosen = tmp_path / "a.tar", kinds.split()[1]
    (row,) = rows(everything(open_source(path, 9, image_column=chosen)))
    assert row[2:] == ("a", 4 if "cls" in kinds else None, 1.0)


def test_a_key_that_is_there_twice_is_named_and_the_others_answered(tmp_path: Path) -> None:
    for order in ("abbc", "abcb"):
        files = [(f"{key}.jpg", png(n)) for n, key in enumerate(order)]
        found, named = answered(tmp_path, files)
        assert [name for name, *_ in found] == ["a", "b", "c"]
        assert named == {"b": "expected each key once in a shard, b is there again"}


def test_many_names_with_dots_are_not_all_held(tmp_path: Path) -> None:
    files = [(f"I.{n:04d}.png", png(n % 200)) for n in range(700)]
    found, named = answered(tmp_path, files)
    assert found == [(f"I.{n:04d}", None, float(n % 200)) for n in range(700)]
    assert not named


def test_hidden_files_of_a_shard_are_none(tmp_path: Path) -> None:
    files = [("__MACOSX/a.png", png(1)), ("./a.png", png(2)), ("./._a.png", png(3))]
    files += [(".cache/b.png", png(4))]
    assert answered(tmp_path, files) == ([("./a", None, 2.0)], {})


@pytest.mark.parametrize(("name", "count", "faults"), [("dots", 6, 0), ("dupadj", 3, 1)])
def test_stored_shards(shared_data: Path, name: str, count: int, faults: int) -> None:
    source = open_source(shared_data / "faults" / f"{name}.tar", None)
    items = list(source.items(0))
    assert len({item.id for item in items if not item.fault}) == count
    assert sum(bool(item.fault) for item in items) == faults
