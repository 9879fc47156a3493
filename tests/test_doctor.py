"""The verdict on made-up numbers, one for each outcome; the measurement on a tiny real model."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.cli.doctor import show
from papr.compare import Row
from papr.evaluate import doctor
from papr.evaluate.doctor import diagnose, hindrances, stand_in
from papr.evaluate.loading import usable_cores, usual_workers
from papr.evaluate.verdicts import (
    Loading,
    Machine,
    Measured,
    break_even,
    judge,
    parts,
    throughput,
)

GPU = Machine("cuda", cores=16, threads=16, workers=8)
CPU = Machine("cpu", cores=4, threads=2, workers=2)


def table(dense_ms: float, gmacs: float, speedups: dict[float, float], spread: float = 0.0) -> list:
    """A dense row and pruned ones, quartiles a share `spread` away."""

    def row(keep: float, gain: float) -> Row:
        host = gmacs * (1 if keep == 1 else keep)
        ms, about = dense_ms / gain, (gain, gain * (1 - spread), gain * (1 + spread))
        return Row(keep, 8, "float32", (ms, ms, ms), host, 0.2, 10.0, about, gmacs / host)

    return [row(1.0, 1.0), *(row(keep, gain) for keep, gain in speedups.items())]


FAST = {0.7: 1.3, 0.5: 1.7, 0.3: 2.5}
SLOW = {0.7: 0.7, 0.5: 0.8, 0.3: 0.9}


def measured(rows: list, proposal_ms: float, load_ms: float | None, machine: Machine) -> Measured:
    loading = None if load_ms is None else Loading(load_ms / 2, load_ms / 2, 8, "made up")
    return Measured([rows], [proposal_ms], loading, machine)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("good", measured(table(10, 17, FAST), 0.3, 8.0, GPU)),
        ("good", measured(table(10, 17, FAST), 0.3, None, GPU)),
        ("small host", measured(table(1, 1.0, SLOW), 0.5, 8.0, GPU)),
        ("proposal too dear", measured(table(10, 17, SLOW), 5.0, 8.0, GPU)),
        ("overhead", measured(table(10, 17, SLOW), 0.3, 8.0, GPU)),
        ("loader-bound", measured(table(10, 17, FAST), 0.3, 100.0, GPU)),
        ("loader-bound", measured(table(10, 17, FAST), 0.3, 400.0, CPU)),
        ("unclear", measured(table(10, 17, {0.7: 1.05, 0.5: 1.06, 0.3: 1.07}, 0.1), 1, 8, GPU)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_verdicts(kind: str, found: Measured) -> None:
    verdict = judge(found)
    assert verdict.kind == kind
    assert verdict.good == (kind == "good")
    assert ("Do not bother" in verdict.text) == (kind not in ("good", "unclear"))
    assert (verdict.keep is None) == (kind != "good")


def test_a_good_verdict_recommends_the_paying_keep_nearest_half() -> None:
    """End to end on a GPU: 8 processes of 20 ms load 400/s, dense 100/s, keep 0.3 250/s."""
    verdict = judge(measured(table(10, 17, FAST), 0.3, 20.0, GPU))
    assert (verdict.keep, verdict.speedup) == (0.5, pytest.approx(1.7))
    # 8 processes of 64 ms load 125/s: all the host could gain ends there
    verdict = judge(measured(table(10, 17, FAST), 0.3, 64.0, GPU))
    assert verdict.speedup == pytest.approx(1.25)
    assert "1.25x end to end (1.70x in the host alone)" in verdict.text
    # only 0.3 pays
    verdict = judge(measured(table(10, 17, {0.7: 0.8, 0.5: 1.0, 0.3: 1.4}), 3.0, 8.0, GPU))
    assert verdict.keep == 0.3


def test_the_batch_that_serves_the_dense_host_best_decides() -> None:
    slow, fast = table(10, 17, SLOW), table(4, 17, FAST)
    found = Measured([slow, fast], [6.0, 0.2], None, GPU)
    assert judge(found).kind == "good"
    assert judge(replace(found, tables=[slow, table(12, 17, FAST)])).kind == "proposal too dear"


def queue(host_ms: float, load_ms: float, workers: int, images: int = 4000) -> float:
    """Images a second of a simulated pass: processes load with a look-ahead, the host answers."""
    ready = [0.0] * workers
    clock, answered = 0.0, []
    for i in range(images):
        worker = i % workers
        start = max(ready[worker], answered[i - 2 * workers] if i >= 2 * workers else 0.0)
        ready[worker] = start + load_ms
        clock = max(clock, ready[worker]) + host_ms
        answered.append(clock)
    return 1000 * images / clock


@pytest.mark.parametrize(("host_ms", "load_ms", "workers"), [(10, 8, 8), (10, 100, 4), (3, 9, 2)])
def test_on_a_gpu_the_slower_of_loader_and_host_decides(
    host_ms: float, load_ms: float, workers: int
) -> None:
    machine = Machine("cuda", 16, 16, workers)
    expected = queue(host_ms, load_ms, workers)
    found = throughput(host_ms, Loading(load_ms, 0, 1, ""), machine)
    assert found == pytest.approx(expected, rel=0.02)


def test_on_a_cpu_the_cores_are_shared() -> None:
    loading = Loading(6.0, 2.0, 8, "")
    # 4 cores; each image takes 8 ms of one core and 10 ms of four
    assert throughput(10, loading, Machine("cpu", 4, 4, 2)) == pytest.approx(4000 / 48)
    # two threads leave two cores to the loader
    assert throughput(10, loading, Machine("cpu", 4, 2, 2)) == pytest.approx(100)
    # no process: one after the other
    assert throughput(10, loading, Machine("cpu", 4, 2, 0)) == pytest.approx(1000 / 18)
    assert throughput(10, None, Machine("cpu", 4, 4, 2)) == pytest.approx(100)


def test_break_even_of_times_on_a_line() -> None:
    """Time / dense = 0.1 + keep reaches 1 at 0.9; 0.6 + keep at 0.4; 1.1 + keep nowhere."""
    for level, expected, extrapolated in ((0.1, 0.9, True), (0.6, 0.4, False), (1.1, None, True)):
        rows = table(10, 17, {k: 1 / (level + k) for k in (0.7, 0.5, 0.3)})
        found = break_even(rows)
        assert found.keep == (None if expected is None else pytest.approx(expected))
        assert found.extrapolated is extrapolated
        assert found.residual < 1e-9
    bent = break_even(table(10, 17, {0.7: 1 / 0.8, 0.5: 1 / 0.7, 0.3: 1 / 0.4}))
    assert bent.residual == pytest.approx(0.2 / 3)


def test_break_even_does_not_contradict_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that are faster at some keeps and slower at others, and that no line orders."""
    cases: list[tuple[dict[float, float], bool, float | None]] = [
        ({0.7: 0.95, 0.3: 1.02}, False, None),  # falling: neither "at no keep" nor "at any"
        ({0.7: 1.3, 0.5: 0.99, 0.3: 1.2}, False, None),  # above 1 on the line, not at 0.5
        ({0.7: 0.9, 0.5: 1.01, 0.3: 0.85}, False, None),  # the other way about
        ({0.5: 0.9}, False, None),
        ({0.7: 0.95, 0.3: 0.97}, True, 1.0),
        ({0.7: 1.05, 0.3: 1.06}, True, None),
        ({0.7: 1.2, 0.5: 1.01, 0.3: 0.8}, True, 0.5),
    ]
    for times, told, keep in cases:
        rows = table(10, 17, {k: 1 / time for k, time in times.items()})
        found = break_even(rows)
        assert found.told is told, times
        assert found.keep == (None if keep is None else pytest.approx(keep, abs=0.02)), times
    row = measured(table(10, 17, {0.7: 1 / 0.95, 0.3: 1 / 1.02}), 0.3, 8.0, GPU)
    nothing: Any = None
    show(doctor.Diagnosis(nothing, judge(row), row, [], {}), "image")
    assert "Break-even: cannot tell" in capsys.readouterr().out


