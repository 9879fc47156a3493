"""Labels are those that the host means by the names, or none, and the reason is said."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: eval")

from papr.classes import Names, match_names, number_labels
from papr.evaluate import open_for, open_source
from papr.evaluate.answers import class_names
from tiny_data import host, pictures

ORDERED, TOP = "labels: folders in sorted order", "labels: top-level folders in sorted order"


def files(folders: str) -> list[str]:
    """A picture in each folder, "." the root."""
    return ["cover.png" if name == "." else f"{name}/x.png" for name in folders.split()]


@pytest.mark.parametrize(
    ("folders", "classes", "labels", "note"),
    [
        ("n01443537 n01440764", 1000, [1, 0], ""),
        ("val/n01443537/images n01440764", 1000, [1, 0], ""),
        ("b a c b", 3, [1, 0, 2, 1], ORDERED),
        ("9 10 09", 3, None, "two ways, '10' or '9' first"),  # torchvision: 09 10 9
        ("1 2 10", 3, None, "two ways, '10' or '2' first"),
        ("Zebra apple", 2, None, "two ways, 'Zebra' or 'apple' first"),
        ("cat/old cat/young dog/big", 3, None, "2 top-level folders for the host's 3 classes"),
        ("cat/old cat/young dog/big dog", 2, [0, 0, 1, 1], TOP),
        ("train/cat train/dog val/cat val/dog", 2, None, "'train' or 'cat' may be the class"),
        ("data/cat data/dog", 2, None, "1 top-level folder for the host's 2 classes"),
        ("b a c", 10, None, "3 folders for the host's 10 classes"),
        ("a b", None, None, "the host does not classify"),
        ("bee cat .", 3, None, "cover.png lies beside the folders, in none of a class"),
        (". .", 3, None, "no folders of classes for the host's 3 classes"),
    ],
)
def test_folders_count_in_sorted_order_where_that_can_be_meant(
    folders: str, classes: int | None, labels: list[int] | None, note: str
) -> None:
    found, said = number_labels(files(folders), classes)
    assert found == labels
    assert note in said if labels is None else said == note
    assert said.endswith("labels are not used") == (labels is None)


OWN = [
    "zebra",
    "Apple tree",
    "tench, Tinca tinca",
    "crane",
    "crane",
    "ant, big one",
    "bee, big one",
]


@pytest.mark.parametrize(
    ("folders", "labels", "note"),
    [
        ("apple_tree zebra", [1, 0], ""),  # sorted order would say 0, 1
        ("Tinca_tinca/photos tench/more zebra", [2, 2, 0], ""),
        ("zebra horse", None, "the folder horse is named like none of the host's classes"),
        ("crane zebra", None, "the folder crane may be several"),
        ("big_one zebra", None, "the folder big_one may be several"),
        ("zebra/tench zebra", None, "the folder zebra/tench may be several"),
        ("zebra .", None, "cover.png lies beside the folders"),
    ],
)
def test_the_hosts_own_names_decide(folders: str, labels: list[int] | None, note: str) -> None:
    found, said = number_labels(files(folders), OWN)
    assert found == labels
    assert note in said


def test_lists_of_names_are_matched_by_name_or_are_the_same_list() -> None:
    assert match_names(["tench", "zebra"], OWN) == ([2, 0], "")
    assert match_names(["zebra", "horse"], OWN)[1].startswith("the class 'horse' is named like")
    many = [f"kind {n}, sort {n}" for n in range(200)]
    doubled = [*many[:-1], "kind 7, sort 7"]  # as ImageNet's second crane
    others = [*many[:-1], "kind 7 too"]
    assert match_names(others, doubled) == (list(range(200)), "")
    assert match_names([*others[1:], others[0]], doubled)[0] is None  # another order
    assert Names(many).find("sort_12") == {12}


def test_names_of_the_host_reach_its_data(tmp_path: Path) -> None:
    """A transformers classifier whose classes are not in sorted order; LABEL_0 is no name."""
    transformers = pytest.importorskip("transformers", reason="needs the extra: hf")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "image_size": 32}
    names = {0: "cat", 1: "ant", 2: "bee"}
    config = transformers.ViTConfig(**small, id2label=names)
    named = transformers.ViTForImageClassification(config)
    nameless = transformers.ViTForImageClassification(transformers.ViTConfig(**small, num_labels=3))
    data = pictures(tmp_path / "data", 3)
    found, plain, timm = (open_for(model, data) for model in (named, nameless, host()))
    assert [found.item(n).id[:3] for n in range(3)] == ["ant", "bee", "cat"]
    assert ([found.item(n).label for n in range(3)], found.note) == ([1, 2, 0], "")
    assert (class_names(nameless), class_names(host())) == (None, None)
    for source in (plain, timm):
        assert ([source.item(n).label for n in range(3)], source.note) == ([0, 1, 2], ORDERED)


def test_names_of_a_data_set_are_matched_and_numbers_said(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="needs the extra: eval")
    images = [{"bytes": b"", "path": None}] * 3
    features = {"image": library.Image(), "label": library.ClassLabel(names=["apple", "zebra"])}
    columns = {"image": images, "label": [0, 1, -1], "number": [1, 0, 1]}
    found = library.Dataset.from_dict(
        columns, features=library.Features(features | {"number": library.Value("int64")})
    )
    found.save_to_disk(tmp_path / "data")
    data = str(tmp_path / "data")

    def labels(classes: object, more: str = "") -> tuple[list[int | None], str]:
        source = open_source(data + more, classes)
        return [source.item(n).label for n in range(3)], source.note

    assert labels(["zebra", "apple"]) == ([1, 0, None], "")
    assert labels(2) == ([0, 1, None], "labels: label's classes in their own order")
    none, why = labels(["zebra", "horse"])
    assert none == [None] * 3
    assert why == "label: the class 'apple' is named like none of the host's: labels are not used"
    (tmp_path / "split").mkdir()
    library.DatasetDict({"all": found}).save_to_disk(tmp_path / "split")
    data = str(tmp_path / "split")
    assert labels(2, ":all:number") == ([1, 0, 1], "labels: number's numbers as they stand")
