"""Processes that torchrun started refuse together what one of them must refuse."""

import multiprocessing
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.evaluate import evaluate
from tiny_data import KEEPS, host, pictures

COUNT, WORLD = 6, 2


def one_rank(rank: int, folder: Path, told: "multiprocessing.Queue[tuple[int, list[str]]]") -> None:
    """Three runs in a row: another model in one process, then the same, then other batches."""
    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = str(WORLD)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    other = host()
    torch.nn.init.zeros_(other.head.bias.data).add_(rank)
    found = []
    for model, batch in ((other, 2), (host(), 2), (host(), 3)):
        try:
            out = folder / "run"
            report = evaluate(model, folder / "pictures", KEEPS, out, batch=batch, workers=0)
            found.append(f"{report.results[0].images} images")
        except papr.PaprError as error:
            found.append(f"{type(error).__name__}: {error}")
        if rank == 0:
            found.append(f"{len(list((folder / 'run').glob('rows/*')))} files")
    told.put((rank, found))
    dist.destroy_process_group()


def test_what_one_process_must_refuse_all_refuse(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", COUNT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papr.evaluate", "tiny_data"])
    told = context.Queue()
    both = [context.Process(target=one_rank, args=(rank, tmp_path, told)) for rank in range(WORLD)]
    for process in both:
        process.start()
    found = dict(told.get(timeout=120) for _ in both)
    for process in both:
        process.join()
        assert process.exitcode == 0
    unlike, before, done, files, refused, after = found[0]
    assert found[1] == [unlike, done, refused]
    assert unlike.startswith("ConfigError: expected one configuration in all processes, got weight")
    assert "in process 1" in unlike
    assert (before, done, files, after) == ("0 files", f"{COUNT} images", "1 files", "1 files")
    assert refused.startswith("ConfigError: expected an output folder without rows of another")
    assert "batch: 2, now 3" in refused
    assert pq.read_table(tmp_path / "run" / "rows").num_rows == COUNT * (1 + len(KEEPS))


@pytest.mark.parametrize("command", [["doctor"], ["tune", "--data", "nowhere"]])
def test_what_processes_cannot_share_is_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = CliRunner().invoke(app, [*command, "--model", "no-such-model"])
    assert isinstance(found.exception, papr.errors.ConfigError)
    assert f"expected papr {command[0]} in one process, got 2" in str(found.exception)
