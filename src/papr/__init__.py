"""papr: make pretrained vision models faster by looking only where it matters.

    import timm, papr

    model = timm.create_model("vit_base_patch16_224", pretrained=True).eval()
    papr.prune(model, keep=0.5)      # in place; about half the work per image
    logits = model(images)           # the same call as before
    papr.unprune(model)              # the model you had

Method: Mahmud et al., "PaPr: Training-Free One-Step Patch Pruning with Lightweight ConvNets for
Faster Inference", ECCV 2024, arXiv 2403.16020.
"""

from papr import baselines as baselines
from papr import measure as measure
from papr import video as video
from papr.budgets import calibrate
from papr.config import PruneConfig
from papr.errors import (
    ConfigError,
    ExportError,
    PaprError,
    PaprWarning,
    ProposalError,
    PrunedModelError,
    SelectionError,
    UnsupportedModelError,
)
from papr.exporting import Exported, export
from papr.feature_maps import Features, features
from papr.later import Merge, Recut
from papr.proposals import Proposal
from papr.pruning import Support, is_pruned, prune, selection, supported, unprune
from papr.reducers.drop import apply_papr
from papr.selecting import BudgetedSelection, Selection, select
from papr.significance import significance_map

__version__ = "0.1.0"

__all__ = [
    "BudgetedSelection",
    "ConfigError",
    "Features",
    "ExportError",
    "Exported",
    "Merge",
    "PaprError",
    "PaprWarning",
    "Proposal",
    "ProposalError",
    "PruneConfig",
    "PrunedModelError",
    "Recut",
    "Selection",
    "SelectionError",
    "Support",
    "UnsupportedModelError",
    "apply_papr",
    "calibrate",
    "features",
    "export",
    "is_pruned",
    "prune",
    "select",
    "selection",
    "significance_map",
    "supported",
    "unprune",
]
