"""What lies in a folder: neither hidden files nor what papr wrote is ever a sample."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("pyarrow", reason="needs the extra: eval")

from papr.cli import app
from papr.evaluate import DataError, members, open_source
from papr.evaluate.sweep import grid, sweep
from papr.files import MARKER, make_output
from papr.images import find_images, load_image
from tiny_data import host, pictures
from tiny_sources import touch

HIDDEN = (
    ".ipynb_checkpoints/1-checkpoint.png",
    "cat/._1.png",
    "cat/.cache/2.png",
    "__MACOSX/cat/1.png",
    ".DS_Store",
)
PICTURES = {
    **{"a.avif": "AVIF", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.jp2": "JPEG2000", "e.ppm": "PPM"},
    **{"f.pgm": "PPM", "g.tga": "TGA", "h.dib": "DIB", "i.apng": "PNG", "j.MPO": "MPO"},
    **{"k.ico": "ICO", "l.j2k": "JPEG2000", "m.pcx": "PCX", "n.JPG": "JPEG", "o.webp": "WEBP"},
}


def names(source) -> list[str]:
    return [source.name(number) for number in range(source.length)]


def test_hidden_names_are_neither_classes_nor_samples(tmp_path: Path) -> None:
    root = touch(tmp_path / ".data", "cat/1.png", "dog/2.png", *HIDDEN)  # the root may be hidden
    source = open_source(root, 2)
    assert names(source) == ["cat/1.png", "dog/2.png"]
    assert [source.item(i).label for i in (0, 1)] == [0, 1]
    assert list(source.ignored) == [
        ".DS_Store",
        ".ipynb_checkpoints/",
        "__MACOSX/",
        "cat/._1.png",
        "cat/.cache/",
    ]
    assert find_images([root]).images == [root / "cat" / "1.png", root / "dog" / "2.png"]
    assert names(open_source(f"file://{root}", 2)) == ["cat/1.png", "dog/2.png"]
    (tmp_path / "list.txt").write_text(".data/cat/._1.png 1\n")  # a list means what it says
    assert names(open_source(tmp_path / "list.txt", 2)) == [".data/cat/._1.png"]
    alone = touch(tmp_path / "alone", "a/.1.png")
    with pytest.raises(DataError, match=r"in .*alone, none; left out: a/\.1\.png$"):
        open_source(alone, 2)


def test_a_folder_that_papr_wrote_is_marked_and_is_no_data(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "1.png", "deep/2-papr.png", "deep/3.png", "mine/4-cams.png")
    make_output(root / "out" / "run")
    touch(root, "out/run/5.png", "out/run/more/6.png")
    make_output(root)  # it has the user's pictures: not marked
    assert not (root / MARKER).exists()
    source = open_source(root, 3)
    assert names(source) == ["1.png", "deep/3.png"]
    assert "out/run/ (papr wrote it)" in source.ignored
    assert find_images([root]).images == [root / "1.png", root / "deep" / "3.png"]
    inside = open_source(root / "out" / "run", 3)  # what is asked for by name is read
    assert names(inside) == ["5.png", "more/6.png"]


def test_a_run_without_a_mark_is_known_by_its_configuration(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "old/sweep.png", "old/rows/1.png", "old/2.png", "sweep.png")
    (root / "old" / "configuration.json").write_text("{}")
    assert names(open_source(root, 3)) == ["old/2.png", "sweep.png"]


def test_a_sweep_in_the_folder_of_its_data_finds_the_same_samples_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures(tmp_path, 3))
    runs = []
    for _ in range(2):
        found = sweep(host(), ".", grid((0.5,), proposal_sizes=("input",)), baselines=False)
        found.write(found.report.folder, html=False)
        runs.append((found.report.folder, found.points[0].result.images))
    assert runs[0] == runs[1]
    assert runs[0][1] == 3


def test_pictures_of_commands_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, "1.png"))
    for _ in range(2):
        result = CliRunner().invoke(app, ["mask", ".", "--img-size", "32"])
        assert result.exit_code == 0, result.output
        lines = (tmp_path / "papr-mask" / "masks.jsonl").read_text().splitlines()
        assert [json.loads(line)["image"] for line in lines] == ["1.png"]
        assert names(open_source(".", 3)) == ["1.png"]


def test_pictures_are_what_pillow_reads(tmp_path: Path) -> None:
    """Whatever their names end in, in every command alike; films, documents and data are none."""
    root = tmp_path / "data"
    (root / "class").mkdir(parents=True)
    picture = Image.new("RGB", (40, 40), "red")
    for name, kind in PICTURES.items():
        picture.save(root / "class" / name, kind)
    others = ["a.eps", "a.fits", "a.h5", "a.mpg", "a.pdf", "a.pfm", "a.svg", "a.ttf", "a.txt"]
    touch(root, *others)
    shown = sorted(root / "class" / name for name in PICTURES)
    assert find_images([root]) == (shown, sorted(str(root / name) for name in others))
    source = open_source(root, 3)
    assert sorted(names(source)) == [f"class/{name}" for name in sorted(PICTURES)]
    assert sorted(names(open_source(f"file://{root}", 3))) == sorted(names(source))
    assert {Path(name).suffix[1:].lower() for name in PICTURES} <= members.IMAGES
    assert load_image(shown[0]).size == (40, 40)


def test_mask_follows_links_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "1.png", "notes.txt", ".hidden.png", "old-papr.png")
    other = touch(tmp_path / "other", "deep/2.jpg")
    (other / "deep" / "2.jpg").rename(other / "deep" / "2.JFIF")
    (root / "linked").symlink_to(other)
    result = CliRunner().invoke(
        app, ["mask", str(root), "--out", str(tmp_path / "o"), "--img-size", "32"]
    )
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "o" / "masks.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["image"]).name for line in lines] == ["1.png", "2.JFIF"]
    assert "3 left out, no images by their names, hidden, or papr's own:" in result.output
    for name in ("notes.txt", ".hidden.png", "old-papr.png (papr drew it)"):
        assert name in result.output
