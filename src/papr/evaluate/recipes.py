"""The paper's tables as data: hosts, configurations, and the figures printed in it.

Source: Mahmud et al., "PaPr", ECCV 2024 (arXiv 2403.16020). Accuracies are read partly off plots:
+-0.1. Where the paper prints no count of a configuration, one made by hand from the layers' shapes
stands in its place, and is marked so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from papr.config import PruneConfig
from papr.errors import ConfigError
from papr.later import Merge

#: How far a printed accuracy may be from what the paper measured, in per cent points.
READ_OFF = 0.1
#: Counters differ in what they count beside products: of what is printed, this share either way.
COUNTERS = 0.005
#: How many samples a validation set has.
COMPLETE = {"imagenet": 50_000, "kinetics400": 19_796}


@dataclass(frozen=True)
class Printed:
    """A count as it is printed, "8.98" GMACs or "1.87" times fewer than dense.

    Attributes:
        text: its digits; how many there are says how it was rounded.
        ratio: whether it is dense GMACs over pruned ones.
        paper: whether the paper prints it; else it was worked out by hand.
    """

    text: str
    ratio: bool = False
    paper: bool = True

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)

    @property
    def tolerance(self) -> float:
        """How far ours may be: half a unit of the last digit, or half a per cent if that is more.

        The half per cent is for norms, activations and the like, which some counters count and
        `papr.measure.count_macs` does not.
        """
        digits = len(self.text.partition(".")[2])
        return max(0.5 * 10.0**-digits, COUNTERS * self.value)


@dataclass(frozen=True)
class HostWeights:
    """A host of a table and where its weights are.

    Attributes:
        name: timm's name with the weights' tag, which also says how pixels are normalised; or the
            name on the hub of one of transformers.
        counted: what is made with random weights to count: timm's or papr's name without a tag.
        licence: of the weights.
        file: the file that the user must have, by its address, where no library loads it by name.
        arguments: further arguments of `timm.create_model`.
        note: what else to know.
    """

    name: str
    counted: str
    licence: str
    file: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One configuration of one host.

    Attributes:
        host: the host's `counted` name.
        keep: fraction of patches that stay; 1 is the dense host, or ToMe alone.
        merge_r: tokens that ToMe merges away in each block, 0 for none; in the second half of the
            blocks where patches are pruned before, else in all.
        top1: published accuracy in per cent; None where none was read off.
        macs: the count of host and proposal together; None where nothing is printed.
    """

    host: str
    keep: float
    merge_r: int = 0
    top1: float | None = None
    macs: Printed | None = None

    @property
    def merge(self) -> Merge | None:
        """ToMe as configured."""
        return Merge(self.merge_r) if self.merge_r else None

    @property
    def name(self) -> str:
        """For people."""
        parts = [] if self.keep == 1 else [f"keep {self.keep:g}"]
        parts += [f"ToMe r={self.merge_r}"] if self.merge_r else []
        return " + ".join(parts) or "dense"


@dataclass(frozen=True)
class Recipe:
    """One table.

    Attributes:
        name: what `papr reproduce` calls it.
        title: in one line.
        proposal: the paper's, by papr's name.
        data: "imagenet" or "kinetics400".
        hosts: all of them.
        rows: all of them, the dense host first of each host.
        counted_at: the proposal's (frames, height, width) in the printed counts, where the
            paper runs it at another.
        notes: what must be known to read the comparison.
    """

    name: str
    title: str
    proposal: str
    data: str
    hosts: tuple[HostWeights, ...]
    rows: tuple[Row, ...]
    counted_at: tuple[int, int, int] | None = None
    notes: tuple[str, ...] = ()

    def host(self, name: str) -> HostWeights:
        """The host with that `counted` name."""
        return next(host for host in self.hosts if host.counted == name)

    def rows_of(self, host: HostWeights) -> list[Row]:
        """Its rows."""
        return [row for row in self.rows if row.host == host.counted]

    def configuration(self, row: Row, proposal: Any = None) -> PruneConfig:
        """How a row is pruned, as the paper's reference does it.

        Args:
            row: one of this table's.
            proposal: who looks instead of the paper's; None for the paper's.
        """
        who = self.proposal if proposal is None else proposal
        return PruneConfig(row.keep, who, reference=True, merge=row.merge)


def _times(text: str, paper: bool = True) -> Printed:
    return Printed(text, ratio=True, paper=paper)


_VIT, _LARGE, _HUGE = "vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"
_AUGREG = HostWeights(
    f"{_VIT}.augreg_in21k_ft_in1k",
    _VIT,
    "Apache-2.0",
    note="the paper says AugReg, 84.2 at 224 px; which of timm's files that is, is our reading",
)


def _mae(counted: str, letter: str) -> HostWeights:
    return HostWeights(
        f"{counted}.mae",
        counted,
        "CC-BY-NC-4.0",
        file=f"https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_{letter}.pth",
        arguments={"global_pool": "avg", "num_classes": 1000},  # timm's ViT-H has no classes
        note="what timm loads by this name is the encoder before fine-tuning, without a classifier",
    )


