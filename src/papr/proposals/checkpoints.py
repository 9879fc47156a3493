"""Clip networks from the checkpoint files of PyTorchVideo and of mmaction2.

Both hold the same networks under other names. A layout is a table of module names beside ours;
which network and which layout a file holds is read off its keys and shapes. The names are those of
PyTorchVideo's `create_x3d` and `create_resnet` and of mmaction2's `X3D` with `X3DHead` and
`ResNet3dSlowOnly` with `I3DHead` (both projects Apache-2.0).
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from papr.errors import ProposalError
from papr.proposals import slowonly, x3d
from papr.proposals.weight_files import read

Weights = dict[str, Tensor]
Row = tuple[str, str, str]
Depths = tuple[int, int, int, int]
LAYOUTS = ("pytorchvideo", "mmaction2")

#: Module names: ours, PyTorchVideo's, mmaction2's; {s} is a stage, 1 to 4, {b} a block in it.
_X3D: tuple[Row, ...] = (
    # PyTorchVideo's conv_t is the one over space: it was built for the other order
    ("stem.space", "blocks.0.conv.conv_t", "backbone.conv1_s.conv"),
    ("stem.time", "blocks.0.conv.conv_xy", "backbone.conv1_t.conv"),
    ("stem.norm", "blocks.0.norm", "backbone.conv1_t.bn"),
    (
        "stage{s}.{b}.shortcut.conv",
        "blocks.{s}.res_blocks.{b}.branch1_conv",
        "backbone.layer{s}.{b}.downsample.conv",
    ),
    (
        "stage{s}.{b}.shortcut.norm",
        "blocks.{s}.res_blocks.{b}.branch1_norm",
        "backbone.layer{s}.{b}.downsample.bn",
    ),
    (
        "stage{s}.{b}.conv1.conv",
        "blocks.{s}.res_blocks.{b}.branch2.conv_a",
        "backbone.layer{s}.{b}.conv1.conv",
    ),
    (
        "stage{s}.{b}.conv1.norm",
        "blocks.{s}.res_blocks.{b}.branch2.norm_a",
        "backbone.layer{s}.{b}.conv1.bn",
    ),
    (
        "stage{s}.{b}.conv2.conv",
        "blocks.{s}.res_blocks.{b}.branch2.conv_b",
        "backbone.layer{s}.{b}.conv2.conv",
    ),
    (
        "stage{s}.{b}.conv2.norm",
        "blocks.{s}.res_blocks.{b}.branch2.norm_b.0",
        "backbone.layer{s}.{b}.conv2.bn",
    ),
    (
        "stage{s}.{b}.squeeze.down",
        "blocks.{s}.res_blocks.{b}.branch2.norm_b.1.block.0",
        "backbone.layer{s}.{b}.se_module.fc1",
    ),
    (
        "stage{s}.{b}.squeeze.up",
        "blocks.{s}.res_blocks.{b}.branch2.norm_b.1.block.2",
        "backbone.layer{s}.{b}.se_module.fc2",
    ),
    (
        "stage{s}.{b}.conv3.conv",
        "blocks.{s}.res_blocks.{b}.branch2.conv_c",
        "backbone.layer{s}.{b}.conv3.conv",
    ),
    (
        "stage{s}.{b}.conv3.norm",
        "blocks.{s}.res_blocks.{b}.branch2.norm_c",
        "backbone.layer{s}.{b}.conv3.bn",
    ),
    ("conv5.conv", "blocks.5.pool.pre_conv", "backbone.conv5.conv"),
    ("conv5.norm", "blocks.5.pool.pre_norm", "backbone.conv5.bn"),
    ("head.hidden", "blocks.5.pool.post_conv", "cls_head.fc1"),
    ("head.classes", "blocks.5.proj", "cls_head.fc2"),
)
_SLOWONLY: tuple[Row, ...] = (
    ("stem.conv", "blocks.0.conv", "backbone.conv1.conv"),
    ("stem.norm", "blocks.0.norm", "backbone.conv1.bn"),
    *(row for row in _X3D if re.search(r"shortcut|conv[13]\.(conv|norm)|conv2\.conv", row[0])),
    (
        "stage{s}.{b}.conv2.norm",
        "blocks.{s}.res_blocks.{b}.branch2.norm_b",
        "backbone.layer{s}.{b}.conv2.bn",
    ),
    ("head.classes", "blocks.5.proj", "cls_head.fc_cls"),
)
#: Linear layers that a layout keeps as convolutions of 1 x 1 x 1: (outputs, inputs, 1, 1, 1).
_CONVOLUTIONS = ("blocks.5.pool.post_conv.weight",)


@dataclass(frozen=True)
class Family:
    """Networks that differ in their depths alone.

    Attributes:
        title: for messages.
        rows: the module names in each layout.
        build: from state_dict keys, classes and depths to a network.
        networks: the names of the known ones, by depths; one name stands for all that are equal.
    """

    title: str
    rows: tuple[Row, ...]
    build: Callable[[Iterable[str], int, Depths], nn.Module]
    networks: dict[Depths, str]


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        name: "x3d_s" (X3D-M is the same network), "slowonly_r50" or "slowonly_r101".
        layout: "pytorchvideo" or "mmaction2".
        net: the network with the file's weights, float32, in eval mode.
        sha256: of the file, as it was read.
    """

    name: str
    layout: str
    net: nn.Module
    sha256: str = ""


def _build_x3d(keys: Iterable[str], classes: int, depths: Depths) -> nn.Module:
    return x3d.X3D(classes, depths, first_norm=any("stage1.0.shortcut.norm" in k for k in keys))


def _build_slowonly(keys: Iterable[str], classes: int, depths: Depths) -> nn.Module:
    return slowonly.SlowOnly(classes, depths)


