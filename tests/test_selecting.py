"""Selections: counting, ranking, ties, masks, restoring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import papr
import reference
from papr.errors import ProposalError, SelectionError
from papr.selecting import gather, kept_count, select, top_indices


@pytest.mark.parametrize(
    ("keep", "patches", "class_token", "expected"),
    [
        (0.5, 196, False, 98),
        (0.5, 196, True, 98),  # int(0.5 * 197) = 98
        (0.6, 196, True, 118),
        (0.01, 10, False, 1),
        (0.999, 196, True, 196),
        (1.0, 196, True, 196),
        (0.3, 64, False, 19),
    ],
)
def test_kept_count(keep: float, patches: int, class_token: bool, expected: int) -> None:
    assert kept_count(keep, patches, class_token) == expected


def test_a_fraction_of_so_many_patches_keeps_that_many() -> None:
    assert kept_count(0.29, 100) == 29
    for patches in (*range(1, 300), 400, 576, 784, 1024, 1568):
        for kept in range(1, patches + 1):
            exact, single = kept / patches, float(np.float32(kept / patches))
            assert kept_count(exact, patches) == kept
            assert kept_count(min(1.0, single), patches) == kept
            more = min(1.0, exact + 0.4 / patches)  # still rounded down
            assert kept_count(more, patches) == kept


@pytest.mark.parametrize("keep", [0.29, 0.57, 0.58])
def test_reference_mode_counts_as_the_reference_does(keep: float) -> None:
    assert kept_count(keep, 100, reference=True) == int(keep * 100) != kept_count(keep, 100)
    assert kept_count(keep, 99, class_token=True) == int(keep * 100)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    share=st.floats(0.01, 1),
    levels=st.integers(1, 5),
    seed=st.integers(0, 9999),
)
def test_equals_sorting_pairs(
    rows: int, columns: int, share: float, levels: int, seed: int
) -> None:
    """Few distinct levels, so most scores tie: the lower index must win."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (3, rows, columns), generator=generator).float()
    count = kept_count(share, rows * columns)
    chosen = select(scores, count)
    assert (chosen.indices.numpy() == reference.kept(scores.numpy(), count)).all()
    mask = chosen.mask()
    assert mask.shape == (3, rows, columns)
    assert (mask.flatten(1).sum(1) == count).all()
    assert torch.equal(mask.flatten(1).nonzero()[:, 1].view(3, count), chosen.indices)


def test_half_precision_is_ranked_as_it_is() -> None:
    scores = torch.randn(4, 14, 14).bfloat16()
    assert torch.equal(top_indices(scores, 50), top_indices(scores.float(), 50))


def test_restore_inverts_gather() -> None:
    tokens = torch.randn(2, 5 + 12, 6)
    chosen = select(torch.randn(2, 3, 4), 7)
    kept = gather(tokens, chosen.indices, prefix_tokens=5)
    assert torch.equal(kept[:, :5], tokens[:, :5])
    grid = chosen.restore(kept[:, 5:], fill=-1.0)
    dense = tokens[:, 5:].transpose(1, 2).reshape(2, 6, 3, 4)
    mask = chosen.mask().unsqueeze(1)
    assert torch.equal(grid, torch.where(mask, dense, torch.tensor(-1.0)))


def test_restore_refuses_prefix_tokens() -> None:
    chosen = select(torch.randn(2, 3, 4), 7)
    with pytest.raises(SelectionError, match=r"\(2, 7, C\) without prefix tokens.*\(2, 8, 6\)"):
        chosen.restore(torch.zeros(2, 8, 6))


def test_bad_input() -> None:
    with pytest.raises(SelectionError, match=r"expected a significance map.*\(2, 196\)"):
        select(torch.zeros(2, 196), 3)
    with pytest.raises(SelectionError, match="between 1 and 12"):
        select(torch.zeros(2, 3, 4), 13)
    with pytest.raises(ProposalError, match="finite scores, got 2 NaN or infinite"):
        select(torch.tensor([[[1.0, float("nan")], [float("inf"), 0.0]]]), 1)


class TestApplyPapr:
    """The published sketch, on one's own tensors."""

    @pytest.mark.parametrize("prefix", [0, 1, 2, 5])
    @pytest.mark.parametrize("grid", [(4, 8), (8, 4), (6, 6)])
    def test_any_grid_and_prefix(self, grid: tuple[int, int], prefix: int) -> None:
        patches = grid[0] * grid[1]
        tokens = torch.randn(2, prefix + patches, 5)
        features = torch.randn(2, 7, grid[0] // 2, grid[1] // 2)
        result = papr.apply_papr(tokens, features, 0.4, prefix_tokens=prefix)
        scores = reference.significance(features.numpy(), *grid)
        for b, kept in enumerate(reference.kept(scores, int(0.4 * patches))):
            expected = torch.cat([tokens[b, :prefix], tokens[b, prefix:][torch.from_numpy(kept)]])
            assert torch.equal(result[b], expected)

    def test_grid_that_the_map_does_not_tell(self) -> None:
        tokens, features = torch.randn(1, 1 + 15 * 20, 4), torch.randn(1, 3, 8, 10)
        with pytest.raises(SelectionError, match=r"no grid of 300 patches.*8 x 10.*pass grid="):
            papr.apply_papr(tokens, features, 0.5)
        assert papr.apply_papr(tokens, features, 0.5, grid=(15, 20)).shape == (1, 151, 4)

    def test_bad_input(self) -> None:
        tokens, features = torch.randn(1, 17, 4), torch.randn(1, 3, 2, 2)
        with pytest.raises(SelectionError, match="0 < z <= 1, got 0"):
            papr.apply_papr(tokens, features, 0)
        with pytest.raises(SelectionError, match=r"of 16 patches.*got \(4, 5\)"):
            papr.apply_papr(tokens, features, 0.5, grid=(4, 5))
        with pytest.raises(SelectionError, match="of one batch"):
            papr.apply_papr(tokens, features.expand(2, -1, -1, -1), 0.5)
        with pytest.raises(SelectionError, match=r"tokens \(B, N, C\)"):
            papr.apply_papr(tokens[0], features, 0.5)
