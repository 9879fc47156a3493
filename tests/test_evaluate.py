"""Evaluation of a data set: its figures against a slow reference, its folder, its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.errors import ConfigError
from papr.evaluate import Predictor, evaluate, tune
from papr.evaluate.claims import differences
from papr.evaluate.contenders import contenders, names, weights_digest
from papr.evaluate.finding import open_source
from papr.evaluate.loading import make_plan
from papr.evaluate.runs import Folder
from papr.evaluate.sources import take
from papr.evaluate.summary import read_times
from papr.later import Merge, Recut
from tiny_data import CLASSES, KEEPS, SIZE, host, pictures

BROKEN = (4, 17)
COUNT = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = pictures(tmp_path_factory.mktemp("pictures"), COUNT, BROKEN)
    (made / "ant" / "notes.txt").write_text("not a picture")
    return made


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> papr.evaluate.Report:
    out = tmp_path_factory.mktemp("run")
    return evaluate(host(), folder, KEEPS, out, batch=4, part=8, workers=0)


def rows(out: str | Path) -> list[dict]:
    return pq.read_table(Path(out) / "rows").to_pylist()


@torch.no_grad()
def test_the_figures_are_those_of_a_plain_loop_over_single_images(
    folder: Path, report: papr.evaluate.Report
) -> None:
    """One image at a time, read and prepared here, pruned by the public call."""
    transform = create_transform(
        (3, SIZE, SIZE),
        interpolation="bicubic",
        crop_pct=0.875,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    numbers = [n for n in range(COUNT) if n not in BROKEN]
    paths = [folder / CLASSES[n % 3] / f"{n:03d}.png" for n in numbers]
    pixels = [transform(Image.open(path)).unsqueeze(0) for path in paths]
    dense = host()
    for result, keep in zip(report.results, (1.0, 0.75, 0.5), strict=True):
        model = papr.prune(
            host(),
            keep,
            proposal_size="input",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
        right = agree = 0
        cosine = []
        for n, image in zip(numbers, pixels, strict=True):
            embedding = model.forward_head(model.forward_features(image), pre_logits=True)
            other = dense.forward_head(dense.forward_features(image), pre_logits=True)
            answer = int(model(image).argmax())
            right += answer == n % 3
            agree += answer == int(dense(image).argmax())
            cosine.append(float(torch.cosine_similarity(embedding, other)))
        assert result.images == result.labelled == len(numbers)
        assert result.top1 == right / len(numbers)
        assert result.top5 is None  # of three classes
        assert result.agreement == agree / len(numbers)
        assert result.cosine == pytest.approx(np.mean(cosine), abs=1e-6)
        assert result.kept == keep
    assert report.results[0].speedup == (1.0, 1.0, 1.0)
    assert report.results[2].gmacs_host < report.results[1].gmacs_host < report.results[0].gmacs
    assert all(result.peak_mb and result.ms_per_image for result in report.results)


def test_broken_and_other_files_are_named_and_have_no_row(report: papr.evaluate.Report) -> None:
    assert [sample.id for sample in report.skipped] == ["bee/004.png", "cat/017.png"]
    assert all("cannot read the image" in sample.reason for sample in report.skipped)
    assert report.ignored == ["ant/notes.txt"]
    found = rows(report.folder)
    assert len(found) == 3 * (COUNT - len(BROKEN))
    assert {row["id"] for row in found}.isdisjoint({"bee/004.png", "cat/017.png"})
    stored = json.loads((Path(report.folder) / "summary.json").read_text())
    assert stored["skipped"] == [sample._asdict() for sample in report.skipped]
    assert stored["results"][1]["agreement"] == report.results[1].agreement


def test_rows_say_which_configuration_answered(report: papr.evaluate.Report) -> None:
    found = rows(report.folder)
    keys = {c["configuration"]: c["name"] for c in report.configuration["contenders"]}
    assert {keys[row["configuration"]] for row in found} == {
        "dense",
        "keep 0.75, proposal_size input",
        "keep 0.5, proposal_size input",
    }
    positions = [r["position"] for r in found if keys[r["configuration"]] == "dense"]
    assert positions == sorted(positions)
    assert all(r["label"] == CLASSES.index(r["id"].split("/")[0]) for r in found)


def test_a_finished_run_answers_nothing_anew(
    folder: Path, report: papr.evaluate.Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a sample was answered again")

    monkeypatch.setattr("papr.evaluate.evaluator.Evaluator.__call__", never)
    again = evaluate(host(), folder, KEEPS, report.folder, batch=4, part=8, workers=0)
    assert again == report


def test_another_configuration_is_refused_with_what_differs(
    folder: Path, report: papr.evaluate.Report
) -> None:
    before = {path: path.read_bytes() for path in Path(report.folder).rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="batch: 4, now 2"):
        evaluate(host(), folder, KEEPS, report.folder, batch=2, part=8, workers=0)
    with pytest.raises(ConfigError, match="contenders"):
        evaluate(host(), folder, [0.5], report.folder, batch=4, part=8, workers=0)
    other = host()
    other.head.bias.data += 1
    with pytest.raises(ConfigError, match="weights: "):
        evaluate(other, folder, KEEPS, report.folder, batch=4, part=8, workers=0)
    assert before == {p: p.read_bytes() for p in before}


def test_rows_of_nobody_knows_what_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "00000-000000.parquet").write_bytes(b"somebody else's")
    with pytest.raises(ConfigError, match="has rows and no configuration"):
        evaluate(host(), folder, KEEPS, tmp_path, workers=0)


def test_loader_processes_change_no_row(
    folder: Path, report: papr.evaluate.Report, tmp_path: Path
) -> None:
    evaluate(host(), folder, KEEPS, tmp_path, batch=4, part=8, workers=2)
    assert rows(tmp_path) == rows(report.folder)


def test_without_labels_there_is_agreement_alone(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in (0, 1, 2):
        source = folder / CLASSES[number] / f"{number:03d}.png"
        (flat / source.name).write_bytes(source.read_bytes())
    found = evaluate(host(), flat, KEEPS, tmp_path / "run", workers=0)
    assert [r.top1 for r in found.results] == [None] * 3
    assert found.results[0].agreement == 1.0
    assert "no folders of classes" in found.note


def test_nothing_that_can_be_read_is_said_so(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2, broken=(0, 1))
    with pytest.raises(ConfigError, match="expected a sample that can be read, got none: cannot"):
        evaluate(host(), tmp_path / "pictures", KEEPS, tmp_path / "run", workers=0)


def test_parts_are_whole_batches_whatever_is_asked(folder: Path) -> None:
    source = open_source(folder, 3)
    assert make_plan(source, 5, 8).part == 10
    assert make_plan(source, 5).part == 65
    assert len(make_plan(take(source, 11), 5, 5).parts(take(source, 11))) == 3


def test_contenders_are_named_by_what_is_unusual() -> None:
    configs = [papr.PruneConfig(0.5), papr.PruneConfig(0.5, merge=Merge(8), proposal_size=160)]
    assert names(configs) == ["keep 0.5", "keep 0.5, proposal_size 160, r 8"]
    with pytest.raises(ConfigError, match=r"'keep 0\.5' twice"):
        contenders(host(), [0.5, 0.5])
    assert [c.name for c in contenders(host(), [1.0, 0.5])] == ["dense", "keep 0.5"]


def test_whatever_differs_is_in_the_name() -> None:
    halves, eighths = (0.5, 0.5, 0.5), (0.125, 0.125, 0.125)
    later: list[dict[str, Any]] = [
        {"merge": Merge(2)},
        {"merge": Merge(2, start=0.0)},
        {"merge": Merge(2, proportional=False)},
        {"merge": Merge(2, inflection=-0.5)},
        {"merge": Merge([2, 1])},
        {"recut": Recut(0.8)},
        {"recut": Recut(0.8, (1,), "attention")},
        {"mean": halves, "std": halves},
        {"mean": halves, "std": eighths},
    ]
    configs = [papr.PruneConfig(0.5, **options) for options in later]
    assert [name.removeprefix("keep 0.5, ") for name in names(configs, halves, halves)] == [
        "r 2",
        "r 2, merge start 0.0",
        "r 2, not merge proportional",
        "r 2, merge inflection -0.5",
        "r 2/1",
        "recut 0.8",
        "recut 0.8, recut blocks 1, recut by attention",
        "keep 0.5",
        "mean 0.5/0.5/0.5, std 0.125/0.125/0.125",
    ]
    found = contenders(host(), configs[-2:], halves, halves)
    assert len({json.dumps(contender.facts) for contender in found}) == 3
    with pytest.raises(ConfigError, match=r"'keep 0\.5' twice"):
        contenders(host(), [0.5, configs[-2]], halves, halves)


def test_samples_are_no_stream(folder: Path) -> None:
    """What one sample is answered must not depend on who came before it in the same process."""
    reusing = papr.PruneConfig(0.5, reuse=4)
    for refused in (
        lambda: contenders(host(), [0.5, reusing]),
        lambda: Predictor(host, reusing),
        lambda: tune(host(), folder, [reusing], target_cosine=0.5),
    ):
        with pytest.raises(ConfigError, match=r"reuse=1, since .* no stream, got 4"):
            refused()


def test_differences_name_the_place() -> None:
    old = {"a": 1, "b": {"c": [1, 2]}}
    assert differences(old, {"a": 1, "b": {"c": [1, 3]}, "d": 0}) == [
        "b.c[1]: 2, now 3",
        "d: null, now 0",
    ]


def test_weights_digest_follows_every_weight() -> None:
    first, second = host(), host()
    assert weights_digest(first) == weights_digest(second)
    second.blocks[1].mlp.fc2.bias.data[3] += 1e-6
    assert weights_digest(first) != weights_digest(second)


def test_a_line_left_unfinished_is_left_out(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.note_times(0, {"part": "a"})
    with (tmp_path / "times-0.jsonl").open("a") as file:
        file.write('{"part": "b", "wal')
    assert list(folder.times()) == [{"part": "a"}]
    folder.note_times(0, {"part": "c"})
    assert list(folder.times()) == [{"part": "a"}, {"part": "c"}]


def test_the_clock_adds_up_whichever_session_came_last(tmp_path: Path) -> None:
    def line(part: str, images: list[int], peak: int | None = None) -> dict:
        seconds = {"d": [0.5 * n for n in images], "p": [0.25 * n for n in images]}
        found = {"part": part, "images": images, "seconds": seconds, "wall": 2.0, "waited": 1.0}
        return found | ({"cold": False} if peak is None else {"cold": True, "peak": {"d": peak}})

    sessions = [[line("a", [8, 4], 10), line("b", [8, 8])], [line("c", [], 7), line("b", [8, 2])]]
    for order in (sessions, sessions[::-1]):
        folder = Folder(tmp_path / order[0][0]["part"])
        for session in order:
            for one in session:
                folder.note_times(0, one)
        times = read_times(folder, ["d", "p"])
        last = order[-1][-1]["images"]
        assert sorted(times.images) == sorted([4, *last])  # the cold one is out, b is the last's
        assert all(times.seconds["d"] == 0.5 * times.images)
        assert all(times.seconds["p"] == 0.25 * times.images)
        assert times.seconds["d"].dtype == np.float32
        assert times.peak == {"d": 10}
        assert (times.wall, times.waited) == (6.0, 3.0)
    folder = Folder(tmp_path / "cold")
    folder.note_times(0, line("a", [8], 3))
    assert list(read_times(folder, ["p"]).images) == [8]  # better than none


ARGUMENTS = ["eval", "--model", "test_vit", "--keep", "1.0,0.5", "--batch", "4"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.usefixtures("offline")
def test_two_processes_write_the_rows_of_one(folder: Path, tmp_path: Path) -> None:
    """The real command under torchrun, over gloo, beside the same command alone."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "own.pth")
    more = ["--data", str(folder), "--part", "8", "--workers", "0", "--device", "cpu"]
    more += ["--checkpoint", str(tmp_path / "own.pth")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun sets it: the sums of two threads round differently
    try:
        alone = CliRunner().invoke(app, [*ARGUMENTS, *more, "--out", str(tmp_path / "one")])
    finally:
        torch.set_num_threads(threads)
    assert alone.exit_code == 0, alone.output
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "papr", *ARGUMENTS, *more]
    environment = os.environ | {"HTTPS_PROXY": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    files = [sorted(p.name for p in (tmp_path / n / "rows").iterdir()) for n in ("one", "two")]
    assert files[0] == files[1]
    assert all((tmp_path / "two" / f"times-{rank}.jsonl").is_file() for rank in (0, 1))
    figures = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two")]
    for one, two in zip(figures[0]["results"], figures[1]["results"], strict=True):
        timed = ("ms_per_image", "speedup", "peak_mb")
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in two.items() if k not in timed
        }
    assert done.stdout.count("(checkpoint own.pth ") == 1  # one process speaks for both
    assert figures[0]["results"][1]["cosine"] < 1


@pytest.mark.usefixtures("offline")
def test_the_command_prints_a_table_and_names_what_it_left_out(
    folder: Path, tmp_path: Path
) -> None:
    more = ["--data", str(folder), "--workers", "0", "--limit", "11", "--out", str(tmp_path)]
    more += ["--random-weights"]
    found = CliRunner().invoke(app, [*ARGUMENTS, *more])
    assert found.exit_code == 0, found.output
    assert "10 images" in found.output
    assert "keep 0.5" in found.output
    assert "Random weights (host): agreement, cosine and accuracy" in found.output
    assert "cat/017.png" in found.output
    assert "notes.txt" in found.output
    assert "3 folders for the host's 1000 classes" in found.output
