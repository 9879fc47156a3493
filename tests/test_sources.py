"""Every kind of data set: the same samples in the same order, labels checked against the host."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")

import pyarrow as pa

from papr.evaluate import DataError, open_source
from papr.evaluate.loading import Batch, Plan, loader
from papr.evaluate.ranks import Ranks
from papr.evaluate.shards import to_class
from papr.evaluate.sources import Chosen, take
from tiny_sources import everything, level, png, prepare, rows, skips, touch, write_shard

# Folders


def test_a_folder_is_read_in_natural_order_and_what_is_none_is_named(tmp_path: Path) -> None:
    names = ["a/x10.png", "a/x9.PNG", "b/deep/er/1.png", "b/deep/er/01.png", "notes.txt", "b/._c"]
    source = open_source(touch(tmp_path / "root", *names), 2)
    paths = [source.item(i).id for i in range(source.length)]
    assert paths == ["a/x9.PNG", "a/x10.png", "b/deep/er/01.png", "b/deep/er/1.png"]
    assert [source.item(i).label for i in range(4)] == [0, 0, 1, 1]
    assert source.ignored == ["b/._c", "notes.txt"]
    assert (source.kind, source.note) == ("folder", "labels: top-level folders in sorted order")


def test_word_net_ids_count_at_any_level(tmp_path: Path) -> None:
    names = ["n01440764/images/1.png", "set/n01443537/images/2.png"]
    source = open_source(touch(tmp_path, *names), 1000)
    assert ([source.item(i).label for i in (0, 1)], source.note) == ([0, 1], "")
    assert open_source(touch(tmp_path, "more/images/3.png"), 1000).item(0).label is None


def test_a_flat_folder_and_one_file_have_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    flat, one = open_source(tmp_path, 3), open_source(str(tmp_path / "2.png"), 3)
    assert [flat.item(i).label for i in (0, 1)] == [None, None]
    assert "no folders of classes for the host's 3" in flat.note
    assert (one.length, one.item(0).id, one.item(0).label) == (1, "2.png", None)
    assert one.item(0).content == tmp_path / "2.png"


def test_identity_follows_names_order_and_labels_but_not_the_place(tmp_path: Path) -> None:
    first = touch(tmp_path / "one", "a/1.png", "b/2.png")
    again = touch(tmp_path / "two", "a/1.png", "b/2.png")
    moved = touch(tmp_path / "three", "b/1.png", "a/2.png")
    seen = [open_source(root, 2).identity() for root in (first, again, moved)]
    assert seen[0] == seen[1] != seen[2]
    assert open_source(first, 5).identity() != seen[0]  # its labels are not used


def test_identity_follows_the_sizes_of_files(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.png", "b/2.png")
    (tmp_path / "list.txt").write_text("root/a/1.png 0\nroot/gone.png 1\n")
    data = (root, tmp_path / "list.txt", f"file://{root}")

    def seen() -> list[dict[str, object]]:
        return [open_source(one, 2).identity() for one in data]

    before = seen()
    assert seen() == before
    (root / "a" / "1.png").write_bytes(b"another picture")
    after = seen()
    assert all(old != new for old, new in zip(before, after, strict=True))
    (root / "gone.png").touch()
    assert seen()[1] != after[1]  # empty is not the same as gone


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, other = touch(tmp_path / "root", "a/1.png"), touch(tmp_path / "other", "2.png")
    (root / "b").symlink_to(other)
    (root / "a" / "3.png").symlink_to(other / "2.png")
    source = open_source(root, 2)
    assert [source.item(i).id for i in range(3)] == ["a/1.png", "a/3.png", "b/2.png"]
    assert [source.item(i).label for i in range(3)] == [0, 0, 1]
    (other / "back").symlink_to(root / "a")  # twice the same folder is no circle
    assert open_source(root, 2).length == 5
    (root / "a" / "round").symlink_to(other)
    with pytest.raises(DataError, match=r"without circles, .* leads back to"):
        open_source(root, 2)


def test_names_that_are_no_unicode_can_be_written_down(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        touch(tmp_path, name)
    except OSError:
        pytest.skip("the file system takes Unicode only")
    item = open_source(tmp_path, 3).item(0)
    assert item.id == "caf\\xe9.png"
    assert pa.array([item.id], pa.string())[0].as_py() == item.id
    assert level(item) == len(name)


def test_what_cannot_be_had_is_named_by_its_name(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.png", "b/2.png")
    source = open_source(f"file://{root}")
    (root / "b" / "2.png").unlink()
    (gone,) = skips(everything(Chosen(source, [0, 1])))
    assert (gone.position, gone.id) == (1, "b/2.png")
    assert gone.reason.startswith("cannot fetch b/2.png")


# Lists


def test_lists_name_files_below_their_root(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a b.png", "c.png")
    (tmp_path / "list.txt").write_text("a b.png 1\nc.png 0\ngone.png 1\n")
    source = open_source(tmp_path / "list.txt", 2, root=root)
    batches = everything(source)
    assert [row[2:4] for row in rows(batches)] == [("a b.png", 1), ("c.png", 0)]
    assert [(s.position, s.id) for s in skips(batches)] == [(2, "gone.png")]
    assert "No such file" in skips(batches)[0].reason
    touch(tmp_path, "c.png")
    assert open_source(tmp_path / "list.txt", 2).item(1).content == tmp_path / "c.png"
    assert source.note == "labels: the list's numbers as they stand"
    beyond = open_source(tmp_path / "list.txt", 1)
    assert beyond.item(0).label is None
    assert beyond.note == "labels up to 1 for the host's 1 class: labels are not used"
    with pytest.raises(DataError, match="expected a list"):
        open_source(root, 2, root=root)


# Shards


def sample(number: int, label: int = 0) -> list[tuple[str, bytes]]:
    return [(f"k{number}.png", png(number)), (f"k{number}.cls", str(label).encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 5, 4 and 1 samples, labelled 0 to 2."""
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    for shard, numbers in enumerate((range(5), range(5, 9), range(9, 10))):
        files = [file for n in numbers for file in sample(n, n % 3)]
        write_shard(tmp_path / "shards" / f"{shard:03d}.tar", files)
    return tmp_path / "shards"


