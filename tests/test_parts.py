"""Where a run writes, and what lies among its parts: said before the work, and never lost."""

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("pyarrow", reason="needs the extra: eval")

import pyarrow as pa
import pyarrow.parquet as pq

from papr.cli import app
from papr.errors import ConfigError, PaprWarning
from papr.evaluate import Predictor, drift, evaluate, predict
from papr.evaluate.runs import Folder
from papr.evaluate.stores import Store
from tiny_data import KEEPS, host, pictures
from tiny_sources import odd_name


def run(data: Path, out: Path) -> list[dict]:
    evaluate(host(), data, KEEPS[:1], out, batch=2, part=2, workers=0)
    return [row for table in Folder(out).tables() for row in table.to_pylist()]


@pytest.mark.parametrize("what", ["empty", "cut off", "another's"])
def test_a_part_that_cannot_be_read_is_named_and_done_again(what: str, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "data", 6), tmp_path / "run"
    whole = run(data, out)
    part = out / "rows" / "00000-000001.parquet"
    content = {"empty": b"", "cut off": part.read_bytes()[:-9]}.get(what)
    if content is None:
        pq.write_table(pa.table({"a": [1]}), part)
    else:
        part.write_bytes(content)
    with pytest.warns(PaprWarning, match=r"00000-000001\.parquet cannot be read, so its samples"):
        assert run(data, out) == whole
    assert part.with_suffix(".unreadable").exists()  # what was there may be somebody's


def test_a_part_in_the_middle_of_a_shard_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs the extra: eval")
    from tiny_sources import png, write_shard

    shard = write_shard(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(6)])
    whole = run(shard, tmp_path / "run")
    (tmp_path / "run" / "rows" / "00000-000001.parquet").write_bytes(b"")
    with pytest.warns(PaprWarning, match="done again"):
        assert run(shard, tmp_path / "run") == whole


def test_a_file_among_the_parts_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "data", 2), tmp_path / "run"
    run(data, out)
    (out / "rows" / "00000-000000 (copy).parquet").touch()
    with pytest.raises(ConfigError, match=r"only parts of the run in .*, got 00000-000000 \(copy"):
        run(data, out)


def test_rows_of_many_machines_that_cannot_be_read_are_set_aside(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    store.write("a-000000.parquet", pa.table({"shard": [0], "position": [3]}))
    store.write("b-000000.parquet", pa.table({"other": [0]}))
    (tmp_path / "out" / "rows" / "c-000000.parquet").touch()
    with pytest.warns(PaprWarning, match="cannot be read") as said:
        assert {shard: list(p) for shard, p in store.settle().items()} == {0: [3]}
    assert len(said) == 2
    assert store.names() == ["a-000000.parquet"]


def test_parts_are_on_the_disk_before_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_sync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        events.append(f"sync {kind}")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        if target.suffix == ".parquet":
            events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    run(pictures(tmp_path / "data", 2), tmp_path / "run")
    Store(str(tmp_path / "store")).write("a.parquet", pa.table({"a": [1]}))
    assert events == ["sync file", "rename", "sync folder"] * 2


def test_a_run_in_a_folder_of_any_name(tmp_path: Path) -> None:
    odd = odd_name(tmp_path, b"caf\xe9 [x] *")
    rows = run(pictures(tmp_path / odd / "data", 2), tmp_path / odd / "run [y]")
    assert [row["id"] for row in rows] == ["ant/000.png", "bee/001.png"] * 2


OUT = {
    "eval": ["--data", "."],
    "sweep": ["--data", "."],
    "predict": ["--data", "."],
    "drift": ["--data", "."],
    "compare": ["."],
    "compare-cam": ["."],
    "mask": ["."],
    "demo": [],
}


@pytest.mark.parametrize("command", OUT)
def test_an_address_is_no_folder_and_nothing_no_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value, message in (
        ("s3://bucket/x", "to be a folder, got the address s3:/"),
        ("", "expected something for --out, got an empty text"),
    ):
        result = CliRunner().invoke(app, [command, *OUT[command], "--out", value])
        assert result.exit_code == 1
        assert message in str(result.exception)
        assert not list(tmp_path.iterdir())
    for arguments in (["--data", ""], ["--data="], [""]):
        result = CliRunner().invoke(app, [command, *arguments])
        assert "got an empty text" in str(result.exception)


def test_calls_refuse_them_too(tmp_path: Path) -> None:
    data, model = pictures(tmp_path, 2), host()
    for out, message in (("", "an empty one"), ("gs://b/x", "got the address")):
        with pytest.raises(ConfigError, match=message):
            evaluate(model, data, [0.5], out)
        with pytest.raises(ConfigError, match=message):
            drift(model, data, [0.5], out)
        with pytest.raises(ConfigError, match=message):
            predict(Predictor("no model"), data, out)
