"""`papr compare` as a newcomer runs it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.cli.album import Album, labels_of
from papr.config import IMAGENET_MEAN, IMAGENET_STD
from papr.draw import kept_patches
from papr.images import find_images
from papr.named import create_classifier
from papr.preprocessing import preprocessing

runner = CliRunner()
ALL = ["dense", "papr", "random", "centre", "stride", "embedding norm", "class attention"]
ALL += ["lower resolution", "tome", "papr + tome"]
WNIDS = {"n01440764": 0, "n01443537": 1}  # ImageNet's first two classes


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three images of two ImageNet classes, two of one name, and a broken one."""
    folder = tmp_path / "photographs"
    for number, (wnid, name) in enumerate(
        [("n01440764", "a.png"), ("n01440764", "b.png"), ("n01443537", "a.png")]
    ):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (40 + 8 * number, 60, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / wnid / name)
    (folder / "n01443537" / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and hosts of 64 px and four blocks whatever is asked for."""
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    make = timm.create_model

    def create(name: str, **options: object) -> torch.nn.Module:
        if name.startswith("vit"):
            options |= {"img_size": 64, "depth": 4}
        return make(name, **options)

    monkeypatch.setattr("timm.create_model", create)
    monkeypatch.setenv("COLUMNS", "200")


def arguments(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        *("compare", str(folder), "--model", "vit_tiny_patch16_224", "--keep", "0.5"),
        *("--batch", "2", "--rounds", "1", "--device", "cpu", "--random-weights"),
        *("--json", str(tmp_path / "deep" / "r.json"), "--out", str(tmp_path / "o"), *more),
    ]


@pytest.mark.usefixtures("small")
def test_compare(photographs: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, arguments(photographs, tmp_path, "--figures", "2"))
    assert result.exit_code == 0, result.output
    assert "broken.jpg" in result.output
    assert "Random weights (host): agreement, cosine and top-1 would mean" in result.output
    assert "Nearer to the dense model" not in result.output
    report = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert [row["name"] for row in report["rows"]] == ALL
    assert report["provenance"]["host"]["kind"] == "random"
    assert report["missing"] == {}
    assert [Path(path).name for path in report["skipped"]] == ["broken.jpg"]
    for row in report["rows"]:
        assert row["images"] == report["images"] == 3
        assert row["name"] in result.output
        assert row["agreement"] is row["cosine"] is row["top1"] is None
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["dense"]["tokens"] == 16
    assert {rows[name]["tokens"] for name in ALL[1:7]} == {8}
    assert rows["lower resolution"]["tokens"] == 9
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        ".papr",
        "a-rivals-papr.png",
        "b-rivals-papr.png",
    ]
    with Image.open(tmp_path / "o" / "a-rivals-papr.png") as picture:
        # the photograph, the seven that leave patches out, and the smaller picture
        assert picture.height == 64 + 22 + 22  # captions, and that weights are random
        assert json.loads(picture.text["provenance"]) == report["provenance"]
        assert picture.width > 9 * 64 + 48 + 9 * 6  # captions of small pictures keep apart


@pytest.mark.usefixtures("small")
def test_own_weights_of_a_timm_model(photographs: Path, tmp_path: Path) -> None:
    """The answers are those of the checkpoint; other class numbers mean no top-1."""
    host = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    with torch.no_grad():
        host.head.weight.zero_()
        host.head.bias.copy_(torch.tensor([1.0, 3.0, 2.0]))  # whatever it sees
    torch.save(host.state_dict(), tmp_path / "own.pth")
    own = ("--checkpoint", str(tmp_path / "own.pth"), "--num-classes", "3", "--figures", "0")
    shutil.rmtree(photographs / "n01443537")
    result = runner.invoke(app, arguments(photographs, tmp_path, *own))
    assert result.exit_code == 0, result.output
    assert "agree logit cosine GMACs" in " ".join(result.output.split())  # eval's: of embeddings
    report = json.loads((tmp_path / "deep" / "r.json").read_text())
    own_weights = report["provenance"]["host"]
    assert own_weights["kind"] == "checkpoint"
    content = (tmp_path / "own.pth").read_bytes()
    assert own_weights["sha256"] == hashlib.sha256(content).hexdigest()
    assert {(row["agreement"], row["top1"]) for row in report["rows"]} == {(1, None)}
    assert "random" in result.output  # the rival of that name
    assert "Random weights" not in result.output
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_own_scores_of_the_images_found(photographs: Path, tmp_path: Path, suffix: str) -> None:
    """One map for each file, broken ones included: every image is pruned by its own."""
    (photographs / "n01440764" / "aa.jpg").write_bytes(b"no image between two")
    found = find_images([photographs]).images
    assert [path.name for path in found] == ["a.png", "aa.jpg", "b.png", "a.png", "broken.jpg"]
    table = torch.randn(5, 4, 4)
    if suffix == ".npy":
        np.save(tmp_path / "own.npy", table.double().numpy())
    else:
        torch.save(table, tmp_path / "own.pt")
    host = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    torch.save(host.state_dict(), tmp_path / "own.pth")
    more = ("--checkpoint", str(tmp_path / "own.pth"), "--num-classes", "3", "--figures", "2")
    more += ("--oracle", str(tmp_path / f"own{suffix}"))
    result = runner.invoke(app, arguments(photographs, tmp_path, *more))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert [row["name"] for row in report["rows"]] == [*ALL[:2], "oracle", *ALL[2:]]

    prepare = preprocessing(host, "vit_tiny_patch16_224")
    album = Album(found, prepare, None, torch.device("cpu"), torch.float32)
    cosines, selections = [], []
    for row, (_, seen) in zip((0, 2, 3), album.readable(), strict=True):
        pixels, photograph = album.pixels([seen]), prepare.picture(seen)
        with torch.no_grad():
            dense = host(pixels)
            papr.prune(host, 0.5, lambda _, row=row: table[row : row + 1])
            cosines.append(float(torch.cosine_similarity(dense, host(pixels))))
            selections.append(kept_patches(photograph, papr.selection(host).mask()[0]))
            papr.unprune(host)
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["oracle"]["cosine"] == pytest.approx(sum(cosines) / 3, abs=1e-5)
    assert rows["oracle"]["cosine"] != pytest.approx(rows["centre"]["cosine"], abs=1e-4)
    for name, expected in zip(("a", "b"), selections[:2], strict=True):
        with Image.open(tmp_path / "o" / f"{name}-rivals-papr.png") as picture:
            shown = picture.crop((2 * 70, 22, 2 * 70 + 64, 22 + 64))
            assert shown.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.rand(3, 4, 4), "of 4 images found, those that cannot be read included, got a"),
        (torch.rand(5, 4, 4), "of 4 images found"),
        (torch.rand(4, 1, 4, 4), r"scores (N, h, w), got a float32 tensor (4, 1, 4, 4)"),
        ({"scores": 1}, "scores (N, h, w), got dict"),
        (torch.full((4, 4, 4), torch.nan), "expected finite --oracle scores"),
        (b"no scores", "expected scores (N, h, w) in the --oracle file"),
    ],
)
@pytest.mark.usefixtures("small")
def test_scores_that_do_not_fit_the_images(
    photographs: Path, tmp_path: Path, table: object, message: str
) -> None:
    file = tmp_path / "own.pt"
    file.write_bytes(table) if isinstance(table, bytes) else torch.save(table, file)
    result = runner.invoke(app, [*arguments(photographs, tmp_path), "--oracle", str(file)])
    assert isinstance(result.exception, papr.ConfigError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "o").exists()


def test_a_folder_of_transformers_and_its_statistics(photographs: Path, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=48,
        num_attention_heads=3,
        intermediate_size=96,
        num_hidden_layers=2,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    folder = tmp_path / "host"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.5, 0.5, 0.25],
                "size": {"height": 32, "width": 32},
            }
        )
    )
    result = runner.invoke(
        app, [*arguments(photographs, tmp_path, "--figures", "0"), "--model", str(folder)]
    )
    assert result.exit_code == 0, result.output
    assert "are unknown" not in result.output
    report = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert report["provenance"]["host"] == {"kind": "pretrained", "source": str(folder)}
    assert report["missing"] == {
        "class attention": "expected recut blocks among 0 to 1, which the host has, got (3,)"
    }
    host, _ = create_classifier(str(folder))
    assert preprocessing(host, str(folder))[1:] == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))
    assert preprocessing(host, "")[1:] == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))  # it knows where from
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(papr.PaprWarning, match="no processor's file: taking ImageNet's mean"):
        assert preprocessing(host, str(folder))[1:] == (IMAGENET_MEAN, IMAGENET_STD)


def test_labels_come_from_wordnet_ids_of_every_folder() -> None:
    paths = [Path("x", wnid, "1.jpg") for wnid in WNIDS]
    host = torch.nn.Identity()
    host.num_classes = 1000
    assert labels_of([], paths, host) == {path: WNIDS[path.parent.name] for path in paths}
    deeper = Path("x", "n01443537", "y", "1.jpg")  # as papr eval takes it
    assert labels_of([], [deeper], host) == {deeper: 1}
    assert labels_of([], [*paths, Path("x", "fish", "1.jpg")], host) is None
    assert labels_of([], [*paths, Path("x", "n99999999", "1.jpg")], host) is None
    host.num_classes = 10
    assert labels_of([], paths, host) is None


def test_labels_come_from_the_hosts_own_names_of_the_folders_that_were_named() -> None:
    host = torch.nn.Identity()
    host.num_classes, host.pretrained_cfg = 2, {"label_names": ["crab", "ant"]}
    ant, crab = Path("crab", "set", "ant", "1.jpg"), Path("crab", "set", "crab", "2.jpg")
    wanted = {ant: 1, crab: 0}
    assert labels_of([Path("crab", "set")], [ant, crab], host) == wanted  # not the crab above
    assert labels_of([ant, crab], [ant, crab], host) == wanted
    assert labels_of([ant.parent, crab], [ant, crab], host) == wanted
    assert labels_of([Path("crab")], [ant, crab], host) is None  # of which is the ant?
    assert labels_of([ant, Path("bee", "3.jpg")], [ant, Path("bee", "3.jpg")], host) is None
    host.num_classes = 3  # of which two names tell nothing
    assert labels_of([ant], [ant], host) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep", "1"], "expected --keep below 1"),
        (["--keep", "0"], "expected 0 < keep <= 1, got 0.0"),
        (["--model", "nope"], "expected the name of a timm model, local-dir: and"),
        (["--model", "a/b", "--num-classes", "3"], "expected the name of a timm model with a ch"),
        (["--model", "resnet10t"], "cannot prune ResNet"),
        (["--checkpoint", "/no/such"], "--checkpoint to be a file of weights, got /no/such"),
        (["--oracle", "/no/such.npy"], "in the --oracle file /no/such.npy"),
        (["--dtype", "int8"], "cannot read 'int8' in --dtype"),
    ],
)
@pytest.mark.usefixtures("small")
def test_what_cannot_be_compared(
    photographs: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    result = runner.invoke(app, [*arguments(photographs, tmp_path), *more])
    assert isinstance(result.exception, papr.PaprError)
    assert message in str(result.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("small")
def test_no_image_that_can_be_read(photographs: Path, tmp_path: Path) -> None:
    broken = photographs / "n01443537" / "broken.jpg"
    result = runner.invoke(app, arguments(broken, tmp_path))
    assert "expected an image that can be read among 1, got none: cannot read" in str(
        result.exception
    )