def test_shards_by_folder_pattern_and_address_are_the_same(shards: Path) -> None:
    whole = rows(everything(open_source(shards, 3)))
    assert [row[1] for row in whole] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    assert [row[2:] for row in whole] == [(f"k{n}", n % 3, float(n)) for n in range(10)]
    pattern = f"{shards}/{{000..002}}.tar"
    assert rows(everything(open_source(pattern, 3))) == whole
    assert rows(everything(open_source(f"pipe:cat {pattern}", 3))) == whole
    packed = shards.parent / "packed.tar.gz"
    packed.write_bytes(gzip.compress((shards / "000.tar").read_bytes()))
    assert rows(everything(open_source(packed, 3))) == whole[:5]
    assert open_source(shards, 3).identity() == open_source(pattern, 3).identity()


def test_workers_ranks_and_what_is_done_change_no_row(shards: Path) -> None:
    source, plan = open_source(shards, 3), Plan(2, 4)
    whole = everything(source)
    found: list[Batch] = []
    for rank in range(2):
        mine = Ranks(rank, 2).share(range(3))
        found += loader(source, plan, mine, prepare, workers=2 - 2 * rank)
    assert rows(found) == rows(whole)
    alike = [
        {(b.part, tuple(b.positions), b.closes, b.ends) for b in run} for run in (found, whole)
    ]
    assert alike[0] == alike[1]
    first = {batch.part for batch in whole if batch.part.number == 0}
    rest = everything(source, done=first)
    assert rows(rest) == [row for row in rows(whole) if row[0] == 0 and row[1] == 4]


