"""What may happen to tokens later in the host, beside PaPr's one cut before it: as data.

Checked when made; `papr.PruneConfig` holds them, and writes them to JSON with the rest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

from papr.counts import count_of
from papr.errors import ConfigError

#: By what a second cut ranks tokens.
RULES = ("shift", "attention")


@dataclass(frozen=True)
class Merge:
    """Token merging (ToMe): in each block the most alike pairs of tokens become one.

    Source: Bolya et al., ICLR 2023, arXiv 2210.09461.

    Attributes:
        r: tokens merged away in each block; a list or tuple gives one number a block, counted from
            the first that merges (blocks beyond it merge none), and is kept as a tuple. No block
            merges more than half.
        start: where merging begins, as a fraction of the host's blocks, 0 <= start < 1. None: in
            the second half where PaPr prunes before (as in its paper), from the first block
            otherwise.
        proportional: attend to a token as much as to all it holds (Sec. 3.2); for hosts that were
            not trained with merging. In the blocks after the first merge.
        inflection: with one number r, from -1 to 1: how many merge runs from r * (1 - inflection)
            in the first block to r * (1 + inflection) in the last. `Merge(8, inflection=-1.0)`
            merges most where the host begins.

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    r: int | Sequence[int]
    start: float | None = None
    proportional: bool = True
    inflection: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.r, list):
            object.__setattr__(self, "r", tuple(self.r))
        numbers = self.r if isinstance(self.r, tuple) else (self.r,)
        if not numbers or not all(_is_whole(n) for n in numbers) or not any(numbers):
            pair = len(numbers) == 2 and _is_whole(numbers[0]) and _is_real(numbers[1])
            instead = f"; say Merge({numbers[0]}, inflection={numbers[1]})" if pair else ""
            raise ConfigError(
                "expected merge r to be a positive whole number, or a list of whole numbers not "
                f"all 0, got {self.r!r}{instead}"
            )
        if self.start is not None and not (_is_real(self.start) and 0 <= self.start < 1):
            raise ConfigError(f"expected merge 0 <= start < 1, or None, got {self.start!r}")
        if not _is_real(self.inflection) or not -1 <= self.inflection <= 1:
            raise ConfigError(f"expected merge inflection from -1 to 1, got {self.inflection!r}")
        if self.inflection and isinstance(self.r, tuple):
            raise ConfigError("expected an inflection with one number r, got it with a list")
        if not isinstance(self.proportional, bool):
            raise ConfigError(
                f"expected merge proportional to be True or False, got {self.proportional!r}"
            )

    def counts(self, blocks: int) -> list[int]:
        """How many tokens each of so many blocks merges away.

        Raises:
            ConfigError: a list for more blocks than there are.
        """
        if isinstance(self.r, tuple):
            listed = list(self.r)
            if len(listed) > blocks:
                raise ConfigError(
                    f"expected r for at most {blocks} blocks that merge, got {len(listed)} numbers"
                )
            return listed + [0] * (blocks - len(listed))
        assert isinstance(self.r, int)
        first, last = self.r * (1 - self.inflection), self.r * (1 + self.inflection)
        steps = max(blocks - 1, 1)
        return [count_of(first + (last - first) * i / steps, 1) for i in range(blocks)]