def test_parts_add_up() -> None:
    found = measured(table(10, 17, FAST), 0.3, 8.0, GPU)
    for part, speedup in zip(parts(found), (1, *FAST.values()), strict=True):
        assert part.proposal + part.host + part.rest == pytest.approx(10 / speedup)
        assert part.total == pytest.approx(10 / speedup)
        assert part.host == pytest.approx(10 * part.keep)
        assert (part.decode, part.prepare) == (4.0, 4.0)


def test_no_part_is_negative_where_smaller_products_run_better() -> None:
    """A pruned host that gains more than its arithmetic, and a proposal that alone takes longer."""
    faster = {0.7: 1.9, 0.5: 2.6, 0.3: 9.0}
    for proposal in (0.3, 4.0):
        found = measured(table(10, 17, faster), proposal, 8.0, GPU)
        for part, speedup in zip(parts(found), (1, *faster.values()), strict=True):
            assert min(part.proposal, part.host, part.rest) >= 0
            assert part.proposal + part.host + part.rest == pytest.approx(10 / speedup)
            assert part.total == pytest.approx(10 / speedup)


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(table(10, 17, FAST), 0.3, 8.0, GPU)
    nothing: Any = None
    show(doctor.Diagnosis(nothing, judge(found), found, ["it is Monday"], {}), "image")
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("Looks good: keep=0.5")
    assert "Looks good" not in "".join(others)


