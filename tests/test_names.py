"""Names may be any bytes: they are found, recorded, and printed as they are."""

import io
from pathlib import Path

import pytest
from rich.table import Table

pytest.importorskip("pyarrow", reason="needs the extra: eval")

import pyarrow as pa
import pyarrow.parquet as pq

from papr.cli.console import Voice, clean, shown
from papr.cli.hosting import name_left_out
from papr.cli.tables import Sheet
from papr.evaluate import open_source
from papr.evaluate.loading import Skipped
from tiny_sources import everything, level, odd_name, png, rows, touch

NAMES = ("Title [x].png", "a b [red] *.png", ":car:.png", "new\nline.png", "50%20 #1?.png")


def test_folders_and_addresses_of_any_name(tmp_path: Path) -> None:
    odd = odd_name(tmp_path, b"caf\xe9 [1] :car:")
    inner = odd_name(tmp_path, b"\xff.png")
    root = touch(tmp_path / odd, *NAMES, inner)
    folder, address = open_source(root), open_source(f"file://{root}")
    names = [folder.name(i) for i in range(folder.length)]
    assert sorted(names) == sorted([*NAMES, clean(inner)])
    assert sorted(address.name(i) for i in range(address.length)) == sorted(names)
    for source in (folder, address):
        assert all(level(source.item(i)) > 0 for i in range(source.length))
        pa.array([source.item(i).id for i in range(source.length)], pa.string())
    assert address.identity() == open_source(f"file://{root}").identity()
    spelt = f"file://{tmp_path}/a%20b"
    assert open_source(spelt.replace("a%20b", touch(tmp_path / "a b", "1.png").name)).length == 1
    assert open_source(spelt).length == 1


@pytest.mark.parametrize("name", ["pq sp", "a [b] {c,d} *", "50%20", "x:y"])
def test_data_sets_in_folders_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra: eval")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / name
    place.mkdir()
    pq.write_table(pa.table({"image": [png(3)]}), place / "a [1].parquet")
    for data in (place, place / "a [1].parquet", f"{place}:train"):
        assert rows(everything(open_source(data, 3)))[0][-1] == 3.0
    columns = {"image": [{"bytes": png(5), "path": None}]}
    features = datasets.Features({"image": datasets.Image()})
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(place / "seg saved")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(place / "dict saved")
    for data in (place / "seg saved", f"{place}/dict saved:test"):
        assert rows(everything(open_source(data, 3)))[0][-1] == 5.0


def printed(*what: object) -> str:
    file = io.StringIO()
    voice = Voice(file=file, width=200)
    for one in what:
        voice.print(one)
    return file.getvalue()


def test_names_are_printed_as_they_are() -> None:
    names = ["Title [x].mp4", ":car:", "[/x]", "[link=a]b", "a\\", "[bold]", "[/red] [/red]"]
    for name in names:
        table = Table(name, title=f"of {name}")
        table.add_row(f"[yellow]{name}[/yellow]")
        sheet = Sheet(name, title=f"of {name}")
        kept = name.replace("[bold]", "")  # papr's own marks are no names
        assert kept in printed(f"[red]{name}[/red]")
        assert printed(table).count(kept) >= 2
        assert kept in printed(sheet)
    assert printed("[yellow]careful:[/yellow] it is") == "careful: it is\n"


def test_controls_are_spelt_out_and_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("a\x1b[31m\r\udce9\u202e\n") == "a\\x1b[31m\\x0d\\xe9\\u202e\n"
    assert shown(Path("a\nb\tc")) == "a\\nb\\tc"
    assert printed("x\x1b]0;title\x07") == "x\\x1b]0;title\\x07\n"
    name_left_out([Skipped(0, "a\n[b] :car:\x1b", "no [c]\nimage")], ["d\ne \udcff"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "1 left out, no samples by their names, hidden, or papr's own:"
    assert lines[1] == "  a\\n[b] :car:\\x1b: no [c]\\nimage"
    assert lines[3] == "  d\\ne \\xff"
