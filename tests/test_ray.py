"""Ray Data, for real: two actors on this machine, one of them killed in the middle of a run."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")

from papr.errors import ConfigError, PaprWarning  # noqa: E402
from papr.evaluate import Predictor, open_source, predict  # noqa: E402
from papr.evaluate.stores import Store  # noqa: E402
from tiny_sources import odd_name  # noqa: E402

SAMPLES, BATCH = 24, 2


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Three CPUs in name: two actors, and one that reads and writes."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Not tmp_path: the path of a socket has 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="papr-ray-")
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    monkeypatch.chdir(tmp_path)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def slow_host(log: Path, together: bool):
    """A function that makes a tiny ViT, which notes its process and its images, slowly.

    Nested, so that it travels to processes that cannot import this file.
    """

    def make():
        import os
        import time

        import timm
        import torch

        torch.manual_seed(1)
        options = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 2, "num_classes": 7}
        model = timm.create_model("vit_tiny_patch16_224", **options).eval()

        def note(module, given):
            with log.open("a") as file:
                file.write(f"{os.getpid()} {len(given[0])}\n")
            for _ in range(1200 if together else 0):  # until the other actor has begun as well
                if len({line.split()[0] for line in log.read_text().splitlines()}) > 1:
                    break
                time.sleep(0.05)
            time.sleep(0.3)

        model.register_forward_pre_hook(note)
        return model

    return make


def noted(log: Path) -> list[tuple[int, int]]:
    """(process, images) of each batch that a host began."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines if line.count(" ") == 1]


def kill_one(log: Path, killed: list[int]) -> None:
    """SIGKILL the process that began the last batch, when both are at work."""
    while True:
        time.sleep(0.05)
        found = noted(log)
        if len(found) >= 4 and len({process for process, _ in found}) == 2:
            os.kill(found[-1][0], signal.SIGKILL)
            killed += [found[-1][0], len(found)]
            return


def test_nothing_is_lost_or_twice_when_a_worker_is_killed(cluster, tmp_path):
    data, log = tmp_path / "data", tmp_path / "log"
    odd = odd_name(data, b"03 caf\xe9 [x].png")  # neither Arrow nor Ray takes it for a text
    out = tmp_path / odd_name(tmp_path, b"ray \xe9")
    for number in range(SAMPLES - 1):
        noise = torch.randint(256, (32, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(data / (odd if number == 3 else f"{number:02d}.png"))
    (data / "broken.png").write_bytes(b"no image")
    source = replace(open_source(data), labels=[number % 7 for number in range(SAMPLES)])

    local = Predictor(slow_host(tmp_path / "local log", together=False), 0.5, device="cpu")
    predict(local, source, tmp_path / "local", batch=SAMPLES, workers=0)
    rows = Store(str(tmp_path / "local")).read("00000-000000.parquet").to_pylist()
    want = {row["id"]: row for row in rows}

    predictor = Predictor(slow_host(log, together=True), 0.5, device="cpu")
    options = {"engine": "ray", "batch": BATCH, "part": BATCH}
    with pytest.raises(ConfigError, match="at most 2 actors"):
        predict(predictor, source, out, actors=3, **options)
    # An earlier session left the rows of samples 4 and 9, marked, which must stay as they are.
    store = Store(str(out))
    early = [{**rows[n], "score": [9.0]} for n in (4, 9)]
    store.write("early-000000.parquet", pa.Table.from_pylist(early, predictor.schema))
    (out / "rows" / "empty-000000.parquet").touch()

    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(log, killed), daemon=True)
    killer.start()
    with pytest.warns(PaprWarning, match=r"empty-000000\.parquet cannot be read"):
        found = predict(predictor, source, out, actors=2, **options)
    killer.join(timeout=1)

    process, begun = killed
    images = [count for _, count in noted(log)]
    assert sum(images[:begun]) < SAMPLES - 3 < sum(images)  # in the middle; a batch begun twice
    assert {one for one, _ in noted(log)[begun:]} - {process}  # others went on
    assert (found.samples, found.done) == (SAMPLES, SAMPLES - 2)
    got = [row for name in store.names() for row in store.read(name).to_pylist()]
    assert sorted(row["id"] for row in got) == sorted(want)
    for row in got:
        other = want[row["id"]]
        assert row["label"] == (None if other["error"] else row["position"] % 7)
        if row["position"] in (4, 9):
            assert row["score"] == [9.0]
            continue
        for name in ("shard", "position", "label", "predicted", "top5", "mask", "grid", "error"):
            assert row[name] == other[name], name
        if row["error"] is None:
            for name in ("score", "embedding"):
                np.testing.assert_allclose(row[name], other[name], atol=1e-5)
    assert [sample.id for sample in found.skipped] == ["broken.png"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["samples"], len(summary["skipped"])) == (SAMPLES, 1)
    begun = len(noted(log))
    again = predict(predictor, source, out, actors=2, **options)
    assert (again.samples, again.done, len(noted(log))) == (SAMPLES, 0, begun)