def tiny() -> VisionTransformer:
    return VisionTransformer(
        img_size=64, patch_size=8, embed_dim=96, depth=2, num_heads=3, num_classes=10
    ).eval()


def test_measures_a_real_model_and_leaves_it_alone(tmp_path: Path) -> None:
    host = tiny().train()
    for i in range(3):
        noise = torch.randint(256, (80, 100, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    turns = []
    found = diagnose(
        host,
        tmp_path,
        keeps=(0.7, 0.3),
        batches=(1, 2),
        rounds=2,
        proposal=lambda pixels: pixels.mean(1),
        each_turn=lambda: turns.append(1),
    )
    assert host.training
    assert not papr.is_pruned(host)
    assert found.support
    assert len(turns) == doctor.turns(2, 2, 2)
    assert found.measured is not None
    assert [[(row.keep, row.batch) for row in table] for table in found.measured.tables] == [
        [(1.0, batch), (0.7, batch), (0.3, batch)] for batch in (1, 2)
    ]
    assert found.measured.loading is not None
    assert found.measured.loading.samples == 3  # of four files
    assert found.measured.loading.decode_ms > 0
    assert [sample.id for sample in found.measured.loading.skipped] == ["broken.png"]
    assert all(0 < ms < 1000 for ms in found.measured.proposal_ms)
    assert any("train mode" in line for line in found.hindrances)
    stored = json.loads(json.dumps(found.to_dict()))
    assert set(stored["end_to_end"]) == {"1", "0.7", "0.3"}
    assert stored["verdict"]["kind"] == found.verdict.kind
    assert "cannot read the image broken.png" in stored["loading"]["skipped"][0]["reason"]


def test_an_unsupported_model_gets_the_reason_and_no_measurement() -> None:
    found = diagnose(torch.nn.Conv2d(3, 4, 3))
    assert found.verdict.kind == "unsupported"
    assert "papr does not know this class" in found.verdict.text
    assert found.measured is None
    assert found.to_dict()["rows"] == []


def test_no_readable_sample_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(papr.PaprError, match="got none of 1"):
        diagnose(tiny(), tmp_path, batches=(1,), rounds=1, proposal=lambda pixels: pixels.mean(1))


def test_the_made_up_photograph_is_as_large_as_those_of_imagenet() -> None:
    """50 000 validation images are 6.3 GB; and its power falls with the square of frequency."""
    content = stand_in()
    assert len(content) == pytest.approx(6.3e9 / 50_000, rel=0.25)
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == doctor.STAND_IN
        grey = np.asarray(image.convert("L"), dtype=float)
    power = np.abs(np.fft.fft2(grey)) ** 2
    frequency = np.hypot(
        np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1])[None]
    )

    def mean_power(low: float) -> float:
        return float(power[(frequency >= low) & (frequency < 1.1 * low)].mean())

    assert mean_power(0.02) / mean_power(0.08) == pytest.approx(16, rel=0.3)


@pytest.fixture
def two_threads():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.mark.usefixtures("two_threads")
def test_hindrances() -> None:
    host = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    assert hindrances(host, cores=2) == []
    host.blocks[0].attn.fused_attn = False
    unfused, crowded = hindrances(host, cores=1)
    assert "blocks.0.attn" in unfused
    assert "2 threads for 1 core," in crowded
    host.blocks[0].attn.fused_attn = True
    (idle,) = hindrances(host, cores=8)
    assert "uses 2 of 8 cores" in idle
    (both,) = hindrances(host, cores=3, workers=2)
    assert "2 threads and 2 loading processes" in both
    assert "bfloat16" in doctor._float32(True)[0]


def test_the_command(tmp_path: Path) -> None:
    options = ["--model", "test_vit", "--batch", "1", "--keep", "0.5", "--rounds", "1"]
    options += ["--device", "cpu", "--json", str(tmp_path / "d.json"), "--workers", "1"]
    options += ["--random-weights"]
    done = CliRunner().invoke(app, ["doctor", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "where the time of one image goes" in done.output
    assert "Break-even" in done.output
    stored = json.loads((tmp_path / "d.json").read_text())
    assert stored["loading"]["what"].startswith("a made-up JPEG of 500 x 375")
    assert [row["keep"] for row in stored["rows"]] == [1.0, 0.5]
    assert stored["provenance"]["host"]["kind"] == "random"
    done = CliRunner().invoke(app, ["doctor", *options, "--model", "xcit_nano_12_p16_224"])
    assert done.exit_code == 0
    assert "Do not bother" in done.output
    assert "reshapes its tokens" in " ".join(done.output.split())


def test_loaders_are_counted_by_the_cores_that_may_be_used(monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert usable_cores() == 3
    assert usual_workers() == 2
