"""Lists as people and programs write them, and what is said of a line that does not fit."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")

from papr.evaluate import open_source
from papr.video import LabelError


def read(folder: Path, text: str, classes: object = 1000, name: str = "list.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    (folder / "x").mkdir(exist_ok=True)
    for there in ("a b.jpg", "1.jpg", "x/1.jpg", "3 a.jpg"):
        (folder / there).touch()
    source = open_source(folder / name, classes)
    return [(source.name(i), source.item(i).label) for i in range(source.length)], source.note


TWO = [("a b.jpg", 1), ("c,d.jpg", 0)]
TRUSTED = "labels: the list's numbers as they stand"


@pytest.mark.parametrize(
    "text",
    [
        "a b.jpg 1\nc,d.jpg 0\n",
        "a b.jpg\t1\r\n\r\nc,d.jpg\t0",
        'a b.jpg,1\n"c,d.jpg",0\n',
        'a b.jpg,"1"\n"c,d.jpg","0"\n',
        "a b.jpg, 1.0\nc,d.jpg, 0.\n",
        'path,label\na b.jpg,1\n"c,d.jpg",0\n',
        'id;image;split;class\n7;a b.jpg;x;1\n8;"c,d.jpg";x;0\n',
        "label\tfile_name\n1\ta b.jpg\n0\tc,d.jpg\n",
        "image label\na b.jpg 1\nc,d.jpg 0\n",
        'image_id,label\na b.jpg,1\n"c,d.jpg",0\n',
        'Filename,ClassId\na b.jpg,1\n"c,d.jpg",0\n',
        'id,breed\na b.jpg,1\n"c,d.jpg",0\n',
    ],
)
def test_labels_are_read_whatever_stands_around_them(text: str, tmp_path: Path) -> None:
    if text.startswith("image label"):
        text = text.replace("a b.jpg", '"a b.jpg"')
    assert read(tmp_path, text) == (TWO, TRUSTED)
    assert read(tmp_path, text, name="list.TSV")[0] == TWO


def test_names_and_ids_of_classes_are_labels(tmp_path: Path) -> None:
    ids = "x/1.jpg n01443537\nx/2.jpg n01440764\n"
    assert read(tmp_path, ids) == ([("x/1.jpg", 1), ("x/2.jpg", 0)], "")
    names = "1.jpg,Bee\n2.jpg,ant\n"
    assert read(tmp_path, names, ("ant", "bee")) == ([("1.jpg", 1), ("2.jpg", 0)], "")
    quoted = '1.jpg,"cat, tabby"\n2.jpg,"dog"\n'
    assert read(tmp_path, quoted, ("dog", "cat, tabby"))[0] == [("1.jpg", 1), ("2.jpg", 0)]
    found, note = read(tmp_path, names, 2)
    assert [label for _, label in found] == [None, None]
    assert note == (
        "the list's labels are names such as 'Bee', and the host has none: labels are not used"
    )


@pytest.mark.parametrize("text", ["a b.jpg\nc,d.jpg\n", 'path\n"a b.jpg"\nc,d.jpg\n'])
def test_paths_alone_are_a_list(text: str, tmp_path: Path) -> None:
    found, note = read(tmp_path, text)
    assert found == [(name, None) for name, _ in TWO]
    assert note == "no labels in the list: labels are not used"


def test_a_path_may_begin_with_a_number(tmp_path: Path) -> None:
    assert read(tmp_path, "3 a.jpg\n")[0] == [("3 a.jpg", None)]
    (tmp_path / "3,a.jpg").touch()
    assert read(tmp_path, "3,a.jpg\n")[0] == [("3,a.jpg", None)]


def test_a_label_may_be_withheld(tmp_path: Path) -> None:
    assert read(tmp_path, "path,label\n1.jpg,3\n2.jpg,\n3.jpg,-1\n")[0] == [
        ("1.jpg", 3),
        ("2.jpg", None),
        ("3.jpg", None),
    ]


def test_a_list_of_which_no_path_is_there_is_refused(tmp_path: Path) -> None:
    for text in ("id,label\n7,0\n8,1\n", "no/1.jpg|0\nno/2.jpg|1\n", "no/1.jpg 0\n"):
        with pytest.raises(LabelError, match=r"none that is there: .* --root says .* a separator"):
            read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1\nb.jpg\n", "a path, a space and a class in .*, line 2, .* got 'b.jpg'"),
        ("a.jpg,1\n\nb.jpg 2\n", "a path, a comma and a class in .*, line 3, .* got 'b.jpg 2'"),
        ("a.jpg\nb.jpg 2\n", "a path alone in .*, line 2, as in its first line, got 'b.jpg 2'"),
        ("path,label\na.jpg\n", "fields with a comma between them in .*, line 2, as in its header"),
        ("3,a.jpg\n", "a path and then, behind a comma, its class in .*, line 1, got '3,a.jpg'"),
        (
            "path,label\na,b.jpg,0\n",
            "comma between them in .*, line 2, as in its header of 2, got 'a,b.jpg",
        ),
        ("photo,boxes\na.jpg,0\n", "a path in .*, line 1, or names of columns, .* among path, fil"),
        (
            "a.jpg,0,cat\n",
            r"a path, a separator \(a tab, .* one class in .*, line 1, got 'a.jpg,0,c",
        ),
        ("a.jpg cat\n", r"a path, a separator \(a tab, .* class in .*, line 1, got 'a.jpg cat'"),
        ("path\tlabel\n", "expected lines below the header in .*, none"),
        ("\n \n", "expected lines of a path, or a path and a label, in .*, none"),
        ("\0", "expected lines of text in the list"),
    ],
)
def test_a_line_that_does_not_fit_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
