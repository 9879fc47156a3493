"""The paper's tables: their figures as data, and our counts beside them without weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from typer.testing import CliRunner

import papr
from papr.cli import app
from papr.cli import reproduced as command
from papr.config import IMAGENET_MEAN
from papr.evaluate import reproduce
from papr.evaluate.recipes import RECIPES, HostWeights, Printed, Row, find_recipe

runner = CliRunner()


@pytest.mark.parametrize(
    ("text", "tolerance"), [("180", 0.9), ("76", 0.5), ("8.98", 0.0449), ("3.7", 0.05)]
)
def test_tolerance_follows_the_printed_digits(text: str, tolerance: float) -> None:
    assert Printed(text).tolerance == pytest.approx(tolerance)


def test_every_recipe_names_what_exists() -> None:
    for recipe in RECIPES.values():
        assert {row.host for row in recipe.rows} == {host.counted for host in recipe.hosts}
        for host in recipe.hosts:
            rows = recipe.rows_of(host)
            assert rows[0].name == "dense"
            assert len({row.name for row in rows}) == len(rows)
            if "videomae" not in host.counted:
                assert timm.is_model(host.counted)
                tag = None if host.file else timm.get_pretrained_cfg(host.name)
                assert host.file or tag.num_classes == 1000
        assert all(recipe.configuration(row).reference for row in recipe.rows)


def vit_macs(counts: list[int], width: int, patches: int, volume: int) -> int:
    """algorithm: patch embedding on all patches, one block for each count of tokens, head."""
    blocks = sum(12 * n * width**2 + 2 * n**2 * width for n in counts)
    return patches * width * volume + blocks + width * 1000


def test_counts_are_the_formulas_and_within_what_is_printed() -> None:
    """ViT-B, L and H of the MAE table: no weights, and the random state untouched."""
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    found = list(reproduce.count(RECIPES["mae"]))
    assert torch.equal(torch.rand(1), expected)
    for row, (width, depth, patches, volume) in zip(
        found[1::2], [(768, 12, 196, 768), (1024, 24, 196, 768), (1280, 32, 256, 588)], strict=True
    ):
        tokens = 1 + int(0.5 * (patches + 1))
        assert row.host * 1e9 == vit_macs([tokens] * depth, width, patches, volume)
        assert row.agrees
        assert abs(row.difference) < row.row.macs.tolerance
    assert [row.row.macs for row in found[::2]] == [None] * 3


def test_a_merging_row_counts_fewer_tokens_block_by_block() -> None:
    recipe = RECIPES["tome"]
    only = replace(recipe, rows=(recipe.rows[3], recipe.rows[7]))
    alone, both = reproduce.count(only)
    # merging stands between attention and MLP: attention sees the tokens that came, the MLP fewer
    assert alone.proposal == 0
    for row, first, start in ((alone, 197, 0), (both, 1 + int(0.6 * 197), 6)):
        tokens, blocks = first, 0
        for block in range(12):
            after = max(tokens - 16 * (block >= start), tokens - (tokens - 1) // 2)
            blocks += 4 * tokens * 768**2 + 2 * tokens**2 * 768 + 8 * after * 768**2
            tokens = after
        formula = 196 * 768 * 768 + blocks + 768 * 1000
        # matching multiplies keys too, a few parts in a thousand
        assert formula < row.host * 1e9 < 1.01 * formula
        assert row.agrees


def test_a_count_that_differs_is_an_exit_status(monkeypatch, tmp_path: Path) -> None:
    recipe = RECIPES["augreg"]
    wrong = replace(recipe.rows[1], macs=Printed("10.70"))
    monkeypatch.setitem(RECIPES, "augreg", replace(recipe, rows=(*recipe.rows[:1], wrong)))
    path = tmp_path / "r.json"
    done = runner.invoke(app, ["reproduce", "augreg", "--dry-run", "--json", str(path)])
    assert done.exit_code == 1, done.output
    assert "10.759 is not 10.70" in done.output
    assert [row["agrees"] for row in json.loads(path.read_text())["counts"]] == [True, False]


def test_needs_say_what_is_here_and_what_must_be_fetched(tmp_path: Path) -> None:
    file = tmp_path / "mae.pth"
    file.write_bytes(b"weights")
    found = reproduce.needs(RECIPES["mae"], {"vit_base_patch16_224": file}, tmp_path / "none")
    base, large, _, proposal, data = found
    assert (base.state, large.state, data.state) == ("here", "missing", "missing")
    assert "--checkpoint vit_large_patch16_224=FILE" in large.detail
    assert "CC-BY-NC" in large.what
    assert base.megabytes == pytest.approx(86.6 * 4, rel=0.01)
    assert proposal.state in ("here", "can be downloaded", "out of reach")
    assert not data.met
    assert reproduce.needs(RECIPES["augreg"], data=tmp_path)[-1].state == "here"


def test_weights_in_the_local_cache_are_found(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    need = reproduce.needs(RECIPES["convnext"])[0]
    assert need.state != "here"
    path = tmp_path / "checkpoints" / "convnext_base_1k_224_ema.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    need = reproduce.needs(RECIPES["convnext"])[0]
    assert (need.state, need.detail) == ("here", str(path))


def test_no_table_lists_them_and_an_unknown_one_is_refused() -> None:
    done = runner.invoke(app, ["reproduce"])
    assert done.exit_code == 0
    assert all(name in done.output for name in RECIPES)
    with pytest.raises(papr.ConfigError, match="expected a table among augreg"):
        find_recipe("augre")
    with pytest.raises(papr.ConfigError, match="NAME=FILE"):
        command.read_checkpoints(RECIPES["mae"], ["x.pth"])


TINY = HostWeights("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_tiny_patch16_224", "-")


def seen(image: Image.Image) -> torch.Tensor:
    """The paper's preprocessing by hand: shorter side to 224, bicubic, centre, (x - 0.5) / 0.5."""
    scale = 224 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    square = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    return (torch.from_numpy(np.asarray(square) / 255).permute(2, 0, 1).float() - 0.5) / 0.5


