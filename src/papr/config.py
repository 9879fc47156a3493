"""What a user can ask for, as data: checked when made, round-trips through JSON."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from papr.errors import ConfigError, one_line
from papr.later import Merge, Recut, read
from papr.provenance import KEY

#: Comes with papr; see `papr.proposals.glance`.
DEFAULT_PROPOSAL = "glance"

#: A resolution: None for the proposal's own choice, "input" for the host's pixels as they come,
#: an int for the shorter side in pixels, a pair for (height, width).
Size = None | str | int | tuple[int, int]
#: The same of a proposal, which may look at clips: a triple for (frames, height, width).
ProposalSize = Size | tuple[int, int, int]
Triple = tuple[float, float, float]
ATTENTION = ("dense", "kept")
SCORES = ("significance", "softcam", "motion")
#: What most networks were trained with, for pixels in [0, 1].
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PruneConfig:
    """How a host is pruned.

    Examples:
        ViT-B/16 at 224 px has 196 patches: `PruneConfig(keep=0.5)` keeps 98 of them and the class
        token, so its blocks see 99 tokens instead of 197.

    Attributes:
        keep: fraction of patches that stay, 0 < keep <= 1 (the paper's z). 1 is the dense model.
        proposal: who looks first: a name ("glance", which comes with papr, or any timm ConvNet),
            an `nn.Module` that returns a feature map, a callable `pixels -> scores (B, h, w)`, or
            a `papr.Proposal`.
        proposal_size: resolution the proposal runs at. None: its default; an int: the shorter
            side in pixels, aspect ratio kept; (height, width), or (frames, height, width) of one
            that looks at clips: exactly that; "input": the host's pixels as they come.
        reference: exact semantics of the paper's reference: the proposal gets the host's pixels
            as they are, and a class token counts towards the number of kept patches.
        mean: the host's input mean for pixels in [0, 1], where it cannot be read off the model.
        std: the host's input standard deviation, likewise.
        trace: keep the last forward's selection for `papr.selection`.
        stages: of a hierarchical host (Swin, ConvNeXt), the stages that are pruned, counted from
            0; None for all.
        attention: of a Swin host, "dense" (the paper's: only MLPs skip) or "kept" (tokens that
            are not selected take no part in window attention either, neither as queries nor as
            keys; faster, and further from the dense model).
        score: "significance" (the paper's channel mean; of glance its own map); of an image host
            "softcam", the class activation maps of the proposal's classes, if it has some, each
            weighted by its probability (see `papr.proposals.heads`); or of a video host "motion",
            which mixes the significance with how much each patch changed since the last tubelet
            (see `papr.motion`).
        motion_weight: the weight of that change, 0 to 1; the significance has the rest.
        reuse: of a video host, for how many clips of a stream the significance map serves, the
            one it was made from included. With gradients enabled every clip is looked at.
        reuse_threshold: how much the picture may have changed since, in the host's pixel units
            (1 is one standard deviation of what it was normalised with), before it is looked at
            anew; see `papr.proposals.reuse`.
        merge: of a plain ViT, merge alike tokens in its blocks too (ToMe); at keep=1 alone. See
            `papr.Merge`.
        pool: of a plain ViT, into how many means the pruned patches are pooled instead of being
            dropped; see `papr.reducers.pool`.
        recut: of a plain ViT, drop tokens once more in a later block; see `papr.Recut`.
        share: None for the same number of patches in every image, or 0 < share < 1: each image
            keeps as many as carry this share of its significance, from 0.75 to 1.25 times `keep`,
            which is the mean that the share was calibrated for; see `papr.calibrate`.

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    keep: float = 0.5
    proposal: Any = DEFAULT_PROPOSAL
    proposal_size: ProposalSize = None
    reference: bool = False
    mean: Triple | None = None
    std: Triple | None = None
    trace: bool = True
    stages: tuple[int, ...] | None = None
    attention: str = "dense"
    score: str = "significance"
    motion_weight: float = 0.5
    reuse: int = 1
    reuse_threshold: float = 0.25
    merge: Merge | None = None
    pool: int = 0
    recut: Recut | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        _set(self, "keep", check_keep(self.keep))
        _set(self, "proposal_size", check_proposal_size(self.proposal_size, "proposal_size"))
        mean, std = check_statistics(self.mean, self.std)
        _set(self, "mean", mean)
        _set(self, "std", std)
        _set(self, "stages", check_stages(self.stages))
        if self.attention not in ATTENTION:
            raise ConfigError(f'expected attention "dense" or "kept", got {self.attention!r}')
        if self.score not in SCORES:
            known = " or ".join(f'"{name}"' for name in SCORES)
            raise ConfigError(f"expected score {known}, got {self.score!r}")
        _check_video(self)
        _check_later(self)
        _check_share(self)
        for name in ("reference", "trace"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"expected {name} to be True or False, got {value!r}")
        if not (
            isinstance(self.proposal, str | os.PathLike)
            or callable(self.proposal)
            or _is_made(self.proposal)
        ):
            raise ConfigError(
                "expected proposal to be a name, an nn.Module, a callable or a papr.Proposal, "
                f"got {self.proposal!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data. Raises ConfigError where the proposal is an object rather than a name."""
        if not isinstance(self.proposal, str):
            raise ConfigError(
                "expected a proposal given by name to write the configuration down, "
                f"got {type(self.proposal).__name__}"
            )
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PruneConfig":
        """The inverse of `to_dict`. Raises ConfigError on keys this version does not know.

        What a file says of weights beside it (its provenance) is none of the configuration.
        """
        data = {name: value for name, value in data.items() if name != KEY}
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ConfigError(f"expected keys among {', '.join(known)}, got {', '.join(unknown)}")
        return cls(**data)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal configuration."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "PruneConfig":
        """Read what `to_json` wrote. Raises ConfigError where the text is not such JSON."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(
                f"expected a JSON object, got text that is not JSON: {error}"
            ) from None
        if not isinstance(data, dict):
            raise ConfigError(f"expected a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "PruneConfig":
        """Read a file that holds what `to_json` wrote, such as `papr tune`'s chosen.json.

        Raises:
            ConfigError: there is no such file, or it holds something else; the message names it.
        """
        name = os.fspath(path)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"expected a file with a configuration, cannot read {name}: {one_line(error)}"
            ) from None
        try:
            return cls.from_json(text)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"expected a configuration in {name}: {error}") from None


def check_keep(keep: object) -> float:
    """A fraction 0 < keep <= 1 as a float, or ConfigError."""
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < float(keep) <= 1:
        raise ConfigError(f"expected 0 < keep <= 1, got {keep!r}")
    return float(keep)


def check_stages(stages: object) -> tuple[int, ...] | None:
    """Stage numbers as a sorted tuple, None for all, or ConfigError."""
    if stages is None:
        return None
    numbers = list(stages) if isinstance(stages, Sequence) and not isinstance(stages, str) else []
    counts = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    if not counts or len(set(counts)) != len(numbers):
        raise ConfigError(
            "expected stages to be distinct numbers counted from 0, or None for all, "
            f"got {stages!r}"
        )
    return tuple(sorted(counts))


def check_size(size: object, name: str) -> Size:
    """A resolution as `Size` describes it, or ConfigError; `name` is the option's."""
    if size is None or size == "input" or (is_count(size) and isinstance(size, int)):
        return size
    if isinstance(size, Sequence) and len(size) == 2 and all(map(is_count, size)):
        return (size[0], size[1])
    raise ConfigError(
        f'expected {name} to be None, "input", a positive int or (height, width), got {size!r}'
    )


def check_proposal_size(size: object, name: str) -> ProposalSize:
    """A resolution as `ProposalSize` describes it, or ConfigError."""
    if isinstance(size, Sequence) and len(size) == 3 and all(map(is_count, size)):
        return (size[0], size[1], size[2])
    return check_size(size, name)


def check_statistics(mean: object, std: object) -> tuple[Triple | None, Triple | None]:
    """Mean and standard deviation as triples of floats, both or neither, or ConfigError."""
    if (mean is None) != (std is None):
        raise ConfigError(f"expected mean and std together, got mean={mean!r} and std={std!r}")
    if mean is None:
        return None, None
    triples = (_triple(mean, "mean"), _triple(std, "std"))
    if min(triples[1]) <= 0:
        raise ConfigError(f"expected std above 0, got {std!r}")
    return triples


def _check_video(config: PruneConfig) -> None:
    """Check the options of video hosts."""
    if not _is_number(config.motion_weight) or not 0 <= config.motion_weight <= 1:
        raise ConfigError(f"expected 0 <= motion_weight <= 1, got {config.motion_weight!r}")
    if not is_count(config.reuse):
        raise ConfigError(f"expected reuse to be a number of clips from 1, got {config.reuse!r}")
    threshold = config.reuse_threshold
    if not _is_number(threshold) or threshold < 0 or not isfinite(threshold):
        raise ConfigError(f"expected a finite reuse_threshold of at least 0, got {threshold!r}")
    if config.reference and config.score != "significance":
        raise ConfigError(
            f'expected score="significance" in reference mode, got {config.score!r}, which the '
            "paper does not know"
        )
    if config.score != "motion" and config.motion_weight != PruneConfig.motion_weight:
        raise ConfigError(
            f'expected motion_weight with score="motion", got {config.motion_weight!r} with '
            f"{config.score!r}"
        )
    if config.reuse == 1 and threshold != PruneConfig.reuse_threshold:
        raise ConfigError(f"expected reuse_threshold with reuse > 1, got {threshold!r} with 1")


def _check_later(config: PruneConfig) -> None:
    """Check the options of what happens after the selection."""
    _set(config, "merge", read(Merge, config.merge))
    _set(config, "recut", read(Recut, config.recut))
    if config.pool != 0 and not is_count(config.pool):
        raise ConfigError(f"expected pool to be a number of means from 0, got {config.pool!r}")
    if config.pool and config.keep == 1:
        raise ConfigError("expected keep < 1 with pool, got 1, where no patch is left to pool")
    if config.reference and (config.pool or config.recut):
        raise ConfigError(
            "expected neither pool nor recut in reference mode: the paper does not know them"
        )


def _check_share(config: PruneConfig) -> None:
    share = config.share
    if share is None:
        return
    if not _is_number(share) or not 0 < share < 1:
        raise ConfigError(f"expected 0 < share < 1, or None, got {share!r}")
    if config.merge or config.pool or config.recut:
        raise ConfigError(
            "expected neither merge, pool nor recut where each image has a budget of its own"
        )
    if config.reference or config.keep == 1:
        raise ConfigError(
            "expected share with keep below 1 and not in reference mode, which keeps one number of "
            f"patches, got keep={config.keep!r} and reference={config.reference!r}"
        )


def _triple(value: object, name: str) -> Triple:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 3 or not all(isinstance(x, Real) and isfinite(x) for x in numbers):
        raise ConfigError(f"expected {name} to be three numbers (R, G, B), got {value!r}")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether this is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_made(proposal: object) -> bool:
    return hasattr(proposal, "scorer")  # a papr.Proposal; that room lies above this one


def _set(config: PruneConfig, name: str, value: object) -> None:
    object.__setattr__(config, name, value)
