"""Merging (ToMe), pooling and second cuts; what every host owes is in test_contract.py."""

import copy
import json
from inspect import signature

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

import papr
from papr.draw import merged_patches
from papr.graft import states
from papr.later import Step, steps
from papr.reducers.merge import match, merge_tokens, moved
from papr.reducers.pool import drop_and_pool
from tiny import CASES, DROPPING, no_fast_path, prune
from tiny_merging import MergingCase

MERGING = {name: case for name, case in CASES.items() if isinstance(case, MergingCase)}

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")


@torch.no_grad()
@pytest.mark.parametrize("name", MERGING)
def test_sources_say_what_each_token_holds(name: str) -> None:
    case = MERGING[name]
    model = case.build()
    dense, x = copy.deepcopy(model), case.pixels(2)
    case.prune(model, 0.5)
    case.logits(model, x)
    chosen = papr.selection(model)
    assert chosen.sources.shape == (2, 64)
    assert "pool" in case.pruning or (chosen.sources[~chosen.mask().flatten(1)] == -1).all()
    for image in range(2):
        _, holds = case.slowly(dense, x[image : image + 1], chosen.indices[image])
        found = [
            (chosen.sources[image] == t).nonzero().flatten().tolist() for t in range(len(holds))
        ]
        assert found == [sorted(held) for held in holds]
    assert chosen.tokens == len(holds)