def test_a_rehearsal_on_images_counts_right_answers(monkeypatch, tmp_path: Path) -> None:
    """Own weights, folders named by what the dense host answers, but for one of them."""
    host, weights = reproduce.create_host(replace(TINY, file="elsewhere"), random_weights=True)
    assert weights.random
    torch.save(host.state_dict(), tmp_path / "own.pth")
    names = ImageNetInfo().label_names()
    answers = []
    for i, size in enumerate([(300, 240), (230, 400), (500, 250)]):
        colours = torch.randint(256, (5, 6, 3), dtype=torch.uint8).numpy()
        image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
        with torch.no_grad():
            answers.append(int(host(seen(image)[None]).argmax()))
        label = names[answers[i] if i else (answers[0] + 1) % 1000]
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / label / f"{i}.png")
    rows = (Row(TINY.counted, 1.0, top1=70.0), Row(TINY.counted, 0.5, 8))
    recipe = replace(RECIPES["augreg"], hosts=(replace(TINY, file="elsewhere"),), rows=rows)
    monkeypatch.setitem(RECIPES, "augreg", recipe)
    path = tmp_path / "r.json"
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--workers", "0"]
    options += ["--checkpoint", f"{TINY.counted}={tmp_path / 'own.pth'}"]
    options += ["--proposal", "glance", "--json", str(path)]
    done = runner.invoke(app, ["reproduce", "augreg", *options, "--device", "cpu"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "not the paper's mobileone_s0" in done.output
    assert "3 samples, not the whole validation set of 50000" in " ".join(done.output.split())
    dense, pruned = json.loads(path.read_text())["hosts"][0]["rows"]
    assert dense["top1"] == pytest.approx(2 / 3)
    assert (dense["row"], dense["published_top1"]) == ("dense", 70.0)
    assert pruned["row"] == "keep 0.5 + ToMe r=8"
    assert pruned["kept"] == pytest.approx(98 / 196)  # int(0.5 * 197)
    assert pruned["gmacs_host"] < 0.5 * dense["gmacs_host"]


def test_without_weights_the_error_says_where_they_are() -> None:
    with pytest.raises(papr.ConfigError, match=r"CC-BY-NC.*mae_finetuned_vit_huge\.pth"):
        reproduce.create_host(RECIPES["mae"].hosts[2])
    done = runner.invoke(app, ["reproduce", "mae"])
    assert isinstance(done.exception, papr.ConfigError)
    assert "--data DIR" in str(done.exception)


def test_a_fine_tuned_checkpoint_is_loaded_as_mae_wrote_it(tmp_path: Path) -> None:
    """Keys fc_norm.* below "model", pixels normalised as ImageNet's."""
    mae = RECIPES["mae"].hosts[0]
    small = replace(TINY, arguments=mae.arguments, file=mae.file)
    expected = timm.create_model(TINY.counted, **mae.arguments).eval()
    assert any(name.startswith("fc_norm") for name in expected.state_dict())
    torch.save({"model": expected.state_dict()}, tmp_path / "mae.pth")
    found, weights = reproduce.create_host(small, tmp_path / "mae.pth")
    assert weights.kind == "checkpoint"
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(found(pixels), expected(pixels))
    empty = reproduce._random_host(mae, torch.device("meta"))
    assert tuple(empty.pretrained_cfg["mean"]) == IMAGENET_MEAN
    assert empty.pretrained_cfg["interpolation"] == "bicubic"
