"""A configuration that tune stored, and options given beside it on the command line."""

import json
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.later import Merge
from tiny_data import pictures

STORED = papr.PruneConfig(0.3, proposal_size="input", merge=Merge(2))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What every command takes: pictures, a host with weights of its own, the configuration."""
    folder = tmp_path_factory.mktemp("given")
    torch.save(timm.create_model("test_vit").state_dict(), folder / "weights.pt")
    (folder / "chosen.json").write_text(STORED.to_json())
    found = ["--data", str(pictures(folder / "data", 3)), "--model", "test_vit"]
    found += ["--checkpoint", str(folder / "weights.pt"), "--config", str(folder / "chosen.json")]
    return [*found, "--device", "cpu", "--workers", "0"]


def ran(command: str, given: list[str], out: Path, *options: str) -> tuple[dict, str]:
    """What the run says of itself, and what the command printed."""
    line = [command, *given, "--out", str(out), *options]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads((out / "configuration.json").read_text()), done.output


def test_the_file_alone_says_everything(given: list[str], tmp_path: Path) -> None:
    found, printed = ran("predict", given, tmp_path / "run", "--outputs", "masks")
    assert found["pruning"]["keep"] == 0.3
    assert found["pruning"]["merge"]["r"] == 2
    assert "as given" not in printed


def test_an_option_beside_it_takes_its_place_and_is_named(given: list[str], tmp_path: Path) -> None:
    options = ["--keep", "0.6", "--merge-r", "1", "--outputs", "masks"]
    found, printed = ran("predict", given, tmp_path / "run", *options)
    pruning = found["pruning"]
    assert (pruning["keep"], pruning["merge"]["r"]) == (0.6, 1)
    assert pruning["proposal_size"] == "input"
    assert "chosen.json, but for --keep, --merge-r as given" in " ".join(printed.split())


@pytest.mark.parametrize("command", ["eval", "drift"])
def test_each_keep_beside_it_is_a_contender(command: str, given: list[str], tmp_path: Path) -> None:
    more = ["--k", "1"] if command == "drift" else []
    found, printed = ran(command, given, tmp_path / "run", "--keep", "0.6,0.5", *more)
    pruned = found["contenders"][1:]
    assert [one["keep"] for one in pruned] == [0.6, 0.5]
    assert all(one["merge"]["r"] == 2 and one["proposal_size"] == "input" for one in pruned)
    assert "but for --keep as given" in " ".join(printed.split())
