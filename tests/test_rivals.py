"""PaPr beside its rivals: the same figures as found one image at a time, and no host changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import papr
from papr.baselines import centre_scores
from papr.compare.field import PAPR, _most, make_field, merged_to, selections
from papr.compare.rivals import measure_field, rivals
from papr.measure import count_macs
from tiny import CASES, proposal

ALWAYS = ["dense", "papr", "random", "centre", "stride", "embedding norm", "lower resolution"]
FAST = {"rounds": 1, "warmup": 0}


def by_name(rows: list) -> dict:
    return {row.name: row for row in rows}


@torch.no_grad()
def one_at_a_time(pruned, dense, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Agreement, mean cosine and top-1, the slow way."""
    agree = cosine = right = 0.0
    for image, label in zip(images, labels, strict=True):
        found, wanted = pruned(image[None])[0], dense(image[None])[0]
        agree += float(found.argmax() == wanted.argmax())
        right += float(found.argmax() == label)
        cosine += float(found @ wanted / (found.norm() * wanted.norm()))
    count = len(images)
    return agree / count, cosine / count, right / count


def test_rows_are_what_one_image_at_a_time_gives() -> None:
    case = CASES["augreg"]
    model, images = case.build(), case.pixels(5)
    with torch.no_grad():
        before = model(images)
    labels = before.argmax(1).clone()
    labels[0] = (labels[0] + 1) % 10  # the dense host is wrong once
    rows = by_name(rivals(model, images, 0.3, labels=labels, batch=2, proposal=proposal(), **FAST))
    assert list(rows)[: len(ALWAYS)] == ALWAYS
    assert not papr.is_pruned(model)
    with torch.no_grad():
        assert torch.equal(model(images), before)

    dense = rows["dense"]
    assert (dense.agreement, dense.top1, dense.tokens, dense.images) == (1, 0.8, 64, 5)
    assert dense.cosine == pytest.approx(1)
    assert dense.speedup == (1, 1, 1)
    assert dense.ideal == 1
    for name, scores in (("papr", proposal()), ("centre", centre_scores(8))):
        pruned = papr.prune(case.build(), 0.3, scores)
        agreement, cosine, top1 = one_at_a_time(pruned, model, images, labels)
        row = rows[name]
        assert (row.agreement, row.top1) == (agreement, top1)
        assert row.cosine == pytest.approx(cosine, abs=1e-5)
        macs = count_macs(pruned, images).per_image(5)
        assert (row.gmacs_host, row.gmacs_proposal) == (macs.host / 1e9, macs.proposal / 1e9)
        assert row.ideal == pytest.approx(dense.gmacs_host * 1e9 / macs.total)
    for name in ("papr", "random", "centre", "stride", "embedding norm"):
        assert rows[name].tokens == 19  # int(0.3 * 64)
        assert min(rows[name].ms_per_image) > 0
    lower = rows["lower resolution"]
    assert (lower.tokens, lower.note) == (16, "32 x 32 px")


def test_scores_of_the_users_own_go_with_the_images_over_all_batches() -> None:
    case = CASES["augreg"]
    model, images, table = case.build(), case.pixels(5), torch.rand(5, 8, 8)
    row = by_name(rivals(model, images, 0.5, batch=2, oracle=table, proposal=proposal(), **FAST))
    pruned = papr.prune(case.build(), 0.5, lambda pixels: table.to(pixels))
    with torch.no_grad():
        expected = F.cosine_similarity(pruned(images), model(images)).mean()
    assert row["oracle"].cosine == pytest.approx(float(expected), abs=1e-5)
    assert row["oracle"].cosine != pytest.approx(row["centre"].cosine, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("cait", {"lower resolution": "cannot run Cait at 48 x 48"}),
        ("hf_videomae", {"lower resolution": "expected a host of images"}),
        ("swin", {"stride": "a grid for each stage", "embedding norm": "which keeps its grid"}),
    ],
)
def test_what_a_host_cannot_have_is_named_with_the_reason(name: str, missing: dict) -> None:
    case = CASES[name]
    model, pixels = case.build(depth=1), case.pixels(2)
    found = make_field(model, pixels, 0.5, proposal=proposal())
    for rival, reason in missing.items():
        assert reason in found.missing[rival]
        assert rival not in found.models
    rows = by_name(measure_field(found, [(pixels, None)], **FAST))
    assert list(rows) == list(found.models)
    assert set(rows) | set(found.missing) >= {*ALWAYS, "class attention", "tome", "papr + tome"}
    assert rows["papr"].tokens == rows["random"].tokens == case.patches() // 2
    assert rows["dense"].tokens == case.patches()


