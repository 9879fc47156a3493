"""papr: make pretrained vision models faster by looking only where it matters.

    import timm, papr

    model = timm.create_model("vit_base_patch16_224", pretrained=True).eval()
    papr.prune(model, keep=0.5)      # in place; about half the work per image
    logits = model(images)           # the same call as before
    papr.unprune(model)              # the model you had

Method: Mahmud et al., "PaPr: Training-Free One-Step Patch Pruning with Lightweight ConvNets for
Faster Inference", ECCV 2024, arXiv 2403.16020.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Where each of them is; imported when it is first asked for, so that `papr --help` needs no torch.
_WHERE = {
    "budgets": ("calibrate",),
    "config": ("PruneConfig",),
    "errors": (
        "ConfigError",
        "ExportError",
        "PaprError",
        "PaprWarning",
        "ProposalError",
        "PrunedModelError",
        "SelectionError",
        "UnsupportedModelError",
    ),
    "exporting": ("Exported", "export"),
    "feature_maps": ("Features", "features"),
    "later": ("Merge", "Recut"),
    "proposals": ("Proposal",),
    "pruning": ("Support", "is_pruned", "prune", "selection", "supported", "unprune"),
    "reducers.drop": ("apply_papr",),
    "selecting": ("BudgetedSelection", "Selection", "select"),
    "significance": ("significance_map",),
}

if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name):  # PEP 562
        """A public name, or a room such as `papr.video`, imported when it is first asked for."""
        for module, names in _WHERE.items():
            if name in names:
                found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                break
        else:
            room = f"{__name__}.{name}"
            if name.startswith("_") or importlib.util.find_spec(room) is None:
                raise AttributeError(
                    f"module {__name__!r} has no attribute {name!r}",
                    name=name,
                    obj=sys.modules[__name__],
                )
            found = importlib.import_module(room)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__, "baselines", "measure", "video"})
