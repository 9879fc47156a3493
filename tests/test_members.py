"""Names in shards as they come: each image is answered under a name of its own, or named."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")
pytest.importorskip("webdataset", reason="needs the extra: eval")

from papr.evaluate import open_source
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
    files += [("s.left.png", png(8)), ("s.right.png", png(9)), ("s.cls", b"4")]
    files += [("t.jpg", png(5)), ("t.seg.png", png(6)), ("t.2.jpg", png(7)), ("t.cls", b"3")]
    found, named = answered(tmp_path, files)
    assert found == [
        *((f"IMG.{n}", n, float(n)) for n in range(3)),
        *[("s.left", 4, 8.0), ("s.right", 4, 9.0)],
        *[("t", 3, 5.0), ("t.2", 3, 7.0)],
    ]
    assert named == {"x/c": "expected an image in the sample x/c, none"}


def test_a_key_that_is_there_twice_is_named_and_the_others_answered(tmp_path: Path) -> None:
    for order in ("abbc", "abcb"):
        files = [(f"{key}.jpg", png(n)) for n, key in enumerate(order)]
        found, named = answered(tmp_path, files)
        assert [name for name, *_ in found] == ["a", "b", "c"]
        assert named == {"b": "expected each key once in a shard, b is there again"}


def test_many_names_with_dots_are_not_all_held(tmp_path: Path) -> None:
    files = [("I.cls", b"2"), *((f"I.{n:04d}.png", png(n % 200)) for n in range(700))]
    found, named = answered(tmp_path, files)
    assert found == [(f"I.{n:04d}", 2, float(n % 200)) for n in range(700)]
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
