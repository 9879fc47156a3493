"""One rule for every command over data: 0 if anything was answered, 1 if nothing was, --strict."""

from pathlib import Path

import pytest
import timm
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from papr.cli import app, main
from papr.cli.common import settle

NAME = "test_vit"
#: What each command needs beside the pictures; its results, by which it is seen to have answered.
COMMANDS = {
    "mask": (["--img-size", "32"], "masks.jsonl"),
    "predict": (["--outputs", "labels"], "summary.json"),
    "eval": (["--keep", "0.5"], "summary.json"),
    "drift": (["--keep", "0.5", "--k", "1"], "summary.json"),
    "sweep": (["--keep", "0.5", "--no-baselines", "--no-html"], "sweep.json"),
    "compare": (["--keep", "0.5", "--rounds", "1", "--figures", "0"], "r.json"),
    "tune": (["--target-cosine", "0.5", "--rounds", "1"], "r.json"),
    "doctor": (["--keep", "0.5", "--rounds", "1", "--random-weights"], "r.json"),
}
HOSTLESS, FREE = ("mask",), ("mask", "compare")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which one is broken, and only broken ones; weights."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("some", "none"):
        (folder / name).mkdir()
        (folder / name / "broken.jpg").write_bytes(b"no image")
    for number in range(6):
        noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / "some" / f"{number}.png")
    torch.save(timm.create_model(NAME).state_dict(), folder / "weights.pt")
    return folder


def line(command: str, pictures: str, given: Path, out: Path, *more: str) -> list[str]:
    options, result = COMMANDS[command]
    found = [command, *([] if command in FREE else ["--data"]), str(given / pictures)]
    if command not in HOSTLESS:
        found += ["--model", NAME, "--device", "cpu", "--batch", "2"]
    if command not in (*HOSTLESS, "doctor"):
        found += ["--checkpoint", str(given / "weights.pt")]
    if command not in FREE:
        found += ["--workers", "0"]
    if result == "r.json":
        found += ["--json", str(out / "r.json")]
    if command == "tune":
        found += ["--out", str(out / "o")]
    elif command != "doctor":
        found += ["--out", str(out)]
    return [*found, *options, *more]


@pytest.mark.parametrize("command", COMMANDS)
def test_strict_ends_with_1_where_any_is_left_out_and_writes_all_the_same(
    command: str, given: Path, tmp_path: Path
) -> None:
    arguments = line(command, "some", given, tmp_path / "o", "--strict")
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert "broken.jpg" in done.output
    assert (tmp_path / "o" / COMMANDS[command][1]).stat().st_size


@pytest.mark.parametrize("command", ["mask", "predict"])
def test_some_answered_is_0_and_nothing_answered_is_1(
    command: str, given: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, line(command, "some", given, tmp_path / "some"))
    assert done.exit_code == 0, done.output
    assert "broken.jpg" in done.output
    done = CliRunner().invoke(app, line(command, "none", given, tmp_path / "none"))
    assert done.exit_code == 1
    assert "broken.jpg" in done.output


@pytest.mark.parametrize(
    ("answered", "left_out", "strict", "status"),
    [(3, 0, False, 0), (3, 0, True, 0), (3, 1, False, 0), (3, 1, True, 1), (0, 4, False, 1),
     (0, 0, False, 1)],
)  # fmt: skip
def test_the_rule(answered: int, left_out: int, strict: bool, status: int) -> None:
    if not status:
        settle(answered, left_out, strict)
        return
    with pytest.raises(typer.Exit) as end:
        settle(answered, left_out, strict)
    assert end.value.exit_code == status


@pytest.mark.parametrize(
    "call", [["eval"], ["mask", "a.png", "--no-such-option"], ["mask", "a.png", "--keep", "2"]]
)
def test_a_wrong_call_is_1_whoever_notices(call: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["papr", *call])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.strip()