def _videomae(size: str) -> HostWeights:
    name = f"MCG-NJU/videomae-{size}-finetuned-kinetics"
    return HostWeights(name, f"videomae_{size}", "CC-BY-NC-4.0: not for commercial use")


_COUNTS = "counts made by hand from the layers' shapes; the paper's plots were not read off"
_CONVNEXT, _SWIN = "convnext_base", "swin_base_patch4_window7_224"
_VIDEO, _VIDEO_LARGE = "videomae_base", "videomae_large"

_ALL = (
    Recipe(
        "augreg",
        "AugReg ViT-B/16, one cut before the first block",
        "mobileone_s0",
        "imagenet",
        (_AUGREG,),
        (
            Row(_VIT, 1.0, top1=84.2, macs=Printed("17.58")),
            Row(_VIT, 0.60, top1=83.3, macs=Printed("10.77")),
            Row(_VIT, 0.55, top1=82.8, macs=Printed("9.88")),
            Row(_VIT, 0.50, top1=82.2, macs=Printed("8.98")),
            Row(_VIT, 0.45, top1=81.3, macs=Printed("8.10")),
        ),
    ),
    Recipe(
        "mae",
        "ViT-B, L and H fine-tuned by MAE, at keep 0.5",
        "mobileone_s0",
        "imagenet",
        (_mae(_VIT, "base"), _mae(_LARGE, "large"), _mae(_HUGE, "huge")),
        (
            Row(_VIT, 1.0, top1=83.74),
            Row(_VIT, 0.5, top1=82.40, macs=Printed("8.98")),
            Row(_LARGE, 1.0, top1=85.95),
            Row(_LARGE, 0.5, top1=85.06, macs=Printed("30.83")),
            Row(_HUGE, 1.0, top1=86.89),
            Row(_HUGE, 0.5, top1=86.40, macs=Printed("83.04")),
        ),
        notes=("the class token counts as kept, though MAE's hosts pool the patches",),
    ),
    Recipe(
        "tome",
        "AugReg ViT-B/16: ToMe alone, and after PaPr at keep 0.6",
        "mobileone_s0",
        "imagenet",
        (_AUGREG,),
        (
            Row(_VIT, 1.0, top1=84.2, macs=Printed("17.58")),
            Row(_VIT, 1.0, 8),
            Row(_VIT, 1.0, 13),
            Row(_VIT, 1.0, 16, top1=80.1, macs=Printed("8.79")),
            Row(_VIT, 0.6, top1=83.3, macs=Printed("10.77")),
            Row(_VIT, 0.6, 8, top1=83.2, macs=Printed("9.65")),
            Row(_VIT, 0.6, 12),
            Row(_VIT, 0.6, 16, top1=82.7, macs=Printed("8.53")),
        ),
        notes=(
            "r of the published rows is the one whose count is the printed one (r=7, 9 and 15 are "
            "off by more than the tolerance); rows without published figures fill the sweep",
        ),
    ),
    Recipe(
        "convnext",
        "ConvNeXt-B, all stages, skipped positions zero",
        "mobileone_s0",
        "imagenet",
        (HostWeights("convnext_base.fb_in1k", _CONVNEXT, "Apache-2.0"),),
        (
            Row(_CONVNEXT, 1.0),
            Row(_CONVNEXT, 0.65, macs=_times("1.47", paper=False)),
            Row(_CONVNEXT, 0.50, macs=_times("1.87", paper=False)),
        ),
        notes=(_COUNTS,),
    ),
    Recipe(
        "swin",
        "Swin-B, the MLPs of all stages",
        "mobileone_s0",
        "imagenet",
        (HostWeights(f"{_SWIN}.ms_in1k", _SWIN, "MIT"),),
        (
            Row(_SWIN, 1.0),
            Row(_SWIN, 0.65, macs=_times("1.26", paper=False)),
            Row(_SWIN, 0.50, macs=_times("1.43", paper=False)),
        ),
        notes=(_COUNTS,),
    ),
    Recipe(
        "videomae",
        "VideoMAE-B and L on Kinetics-400, 16 frames of 224 px",
        "x3d_m",
        "kinetics400",
        (_videomae("base"), _videomae("large")),
        (
            Row(_VIDEO, 1.0, top1=81.2, macs=Printed("180")),
            Row(_VIDEO, 0.45, top1=81.18, macs=Printed("76")),
            Row(_VIDEO, 0.35, top1=80.15, macs=Printed("59")),
            Row(_VIDEO_LARGE, 1.0),
            Row(_VIDEO_LARGE, 0.30, macs=_times("3.7")),
        ),
        counted_at=(16, 224, 224),
        notes=(
            "the printed counts fit X3D-M at 16 x 224 x 224, 4.7 GMACs a clip; the reference shows "
            "it 8 x 160 x 160, 1.2 GMACs, and so do we where accuracy is measured",
        ),
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def find_recipe(name: str) -> Recipe:
    """The table of that name. Raises ConfigError where there is none."""
    if name not in RECIPES:
        raise ConfigError(f"expected a table among {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