X3D = Family("X3D", _X3D, _build_x3d, {x3d.DEPTHS: "x3d_s"})
SLOWONLY = Family(
    "SlowOnly",
    _SLOWONLY,
    _build_slowonly,
    {depths: f"slowonly_r{depth}" for depth, depths in slowonly.DEPTHS.items()},
)


def load(path: Path) -> Checkpoint:
    """The network in a checkpoint file, its complete head included.

    The weights may lie under "model_state" (PyTorchVideo's .pyth), under "state_dict" (mmaction2's
    .pth) or bare, in torch.save's format or in safetensors. Every key must be known and none may
    be missing, but for norms' `num_batches_tracked`, which old files lack and nothing here needs.
    The number of classes is the file's own.

    Raises:
        ProposalError: the file cannot be read, or is not such a checkpoint.
    """
    theirs, sha256 = read(path)
    family, layout = _recognise(theirs, path)
    net = _empty(theirs, family, layout, path)
    expected = net.state_dict()
    _check(theirs, to_layout(expected, layout), f"{family.title} in {layout}'s layout", path)
    ours = {}
    for key, empty in expected.items():
        value = theirs.get(_name(key, family, layout))
        if value is None:  # num_batches_tracked: _check has seen to it
            value = torch.zeros(empty.shape, device="cpu")
        ours[key] = value.reshape(empty.shape).to(empty.dtype).contiguous()
    net.load_state_dict(ours, assign=True)
    return Checkpoint(family.networks[_depths(expected)], layout, net.eval(), sha256)


def to_layout(weights: Weights, layout: str) -> Weights:
    """A state_dict of ours under the names, and in the shapes, of a layout."""
    family = X3D if "conv5.conv.weight" in weights else SLOWONLY
    theirs = {}
    for key, value in weights.items():
        name = _name(key, family, layout)
        theirs[name] = value.reshape(*value.shape, 1, 1, 1) if name in _CONVOLUTIONS else value
    return theirs


def _name(key: str, family: Family, layout: str) -> str:
    """What a layout calls a key of ours."""
    name = _rename(key, family, "papr", layout)
    assert name is not None, key
    return name


@functools.lru_cache
def _patterns(family_rows: tuple[Row, ...], column: int) -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile(
            re.escape(row[column])
            .replace(r"\{s\}", r"(?P<s>[1-4])")
            .replace(r"\{b\}", r"(?P<b>0|[1-9]\d*)")
        )
        for row in family_rows
    )


def _rename(key: str, family: Family, source: str, target: str) -> str | None:
    """A key of one layout in another; None for a key that is none."""
    columns = ("papr", *LAYOUTS)
    module, _, leaf = key.rpartition(".")
    patterns = _patterns(family.rows, columns.index(source))
    for row, pattern in zip(family.rows, patterns, strict=True):
        found = pattern.fullmatch(module)
        if found:
            return f"{row[columns.index(target)].format(**found.groupdict())}.{leaf}"
    return None


def _recognise(theirs: Weights, path: Path) -> tuple[Family, str]:
    """The family and layout that know most of the keys."""

    def known(choice: tuple[Family, str]) -> int:
        return sum(_rename(key, *choice, "papr") is not None for key in theirs)

    best = max(((f, layout) for f in (X3D, SLOWONLY) for layout in LAYOUTS), key=known)
    if known(best) <= len(theirs) // 2:
        raise ProposalError(
            f"{path}: expected X3D or SlowOnly in PyTorchVideo's or mmaction2's layout, got the "
            f"keys {_first(list(theirs))}"
        )
    return best


def _empty(theirs: Weights, family: Family, layout: str, path: Path) -> nn.Module:
    """The network that the keys speak of, without weights."""
    named = {_rename(key, family, layout, "papr"): value for key, value in theirs.items()}
    ours = {key: value for key, value in named.items() if key is not None}
    depths = _depths(ours)
    if depths not in family.networks:
        known = " or ".join(", ".join(map(str, d)) for d in family.networks)
        raise ProposalError(
            f"{path}: expected {family.title} in {layout}'s layout with {known} blocks in its "
            f"stages, got {', '.join(map(str, depths))}"
        )
    weight = ours.get("head.classes.weight")
    classes = 400 if weight is None or weight.ndim != 2 else len(weight)
    with torch.device("meta"):  # no weights are drawn: the global random state stays as it is
        return family.build(ours, classes, depths)


def _depths(ours: Iterable[str]) -> Depths:
    """How many blocks each stage has, by the largest number that occurs."""
    depths = [0, 0, 0, 0]
    for key in ours:
        found = re.match(r"stage([1-4])\.(\d+)\.", key)
        if found:
            stage, block = int(found[1]) - 1, int(found[2])
            depths[stage] = max(depths[stage], block + 1)
    return depths[0], depths[1], depths[2], depths[3]


def _check(theirs: Weights, expected: Weights, title: str, path: Path) -> None:
    """Raise ProposalError where the keys or the shapes are not those of the network."""
    unknown = [key for key in theirs if key not in expected]
    missing = [key for key in expected if key not in theirs and "num_batches" not in key]
    if missing or unknown:
        parts = [f"{len(missing)} missing ({_first(missing)})"] if missing else []
        parts += [f"{len(unknown)} unknown ({_first(unknown)})"] if unknown else []
        raise ProposalError(f"{path}: expected the keys of {title}, got {' and '.join(parts)}")
    for key, value in theirs.items():
        if value.shape != expected[key].shape:
            raise ProposalError(
                f"{path}: expected {title} with {key} {tuple(expected[key].shape)}, got "
                f"{tuple(value.shape)}"
            )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
