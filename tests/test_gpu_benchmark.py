"""benchmarks/gpu.py with tiny hosts: that all of it works before a card is borrowed for it."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conftest import DEVICE

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def run_of(gpu: ModuleType, folder: Path, seconds: float):
    return gpu.Run(folder / "g.json", DEVICE, True, time.monotonic() + seconds)


@pytest.mark.skipif(
    DEVICE.type == "cpu" and shutil.which("c++") is None,
    reason="inductor needs a C++ compiler on a CPU",
)
def test_tiny(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--tiny", "--json", str(path)])
    gpu.main()
    stored = json.loads(path.read_text())
    assert stored["tiny"]
    assert stored["left_out"] == []
    assert [(row["mode"], row["left_out"]) for row in stored["rows"]] == [
        ("eager", {}),
        ("compiled", {}),
        ("graphs", {}),
    ]
    eager = stored["rows"][0]
    assert {"dense", "papr 0.5", "limit 0.5", "tome 0.5", "proposal"} <= set(eager["ms"])
    assert eager["speedup"]["dense"] == [1, 1, 1]
    assert all(len(profile["longest"]) == 10 for profile in stored["profiles"])
    assert [profile["what"] for profile in stored["profiles"]] == ["dense", "papr 0.5"]
    (tests,) = stored["tests"]
    assert tests["summary"].startswith("1 passed")
    assert tests["failed"] == []
    assert "contract tests on" in capsys.readouterr().out
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


def test_what_no_longer_fits_is_left_out_and_told(gpu: ModuleType, tmp_path: Path, capsys) -> None:
    run = run_of(gpu, tmp_path, 60)
    gpu.time_cells(run, gpu.PLAN, (1, 1), 120)
    gpu.contract_tests(gpu.Run(run.path, DEVICE, False, run.end - 50, run.found), ())
    stored = json.loads(run.path.read_text())
    assert stored["rows"] == []
    assert [each["what"] for each in stored["left_out"]] == [*map(str, gpu.PLAN), "contract tests"]
    assert (
        "left out: vit_base_patch16_224, batch 256, eager: needs about" in capsys.readouterr().out
    )


def test_a_rival_that_cannot_be_had_is_named(gpu: ModuleType) -> None:
    import gpu_rows

    cell = gpu.Cell(gpu_rows.TINY, 1, "eager", ("papr 0.5 no_such_network", "limit 0.5"))
    row = gpu.measure(cell, gpu.make_host(cell.host).to(DEVICE), 1)
    assert set(row["ms"]) == {"dense", "limit 0.5"}
    assert "no_such_network" in row["left_out"]["papr 0.5 no_such_network"]


def test_the_limit_is_the_host_on_those_tokens(gpu: ModuleType) -> None:
    """What it answers is what papr answers where it keeps the same patches."""
    import gpu_rows
    import papr

    host = gpu.make_host(gpu_rows.TINY).to(DEVICE)
    pixels = gpu.draw(host, 2)
    limit = gpu.make_rival("limit 0.5", host, pixels)
    even = torch.tensor([[0.0, 1.0] * 8]).view(1, 4, 4).to(DEVICE)
    pruned = papr.prune(host, 0.5, lambda x: -even.expand(len(x), 4, 4))
    with torch.no_grad():
        assert torch.allclose(limit(pixels), pruned(pixels), atol=1e-5)


def test_a_cpu_is_refused_without_tiny(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py"])
    with pytest.raises(SystemExit, match="expected a CUDA device"):
        gpu.main()


def test_figures_of_the_page_are_the_stored_ones() -> None:
    """Those in its two tables: hosts, then batches of ViT-B/16, eager and in graphs."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "speed-h200.json").read_text())
    found = stored["measured"]
    page = (ROOT / "docs" / "gpu.md").read_text()

    def cells(row: dict, names: str, digits: int) -> list[str]:
        told = []
        for name in [name for name in names.split(",") if name in row]:
            told.append(f"{row[name]:.{digits}f}")
            if name != "dense":
                turn_by_turn = row.get("speedup", {}).get(name, [row["dense"] / row[name]])
                told.append(f"{turn_by_turn[0]:.2f}")
        return told

    def line(start: str) -> list[str]:
        (only,) = [x for x in page.splitlines() if x.startswith(f"| {start}")]
        return re.findall(r"[0-9.]+", only.removeprefix(f"| {start}"))

    five = "dense,papr0.7,papr0.5,papr0.3,bare0.5,tome"
    for size, name in (("B", "base"), ("L", "large")):
        for mode in ("eager", "compiled"):
            row = found[f"{mode} vit_{name}_patch16_224 b256"]
            assert line(f"ViT-{size}/16, {mode}") == cells(row, five, 1)
    swin, convnext = found["eager swin_base b128"], found["eager convnext_base b128"]
    assert line("Swin-B, eager") == cells(swin, "dense,papr0.5", 1)
    assert line('Swin-B, `attention="kept"`, eager') == cells(swin, "dense,kept0.5", 1)
    assert line("ConvNeXt-B, eager") == cells(convnext, "dense,papr0.5", 1)
    for batch in (1, 8, 32, 64, 256):
        eager = found.get(f"eager vit_base_patch16_224 b{batch}", {})
        graphs = found[f"graphed ViT-B b{batch}"]
        digits = 1 if batch == 256 else 2
        expected = cells(eager, "dense,papr0.5", digits)
        expected += cells(graphs, "dense,papr0.5 lite0,papr0.5 tiny", digits)
        assert line(f"{batch} |") == expected


def test_names_of_files(gpu: ModuleType) -> None:
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
