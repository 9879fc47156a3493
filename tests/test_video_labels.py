"""Label files of both layouts, and what is said of a line that does not fit."""

from pathlib import Path

import pytest

from papr.video import LabelError, read_labels


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", ["auto", "mmaction2"])
def test_mmaction2(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a/b c.mp4 12\n\nd,e.mp4\t0\r\nabs 3.mp4 399")
    assert read_labels(path, layout=layout) == [
        (Path("a/b c.mp4"), 12),
        (Path("d,e.mp4"), 0),
        (Path("abs 3.mp4"), 399),
    ]


@pytest.mark.parametrize("layout", ["auto", "videomae"])
@pytest.mark.parametrize(
    "text",
    [
        'a b.mp4,1\n"c,d.mp4",22\n',
        'a b.mp4,"1"\n"c,d.mp4",22.0\n',
        "\ufeffa b.mp4, 1\nc,d.mp4, 22\n",
        "a b.mp4 1\nc,d.mp4 22\n",
    ],
)
def test_videomae(text: str, layout: str, tmp_path: Path) -> None:
    found = read_labels(write(tmp_path, text), layout=layout)
    assert found == [(Path("a b.mp4"), 1), (Path("c,d.mp4"), 22)]


def test_root_is_for_relative_paths(tmp_path: Path) -> None:
    path = write(tmp_path, f"a.mp4 1\n{tmp_path / 'b.mp4'} 2\n")
    assert read_labels(path, root="videos") == [
        (Path("videos/a.mp4"), 1),
        (tmp_path / "b.mp4", 2),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,youtube_id,split\n", "a space and a class number in .*, line 1, got 'label,you"),
        ("a.mp4 1\nb.mp4\n", "line 2, got 'b.mp4'"),
        ("a.mp4,1\n\nb.mp4 2\n", "expected a path, a comma and .*, line 3, got 'b.mp4 2'"),
        ("a.mp4 -1\n", "line 1, got 'a.mp4 -1'"),
        ("a.mp4 1.5\n", "line 1"),
        ("7\n", "line 1, got '7'"),
        ("\n \n", "expected lines of a path and a label in .*, none"),
    ],
)
def test_a_line_that_does_not_fit(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_layout_that_is_named_is_kept_to(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"expected a path, a space and .*, line 1"):
        read_labels(write(tmp_path, "a.mp4,1\n"), layout="mmaction2")
    with pytest.raises(LabelError, match="expected a layout among auto, mmaction2, videomae"):
        read_labels(write(tmp_path, "a.mp4,1\n"), layout="csv")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    for name in ("a", "b"):
        with pytest.raises(LabelError, match="cannot read the labels"):
            read_labels(tmp_path / name)