def test_a_host_without_classes_is_judged_by_its_embeddings() -> None:
    case = CASES["hf_vit_model"]
    images = case.pixels(2)
    rows = rivals(case.build(depth=2), images, 0.5, proposal=proposal(), **FAST)
    assert {(row.agreement, row.top1) for row in rows} == {(None, None)}
    assert rows[0].cosine == pytest.approx(1)
    assert max(row.cosine for row in rows[1:]) < 0.9999


def test_masks_are_of_the_rivals_that_select() -> None:
    case = CASES["augreg"]
    model, images = case.build(depth=1), case.pixels(2)
    found = make_field(model, images, 0.25, proposal=proposal())
    with torch.inference_mode():
        masks = {name: chosen.left() for name, chosen in selections(found, images)}
    assert set(ALWAYS) - set(masks) == {"dense", "lower resolution"}
    pruned = papr.prune(model, 0.25, proposal())
    with torch.no_grad():
        pruned(images)
    assert torch.equal(masks[PAPR], papr.selection(pruned).mask())
    assert masks["stride"][0].nonzero().tolist() == [
        [y, x] for y in range(0, 8, 2) for x in range(0, 8, 2)
    ]


@pytest.mark.parametrize("least", [0, 20, 21, 37, 64, 90, 97, 98, 1000])
def test_as_much_is_merged_as_leaves_enough(least: int) -> None:
    def cost(total: int) -> int:
        return max(20, 100 - 3 * total)

    enough = [total for total in range(1, 61) if cost(total) >= least]
    assert _most(cost, least, 60) == max(enough, default=1)


ONE_BY_ONE = {1.0: ([6, 5, 5, 5], [6, 6, 5, 5], [6, 6, 6, 5]), 0.8: ([6, 5], [6, 6], [7, 6])}


@pytest.mark.parametrize("keep", ONE_BY_ONE)
def test_one_more_token_merged_would_leave_too_little(keep: float) -> None:
    case, start = CASES["augreg"], 0.0 if keep == 1 else 0.5
    model, image, options = case.build(depth=4), case.pixels(1), {}
    if keep < 1:
        options["proposal"] = proposal()
    left = {}
    for r in ONE_BY_ONE[keep]:  # ever one token more, in the next block
        merging = papr.prune(case.build(depth=4), keep, merge=papr.Merge(r, start), **options)
        left[sum(r)] = count_macs(merging, image).total
    for total in list(left)[:2]:
        assert left[total] > left[total + 1]
        merged, found = merged_to(model, image, left[total + 1] + 1, keep, **options)
        assert (found, count_macs(merged, image).total) == (total, left[total])
    _, found = merged_to(model, image, left[total], keep, **options)
    assert found == total
    assert not papr.is_pruned(model)


def test_merging_has_the_multiply_accumulates_of_papr() -> None:
    case = CASES["augreg"]
    rows = by_name(rivals(case.build(depth=4), case.pixels(2), 0.5, proposal=proposal(), **FAST))
    target = rows["papr"].gmacs_host + rows["papr"].gmacs_proposal
    for name in ("tome", "papr + tome"):
        total = rows[name].gmacs_host + rows[name].gmacs_proposal
        assert target <= total < 1.03 * target
    assert rows["tome"].gmacs_proposal == 0
    assert rows["class attention"].tokens == 32


def test_what_cannot_be_compared_is_refused() -> None:
    case = CASES["augreg"]
    model, images = case.build(depth=1), case.pixels(2)
    with pytest.raises(papr.ConfigError, match="expected keep below 1 to compare"):
        rivals(model, images, 1.0)
    with pytest.raises(papr.ConfigError, match=r"expected labels \(2,\) of the images, got a int"):
        rivals(model, images, 0.5, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(papr.ConfigError, match="expected at least one batch of images, got none"):
        measure_field(make_field(model, images, 0.5, proposal=proposal()), [])
    with pytest.raises(papr.UnsupportedModelError, match="cannot prune Linear"):
        rivals(torch.nn.Linear(2, 2), images, 0.5)
