"""How hosts are timed: eager, compiled, in graphs; over batches that fit; and where it pays."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from papr.cli import app
from papr.cli.common import say_where_it_pays
from papr.compare import Row, compare
from papr.compare.modes import Paying, over_batches, pays_from, usual_batches, usual_modes
from papr.errors import ConfigError
from papr.evaluate.doctor import diagnose

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


def tiny() -> VisionTransformer:
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5
    ).eval()


def row(batch: int, lower: float, keep: float = 0.5, mode: str = "eager") -> Row:
    gain = (lower + 0.1, lower, lower + 0.2)
    return Row(keep, batch, "float32", (1.0, 1.0, 1.0), 1.0, 0.1, 1.0, gain, 2.0, mode)


def test_the_batch_from_which_it_pays_is_the_first_after_the_last_that_does_not() -> None:
    lowers = {1: 1.3, 8: 0.9, 32: 1.06, 128: 1.4}
    tables = [[row(batch, 1.0, keep=1.0), row(batch, low)] for batch, low in lowers.items()]
    tables += [[row(batch, 0.5, keep=0.7)] for batch in (8, 1)]
    tables += [[row(batch, 1.2, mode="graphs")] for batch in (1, 8)]
    found = pays_from(tables)
    assert [(p.keep, p.mode, p.batch) for p in found] == [
        (0.5, "eager", 32),
        (0.7, "eager", None),
        (0.5, "graphs", 1),
    ]
    assert [str(p).partition(": ")[2] for p in found] == [
        "from batch 32",
        "at no batch up to 8",
        "from batch 1, the smallest measured",
    ]


def test_batches_that_do_not_fit_end_the_list() -> None:
    tried = []

    def measure(pixels: torch.Tensor) -> int:
        tried.append(len(pixels))
        if len(pixels) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(pixels)

    assert list(over_batches([32, 1, 8, 64], torch.zeros, measure)) == [1, 8]
    assert tried == [1, 8, 32]
    with pytest.raises(torch.OutOfMemoryError):
        list(over_batches([16], torch.zeros, measure))


def test_batches_that_did_not_fit_are_told_of_each_mode_and_dtype(capsys) -> None:
    fitted = {"float32": (1, 8), "bfloat16": (1, 8, 32)}
    found = [Paying(0.5, "eager", dtype, None, batches) for dtype, batches in fitted.items()]
    say_where_it_pays(found, [1, 8, 32])
    told = capsys.readouterr().out
    assert "Out of memory in eager, float32: not timed at batch 32." in told
    assert "bfloat16: not timed" not in told


def test_what_suits_a_device() -> None:
    assert usual_modes(torch.device("cuda", 1)) == ("eager", "graphs")
    assert usual_modes(torch.device("cpu")) == ("eager",)
    assert usual_batches(tiny()) == (1, 8)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_every_mode_is_timed_and_told() -> None:
    scores = torch.rand(1, 4, 4)
    found = diagnose(
        tiny(),
        keeps=(0.5,),
        batches=(2,),
        modes=("eager", "graphs"),
        rounds=1,
        proposal=lambda pixels: scores.expand(len(pixels), 4, 4),
    )
    assert found.measured is not None
    assert [table[1].mode for table in found.measured.tables] == ["eager", "graphs"]
    stored = json.loads(json.dumps(found.to_dict()))
    assert [row["mode"] for row in stored["rows"]] == ["eager"] * 2 + ["graphs"] * 2
    assert [p["mode"] for p in stored["pays_from"]] == ["eager", "graphs"]


def test_another_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="among eager, compiled, graphs, got 'fast'"):
        compare(tiny(), torch.zeros(1, 3, 32, 32), [0.5], mode="fast")
    for command in ("bench", "doctor"):
        with pytest.raises(ConfigError, match="cannot read 'fast' in --modes"):
            CliRunner().invoke(app, [command, "--modes", "eager,fast"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["bench", "doctor"])
def test_the_commands_say_from_which_batch_it_pays(command: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    arguments = ["--model", "test_vit", "--keep", "0.5", "--batch", "1,2", "--rounds", "1"]
    more = ["--random-weights", "--device", "cpu", "--modes", "eager", "--json", str(path)]
    done = CliRunner().invoke(app, [command, *arguments, *more])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Pruning pays at:\n  keep 0.5, eager, float32: " in done.output
    (pays,) = json.loads(path.read_text())["pays_from"]
    assert (pays["mode"], pays["batches"]) == ("eager", [1, 2])