@torch.no_grad()
def test_tokens_shrink_block_by_block_and_attention_stays_fused(monkeypatch) -> None:
    """The fused kernel runs as often as in the dense host, with a bias only after a merge.

    The first block that merges has none either: a mask of zeros rules out kernels that know none.
    """
    fused = nn.functional.scaled_dot_product_attention
    calls: list[tuple[int, bool]] = []

    def counted(q, k, v, attn_mask=None, *rest, **kwargs):
        calls.append((k.shape[2], attn_mask is not None))
        return fused(q, k, v, attn_mask, *rest, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    expected = {"hf_vit": [65, 65, 60, 55], "torchvision": [65, 65, 60, 55]}
    for name, counts in expected.items():
        case = DROPPING[name]
        model = case.build(depth=4)
        for proportional in (True, False):
            merge = papr.Merge([5, 5, 7], 0.25, proportional)
            case.prune(model, 1.0, merge=merge)
            calls.clear()
            with no_fast_path():
                case.logits(model, case.pixels(1))
            biased = [False, False, proportional, proportional]
            assert calls == list(zip(counts, biased, strict=True))
            assert papr.selection(model).tokens == 64 - 17


@torch.no_grad()
def test_merging_alone_runs_no_proposal_and_is_undone(monkeypatch) -> None:
    case = CASES["augreg"]
    model, x = case.build(), case.pixels()
    dense = model(x)
    monkeypatch.setattr(papr.proposals.scorers.Scorer, "__call__", lambda *a: pytest.fail("ran"))
    prune(model, 1.0, merge=papr.Merge(6))
    assert not torch.allclose(model(x), dense)
    chosen = papr.selection(model)
    assert chosen.mask().all()
    assert chosen.tokens == 64 - 3 * 6
    prune(model, 1.0)
    assert torch.equal(model(x), dense)
    assert torch.equal(papr.unprune(model)(x), dense)
    assert all(type(block) is Block for block in model.blocks)


def test_no_more_than_half_of_the_tokens_merge() -> None:
    model = prune(CASES["augreg"].build(), 0.1, merge=papr.Merge(100))
    model(CASES["augreg"].pixels(1))
    assert papr.selection(model).tokens == 2  # 6, which merge in two of three blocks: 3, 2


def test_a_matching_by_hand() -> None:
    """Of four directions and their doubles, moved by a little, each finds its own."""
    keys = torch.eye(4).repeat_interleave(2, 0)[None]  # a token of the first set, then its like
    keys[0, 1::2] += torch.tensor([0.4, 0.3, 0.2, 0.1]).diag()[:, [1, 2, 3, 0]]
    found = match(keys, 2)
    assert found.go.tolist() == [[2, 3]]  # tokens 4 and 6: the two pairs that were moved least
    assert found.into.tolist() == [[2, 3]]
    assert found.stay.tolist() == [[0, 1]]
    tokens = torch.arange(8.0).view(1, 8, 1)
    sizes = torch.ones(1, 8)
    sizes[0, 6] = 3
    merged, grown = merge_tokens(tokens, sizes, found)
    assert merged.flatten().tolist() == [0, 2, 1, 3, 4.5, 6.25]
    assert grown.tolist() == [[1, 1, 1, 1, 2, 4]]
    assert moved(found).tolist() == [[0, 2, 1, 3, 4, 4, 5, 5]]


@pytest.mark.parametrize(
    ("merge", "blocks", "counts"),
    [
        (papr.Merge(8), 4, [8, 8, 8, 8]),
        (papr.Merge([3, 1]), 4, [3, 1, 0, 0]),
        (papr.Merge((3, 1)), 4, [3, 1, 0, 0]),
        (papr.Merge(8, inflection=-1.0), 5, [16, 12, 8, 4, 0]),
        (papr.Merge(8, inflection=0.5), 3, [4, 8, 12]),
        (papr.Merge(8, inflection=1), 1, [0]),
        (papr.Merge(8, inflection=1), 3, [0, 8, 16]),
    ],
)
def test_how_many_merge_in_each_block(merge, blocks: int, counts: list[int]) -> None:
    assert merge.counts(blocks) == counts


def test_steps_of_the_blocks() -> None:
    found = steps(papr.Merge(2), papr.Recut(0.7, (1,)), 4, pruned=True)
    assert found == {
        1: Step(1, keep="0.7", sized=True, opens=True),
        2: Step(2, merge="2", sized=True),
        3: Step(3, merge="2", sized=True, closes=True),
    }
    assert list(steps(papr.Merge([2], proportional=False), None, 4, pruned=False)) == [0]
    assert list(steps(None, papr.Recut(), 12, pruned=True)) == [6]
    for blocks in range(2, 50):
        for start in range(blocks):
            found = steps(papr.Merge(1, start=start / blocks), None, blocks, pruned=True)
            assert next(iter(found)) == start


@pytest.mark.parametrize(
    "later", [{"merge": papr.Merge(8, inflection=-0.5)}, {"recut": papr.Recut(0.7)}]
)
def test_configurations_go_through_json(later: dict) -> None:
    config = papr.PruneConfig(0.6, pool=2, **later)
    assert papr.PruneConfig.from_json(config.to_json()) == config
    data = json.loads(papr.PruneConfig(1.0, merge=papr.Merge([3, 2])).to_json())
    assert data["merge"]["r"] == [3, 2]
    assert papr.PruneConfig.from_dict(data).merge.counts(3) == [3, 2, 0]


@torch.no_grad()
def test_dense_features_of_merged_tokens() -> None:
    """Each patch shows the token it ended in; what was dropped is filled from the nearest."""
    case = CASES["augreg"]
    model, x = case.build(), case.pixels(2)
    prune(model, 0.5, merge=papr.Merge(5), recut=papr.Recut(0.6))
    tokens = model.forward_features(x)[:, 1:]
    found, kept = papr.features(model, x, fill="zero")
    nearest = papr.features(model, x).map
    means = papr.features(model, x, fill="mean").map
    sources = papr.selection(model).sources.view(2, 8, 8)
    assert torch.equal(kept, sources >= 0)
    places = [(r, c) for r in range(8) for c in range(8)]
    for b in range(2):
        alive = [p for p in places if sources[b][p] >= 0]
        mean = torch.stack([tokens[b, sources[b][p]] for p in alive]).mean(0)
        for r, c in places:
            far = [((r - p[0]) ** 2 + (c - p[1]) ** 2, i) for i, p in enumerate(alive)]
            near = tokens[b, sources[b][alive[min(far)[1]]]]
            there = bool(kept[b, r, c])
            assert torch.equal(nearest[b, :, r, c], near)
            assert torch.equal(found[b, :, r, c], near if there else 0 * near)
            assert torch.allclose(means[b, :, r, c], near if there else mean, atol=1e-6)


@torch.no_grad()
def test_hidden_states_and_untraced_hosts() -> None:
    case = CASES["hf_vit"]
    model = prune(case.build(), 0.5, merge=papr.Merge(4), trace=False)
    states_ = model(case.pixels(2), output_hidden_states=True).hidden_states
    assert [h.shape[1] for h in states_] == [33, 33, 29, 25]
    with pytest.raises(papr.SelectionError, match="trace=True"):
        papr.selection(model)
    traced = prune(case.build(), 0.5, merge=papr.Merge(4))
    x = case.pixels(2)
    for found, expected in zip(papr.features(model, x), papr.features(traced, x), strict=True):
        assert torch.equal(found, expected)


class OtherBlock(Block):
    """A block that adds something that its leaves do not show."""

    def forward(self, x, *args, **kwargs):
        return super().forward(x, *args, **kwargs) + 0.01


OtherBlock.__name__ = "Block"


class OtherAttention(Attention):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.kv = self.qkv
        del self.qkv

    def forward(self, x, *args, **kwargs):
        return x


def small(**options) -> nn.Module:
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, **options
    ).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": 8}, "expected a papr.Merge or None, got 8"),
        ({"merge": papr.Merge([1, 2, 3], 0.0)}, "r for at most 2 blocks that merge, got 3"),
        ({"recut": papr.Recut(0.5, (2,))}, "recut blocks among 0 to 1"),
        ({"pool": -1}, "pool to be a number of means from 0, got -1"),
        ({"pool": 2, "reference": True}, "neither pool nor recut in reference mode"),
    ],
)
def test_bad_options_change_nothing(options: dict, message: str) -> None:
    model = small()
    with pytest.raises(papr.ConfigError, match=message):
        prune(model, 0.5, **options)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: papr.Merge(0), "positive whole number"),
        (lambda: papr.Merge("8"), "positive whole number"),
        (lambda: papr.Merge([1, -2]), "positive whole number"),
        (lambda: papr.Merge((8, -1.0)), r"say Merge\(8, inflection=-1.0\)"),
        (lambda: papr.Merge((8, -1)), r"say Merge\(8, inflection=-1\)"),
        (lambda: papr.Merge(8, start=1.0), "0 <= start < 1"),
        (lambda: papr.Merge(8, inflection=2.0), "inflection from -1 to 1"),
        (lambda: papr.Merge([8], inflection=0.5), "inflection with one number"),
        (lambda: papr.Merge(8, proportional=1), "True or False"),
        (lambda: papr.Recut(1.0), "0 < keep < 1"),
        (lambda: papr.Recut(by="norm"), '"shift" or "attention"'),
        (lambda: papr.Recut(blocks=(1, 1)), "distinct numbers"),
        (lambda: papr.PruneConfig(1.0, pool=2), "keep < 1 with pool"),
        (lambda: papr.PruneConfig.from_dict({"merge": {"s": 1}}), "keys of Merge"),
    ],
)
def test_bad_values(make, message: str) -> None:
    with pytest.raises(papr.ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", ["swin", "eva", "parallel", "hf_videomae", "cait"])
def test_hosts_that_cannot_are_refused(name: str) -> None:
    model = CASES[name].build(depth=1) if name != "swin" else CASES[name].build()
    with pytest.raises(papr.ConfigError, match="expected no merge for a"):
        prune(model, 0.5, merge=papr.Merge(2))
    assert not papr.is_pruned(model)


def test_hosts_without_a_class_token_have_no_class_attention() -> None:
    with pytest.raises(papr.ConfigError, match="no class token"):
        prune(CASES["gap"].build(depth=1), 0.5, recut=papr.Recut(0.5, (0,), "attention"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_fn": OtherBlock}, "papr computes something else"),
        ({"attn_layer": OtherAttention}, "does not know the leaves"),
    ],
)
def test_blocks_that_compute_something_else_are_refused(options: dict, message: str) -> None:
    """They prune as ever, and are left alone by merging."""
    if (
        "attn_layer" in options
        and "attn_layer" not in VisionTransformer.__init__.__code__.co_varnames
    ):
        pytest.skip("this timm takes no attention layer")
    model = small(**options)
    with pytest.raises(papr.UnsupportedModelError, match=message):
        prune(model, 0.5, merge=papr.Merge(2))
    assert not papr.is_pruned(model)
    prune(model, 0.5)


def test_the_check_moves_no_seed_and_no_weight() -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prune(model, 0.5, merge=papr.Merge(2))
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert states(model)[0].steps


@torch.no_grad()
@pytest.mark.parametrize("options", [{"attn_mask": torch.zeros(17, 17)}, {"is_causal": True}])
def test_an_attention_mask_is_refused_not_ignored(options: dict) -> None:
    model, x = prune(small(), 1.0, merge=papr.Merge(2)), torch.zeros(1, 3, 32, 32)
    if "is_causal" in options and "is_causal" not in signature(model.forward).parameters:
        pytest.skip("this timm knows no causal attention")
    with pytest.raises(papr.PrunedModelError, match="no attention mask"):
        model(x, **options)
    with pytest.raises(Exception, match="no attention mask"):
        torch.compile(model, backend="eager")(x, **options)


@torch.no_grad()
def test_attentions_are_refused_not_left_out() -> None:
    case = CASES["hf_vit"]
    model = case.build(attn="eager")
    if "kwargs" not in signature(type(case.blocks(model)[0]).forward).parameters:
        pytest.skip("this transformers does not tell its layers that attentions are asked for")
    prune(model, 0.5, merge=papr.Merge(2))
    with pytest.raises(papr.PrunedModelError, match="no attentions asked for"):
        model(case.pixels(1), output_attentions=True)


@torch.no_grad()
@pytest.mark.parametrize("later", [{"merge": papr.Merge(4)}, {"recut": papr.Recut(0.5)}])
def test_no_grid_is_made_of_tokens_that_are_not_there(later: dict) -> None:
    """Also at keep = 1, where only the blocks reduce; tokens in order can be had."""
    case = CASES["augreg"]
    model, x = prune(case.build(depth=4), 1.0, **later), case.pixels(2)
    with pytest.raises(papr.PrunedModelError, match="merged or cut in its blocks"):
        model.forward_intermediates(x, indices=[3])
    with pytest.raises(papr.PrunedModelError, match="8 x 8 grid"):
        model.get_intermediate_layers(x, n=1, reshape=True)
    for norm in (False, True):
        last, each = model.forward_intermediates(x, indices=[0, 2, 3], output_fmt="NLC", norm=norm)
        chosen = papr.selection(model)
        counts = [t.shape[1] for t in each]
        assert 64 >= counts[0] > counts[1] >= counts[2] == chosen.tokens
        assert chosen.restore(each[2]).shape == (2, 48, 8, 8)
        assert last.shape[1] == 1 + chosen.tokens


def test_rankings_and_means_keep_their_precision_under_autocast() -> None:
    """Inside autocast a product would be rounded, and other tokens would merge."""
    keys, tokens = torch.randn(2, 64, 24), torch.randn(2, 65, 24)
    keys = keys[:, :1] + 0.02 * keys  # alike, as neighbours are
    expected = match(keys, 16, 1)
    merged, _ = merge_tokens(tokens, torch.ones(2, 65), expected, 1)
    chosen = papr.select(torch.randn(2, 8, 8), 32)
    pooled, _ = drop_and_pool(tokens, chosen, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match(keys, 16, 1)
        assert all(torch.equal(a, b) for a, b in zip(found[:4], expected[:4], strict=True))
        assert torch.equal(merge_tokens(tokens, torch.ones(2, 65), expected, 1)[0], merged)
        assert torch.equal(drop_and_pool(tokens, chosen, 1, 2)[0], pooled)


@torch.no_grad()
def test_blocks_compiled_one_by_one_share_their_code() -> None:
    """More blocks than dynamo makes variants of: those that do the same must be the same."""
    torch._dynamo.reset()
    case = CASES["augreg"]
    model, x = prune(case.build(depth=12), 1.0, merge=papr.Merge(2)), case.pixels(2)
    expected = model(x)
    sources = papr.selection(model).sources
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    assert torch.equal(model(x), expected)
    assert torch.equal(papr.selection(model).sources, sources)


def test_a_reentrant_checkpoint_is_refused() -> None:
    """It runs a block again on another tensor than the one that what it met is found by."""
    case = CASES["augreg"]
    model, x = prune(case.build(), 0.5, merge=papr.Merge(4)).train(), case.pixels(2)

    class Checkpointed(nn.Sequential):
        def forward(self, tokens):
            for block in self:
                tokens = checkpoint(block, tokens, use_reentrant=True)
            return tokens

    model.blocks = Checkpointed(*model.blocks)
    with pytest.raises(papr.SelectionError, match="use_reentrant=False"):
        model(x).square().sum().backward()


def test_a_picture_of_what_tokens_hold() -> None:
    """Two patches of one token share their mean, a dropped one is white, borders are drawn."""
    image = Image.new("RGB", (80, 40))
    for column, colour in enumerate(((200, 0, 0), (100, 0, 0), (0, 90, 0), (0, 0, 80))):
        image.paste(colour, (column * 20, 0, column * 20 + 20, 40))
    picture = merged_patches(image, torch.tensor([[1, 1, -1, 0]]))
    assert [picture.getpixel((x, 20)) for x in (10, 30, 50, 70)] == [
        (150, 0, 0),
        (150, 0, 0),
        (255, 255, 255),
        (0, 0, 80),
    ]
    assert picture.getpixel((20, 20)) == (150, 0, 0)  # no line within a token
    assert picture.getpixel((60, 20)) == (255, 255, 255)
    with pytest.raises(papr.SelectionError, match=r"chosen.sources\[0\].view"):
        merged_patches(image, torch.zeros(4, dtype=torch.long))