@dataclass(frozen=True)
class Recut:
    """A second cut: in some block the least of the patch tokens are dropped too.

    It ranks tokens by what the host has made of them so far, and needs no attention map
    ("shift") or one row of it ("attention"), so that attention stays fused.

    Attributes:
        keep: fraction of the patch tokens present that stay, 0 < keep < 1.
        blocks: in which blocks, counted from 0; None for the one in the middle.
        by: "shift": how far the block's MLP moves a token (the Euclidean norm of what it adds);
            Choi et al., "Representation Shift: Unifying Token Compression with FlashAttention",
            ICCV 2025, arXiv 2508.00367. "attention": how much the class token attends to it,
            averaged over heads, cut between attention and MLP; Liang et al., "EViT", ICLR 2022,
            arXiv 2202.07800, here without training and without the fused token (see `pool`).

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    keep: float = 0.8
    blocks: tuple[int, ...] | None = None
    by: str = "shift"

    def __post_init__(self) -> None:
        if not _is_real(self.keep) or not 0 < self.keep < 1:
            raise ConfigError(f"expected recut 0 < keep < 1, got {self.keep!r}")
        object.__setattr__(self, "keep", float(self.keep))
        if self.by not in RULES:
            raise ConfigError(f'expected recut by "shift" or "attention", got {self.by!r}')
        if self.blocks is None:
            return
        listed = isinstance(self.blocks, Sequence) and not isinstance(self.blocks, str)
        numbers = list(self.blocks) if listed else []
        if not numbers or not all(map(_is_whole, numbers)) or len(set(numbers)) < len(numbers):
            raise ConfigError(
                "expected recut blocks to be distinct numbers counted from 0, or None, "
                f"got {self.blocks!r}"
            )
        object.__setattr__(self, "blocks", tuple(sorted(numbers)))


@dataclass(frozen=True)
class Step:
    """What one block does with its tokens. Numbers that decide shapes as text: see `HostState`.

    Attributes:
        block: which one, counted from 0.
        merge: tokens to merge away.
        keep: fraction of patch tokens that stay; "1.0" for all.
        by: what ranks them.
        sized: whether attention is proportional here.
        opens: whether it is the first block that does anything.
        closes: whether it is the last block that must know what the others did.
        bypassed: the modules in it that are taken apart; see `papr.hosts.bypassed`.
    """

    block: int = 0
    merge: str = "0"
    keep: str = "1.0"
    by: str = "shift"
    sized: bool = False
    opens: bool = False
    closes: bool = False
    bypassed: tuple[tuple[str, str], ...] = ()


def steps(merge: Merge | None, recut: Recut | None, blocks: int, pruned: bool) -> dict[int, Step]:
    """What each block does, by its number; blocks that need do nothing are left out.

    Args:
        merge: as configured.
        recut: as configured.
        blocks: how many the host has.
        pruned: whether PaPr prunes before the first.

    Raises:
        ConfigError: a block that the host does not have.
    """
    counts, cuts = [0] * blocks, _cuts(recut, blocks)
    if merge is not None:
        start = (0.5 if pruned else 0.0) if merge.start is None else merge.start
        first = count_of(start, blocks)
        counts[first:] = merge.counts(blocks - first)
    active = [i for i in range(blocks) if counts[i] or i in cuts]
    if not active:
        raise ConfigError(f"expected a block that merges, got none of {blocks} with {merge!r}")
    sized = merge is not None and merge.proportional and any(counts)
    last = blocks - 1 if sized else active[-1]
    keep, by = ("1.0", "shift") if recut is None else (repr(recut.keep), recut.by)
    return {
        i: Step(
            block=i,
            merge=str(counts[i]),
            keep=keep if i in cuts else "1.0",
            by=by,
            sized=sized,
            opens=i == active[0],
            closes=i == last,
        )
        for i in range(active[0], last + 1)
    }


def _cuts(recut: Recut | None, blocks: int) -> tuple[int, ...]:
    if recut is None:
        return ()
    numbers = (blocks // 2,) if recut.blocks is None else recut.blocks
    if numbers[-1] >= blocks:
        raise ConfigError(
            f"expected recut blocks among 0 to {blocks - 1}, which the host has, got {numbers}"
        )
    return numbers


def read(kind: type[Any], value: Any) -> Any:
    """A `Merge` or `Recut` as it is, or made of what JSON holds of one. Raises ConfigError."""
    if value is None or isinstance(value, kind):
        return value
    name = kind.__name__
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a papr.{name} or None, got {value!r}")
    known = [field.name for field in dataclasses.fields(kind)]
    if set(value) - set(known):
        raise ConfigError(f"expected keys of {name} among {', '.join(known)}, got {set(value)}")
    return kind(**value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