def test_a_shard_that_breaks_off_keeps_what_came_before(shards: Path) -> None:
    data = (shards / "001.tar").read_bytes()
    with tarfile.open(shards / "001.tar") as tar:
        starts = [(member.name, member.offset, member.offset_data) for member in tar]
    places = {name: (header, content) for name, header, content in starts}
    cases = {
        "in a picture": (data[: places["k7.png"][1] + 9], 2),
        "in a label, its picture whole": (data[: places["k7.cls"][1]], 2),
        "in a header": (data[: places["k7.png"][0] + 99], 2),
        "between two samples": (data[: places["k7.png"][0]], 2),
        "at the end": (data[: places["k8.cls"][1] + 512], 4),
        "at the start": (data[:100], 0),
        "empty": (b"", 0),
        "no tar": (b"x" * 5000, 0),
    }
    header = places["k7.png"][0]
    cases["a damaged header"] = (data[:header] + b"\xff" * 512 + data[header + 512 :], 2)
    for what, (content, stands) in cases.items():
        (shards / "001.tar").write_bytes(content)
        source = open_source(shards, 3)
        batches = everything(source)
        kept = [row for row in rows(batches) if row[0] == 1]
        assert [row[2:] for row in kept] == [
            (f"k{n}", n % 3, float(n)) for n in range(5, 5 + stands)
        ], what
        (named,) = skips(batches)
        assert (named.position, named.id) == (stands, str(shards / "001.tar")), what
        assert "cannot read" in named.reason, what
        assert "0x" not in named.reason, what  # the same in every session
        assert len(rows(batches)) == 6 + stands, what
        limited = take(source, 100)
        assert [row[2:] for row in rows(everything(limited))] == [r[2:] for r in rows(batches)]
        assert [s.reason for s in skips(everything(limited))] == [named.reason], what
    (shards / "001.tar").unlink()
    with pytest.raises(DataError, match=r"001\.tar does not exist"):
        open_source(f"{shards}/{{000..002}}.tar", 3)


def test_a_pipe_that_fails_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    Path("pipe").touch()  # which the command is not a split of
    command = f"pipe:head -c 3000 {shards}/000.tar; exit 3"
    (named,) = skips(everything(open_source(command, 3)))
    assert named.id == command


def test_samples_of_shards_have_labels_of_the_host_or_are_named(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    json_label = json.dumps({"label": 2, "text": "x"}).encode()
    files = [
        *[("a.png", png(1)), ("a.json", json_label)],
        *[("b.seg.png", png(9)), ("b.jpg", png(2)), ("b.cls", b"-1\n")],
        *[("c.left.png", png(3)), ("c.cls", b"1")],
        ("d.txt", b"no image"),
    ]
    files += [file for n in range(70) for file in sample(n + 10, 1)]
    files += [*sample(90, 7), ("k91.png", png(91)), ("k91.cls", b"dog")]
    source = open_source(write_shard(tmp_path / "a.tar", files), 3)
    batches = everything(source)
    assert [row[2:] for row in rows(batches)][:3] == [
        ("a", 2, 1.0),
        ("b", None, 2.0),  # -1 is how test sets withhold it
        ("c", 1, 3.0),
    ]
    reasons = {s.id: s.reason for s in skips(batches)}
    assert reasons == {
        "d": "expected an image in the sample d, none",
        "k90": "expected a class 0 to 2, got the label '7'",
        "k91": "expected a class 0 to 2, got the label 'dog'",
    }
    assert source.note == "labels: the shards' numbers as they stand"
    early = open_source(write_shard(tmp_path / "b.tar", sample(1, 5) + sample(2, 1)), 3)
    assert "expected a class 0 to 2, got the label '5': labels are not used" in early.note
    assert [row[3] for row in rows(everything(early))] == [None, None]
    assert not skips(everything(early))
    bare = open_source(write_shard(tmp_path / "c.tar", [("a.png", png(1))]), 3)
    assert bare.note == "no labels in the shards: labels are not used"


def test_identity_of_shards_follows_content_and_order(shards: Path) -> None:
    seen = open_source(shards, 3).identity()
    assert open_source(f"{shards}/{{002..000}}.tar", 3).identity() != seen
    assert open_source(f"{shards}/{{000..001}}.tar", 3).identity() != seen
    assert open_source(shards, None).identity() != seen
    write_shard(shards / "002.tar", sample(9, 1))  # another label, as many bytes
    assert open_source(shards, 3).identity() != seen


def test_classes_are_numbers_or_word_net_ids() -> None:
    assert to_class("n01443537", 1000) == 1
    assert (to_class(" 7\n", 10), to_class(7, 10), to_class(-1, 10)) == (7, 7, None)
    for wrong in ("n01443537", "1.5", 10, True, 1.0, None, "²"):
        with pytest.raises(DataError, match="expected a class 0 to 9"):
            to_class(wrong, 10)
