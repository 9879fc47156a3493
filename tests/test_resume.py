"""A run that is killed at any moment and taken up again ends with the rows of one that was not."""

import io
import json
import multiprocessing
import random
import tarfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from papr.errors import ConfigError
from papr.evaluate import evaluate
from papr.evaluate.locks import locked
from papr.evaluate.runs import Folder
from tiny_data import CLASSES, KEEPS, Slow, host, pictures

COUNT, BATCH, PART, SHARDS = 240, 2, 4, 6
SECONDS = 0.03  # a sample is delayed by: the whole run takes seconds, and is killed within them


def one_session(data: Path, out: Path, workers: int, seconds: float = SECONDS) -> None:
    """What each process does until it is killed."""
    torch.set_num_threads(1)
    # Loaders of a process from a fork server would have one of their own, which outlives a kill.
    multiprocessing.set_start_method("fork", force=True)
    evaluate(
        host(),
        data,
        KEEPS,
        out,
        prepare=Slow(seconds),
        batch=BATCH,
        part=PART,
        workers=workers,
    )


def contents(out: Path) -> dict[str, tuple[list[dict], bytes]]:
    """Rows and metadata of every file."""
    tables = {path.name: pq.read_table(path) for path in (out / "rows").iterdir()}
    return {name: (t.to_pylist(), t.schema.metadata[b"papr"]) for name, t in tables.items()}


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes that start with everything imported, from one that never ran a thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papr.evaluate", "tiny_data"])
    return context


def in_shards(folder: Path, out: Path) -> Path:
    """The pictures of a folder and their classes in tar files; the last of them breaks off."""
    out.mkdir()
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.name)
    for shard in range(SHARDS):
        with tarfile.open(out / f"{shard}.tar", "w") as tar:
            for path in paths[shard * COUNT // SHARDS : (shard + 1) * COUNT // SHARDS]:
                label = str(CLASSES.index(path.parent.name)).encode()
                for suffix, content in (("cls", label), ("png", path.read_bytes())):
                    info = tarfile.TarInfo(f"{path.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    last = out / f"{SHARDS - 1}.tar"
    with tarfile.open(last) as tar:
        end = tar.getmembers()[-1]
    last.write_bytes(last.read_bytes()[: end.offset_data + end.size // 2])
    return out


@pytest.mark.parametrize(("kind", "wanted"), [("folder", 10), ("shards", 3)])
def test_kills_at_random_moments_change_nothing(
    tmp_path: Path, context: ForkServerContext, kind: str, wanted: int
) -> None:
    broken = (3, 4, 5, 100, COUNT - 1) if kind == "folder" else (3, 4, 5, 100)
    data = pictures(tmp_path / "pictures", COUNT, broken=broken)
    if kind == "shards":
        pytest.importorskip("webdataset", reason="needs the extra: eval")
        data = in_shards(data, tmp_path / "shards")
    moments = random.Random(0)
    kills, partial = 0, set()
    while kills < wanted:
        session = context.Process(target=one_session, args=(data, tmp_path / "killed", kills % 2))
        before = len(Folder(tmp_path / "killed").parts())
        session.start()
        moment = moments.uniform(0.0, 0.6)
        if kills % 3:  # among rows, not before them
            _wait_for_a_part(tmp_path / "killed", before, session)
        time.sleep(moment)
        assert session.is_alive(), f"nothing was left to kill after {kills} kills"
        session.kill()
        session.join()
        kills += 1
        partial.add(len(Folder(tmp_path / "killed").parts()))
    total = COUNT // PART
    assert len(partial) > wanted // 3, "the kills came before any work was done"
    assert max(partial) < total
    for out in ("killed", "whole"):
        last = context.Process(target=one_session, args=(data, tmp_path / out, 0, 0.0))
        last.start()
        last.join()
        assert last.exitcode == 0
    whole = contents(tmp_path / "whole")
    assert len(whole) == total
    named = [sample for _, metadata in whole.values() for sample in json.loads(metadata)["skipped"]]
    assert len(named) == 5
    assert contents(tmp_path / "killed") == whole


def _wait_for_a_part(out: Path, before: int, session: multiprocessing.Process) -> None:
    while session.is_alive() and len(Folder(out).parts()) == before:
        time.sleep(0.01)


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures", 4)
    evaluate(host(), data, KEEPS, tmp_path / "run", batch=BATCH, part=PART, workers=0)
    left = tmp_path / "run" / "rows" / ".00000-000000.parquet.x.parquet"
    left.write_bytes(b"half a file")
    (tmp_path / "run" / "rows" / "00000-000000.parquet").unlink()
    evaluate(host(), data, KEEPS, tmp_path / "run", batch=BATCH, part=PART, workers=0)
    assert [path.name for path in (tmp_path / "run" / "rows").iterdir()] == ["00000-000000.parquet"]


def test_a_second_run_is_refused_until_the_first_is_killed(
    tmp_path: Path, context: ForkServerContext
) -> None:
    """By a loader process too, which has the open file of the lock and dies later."""
    data, out = pictures(tmp_path / "pictures", 100), tmp_path / "run"
    session = context.Process(target=one_session, args=(data, out, 1))
    session.start()
    _wait_for_a_part(out, 0, session)
    writing, index = out / "rows" / ".00000-000099.parquet.x.parquet", out / ".index-x"
    writing.write_bytes(b"half a file")
    index.mkdir()
    again = {"batch": BATCH, "part": PART, "workers": 0, "prepare": Slow(0.0)}
    with pytest.raises(ConfigError, match="another process is running here"):
        evaluate(host(), data, KEEPS, out, **again)
    assert session.is_alive()
    assert writing.exists()
    assert index.exists()
    session.kill()
    session.join()
    report = evaluate(host(), data, KEEPS, out, **again)
    assert report.results[0].images == 100
    assert not writing.exists()
    assert not index.exists()


def test_where_nothing_can_be_locked_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass
