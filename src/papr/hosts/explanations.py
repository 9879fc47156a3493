"""What to say where a site finds no selection, a selection no site, or a host no statistics."""

import warnings

import torch
from torch import nn

from papr.errors import PaprWarning
from papr.hosts.passes import Record, is_recomputing
from papr.proposals import Proposal

TRACED_BY_FX = (
    "expected a pruned model to be run, got it traced by torch.fx (create_feature_extractor does "
    "that), where no pixels are to choose patches by: take papr.features(model, pixels) or forward "
    "hooks for its features, or papr.unprune it before"
)


def is_traced_by_fx() -> bool:
    """Whether torch.fx follows this call with stand-ins for tensors."""
    from torch.fx import _symbolic_trace as tracing

    known = getattr(tracing, "is_fx_symbolic_tracing", None)  # not in older versions
    traced = known() if known else getattr(tracing, "_is_fx_tracing_flag", False)
    return bool(traced) and not torch.compiler.is_compiling()


def missing(path: str) -> str:
    """A site is not where it was."""
    return (
        f"expected the module at {path} as papr.prune left it, got another or none, so nothing "
        "would act on the selection there: papr.prune the model again, or papr.unprune it "
        "before its modules are replaced"
    )


PASSED_BY = (
    "expected the modules that papr.prune cut to act on the selection, got a pass that came by none"
    " of them (a forward on an instance or a wrapper that passes them by, or a pass that broke off "
    "before them): undo that, or papr.unprune the model"
)


def no_selection(record: Record | None) -> str:
    """A site asked in vain."""
    if is_recomputing():
        return (
            "expected a checkpoint around a block, a stage or the whole of a pruned host to run "
            "again on the input it had (use_reentrant=False, no saved-tensor hooks), got another"
        )
    if record is not None:
        return (
            "expected one pass at a time on a pruned host of which parts are compiled on their "
            "own, got several (threads, or a pass before that broke off)"
        )
    return (
        "expected pixels to enter the host before its tokens are cut, got tokens only: "
        "call the whole model, or papr.unprune it first"
    )


def warn_unknown_statistics(model: nn.Module, proposal: Proposal) -> None:
    """Say that the host's normalisation is taken to be the proposal's own."""
    warnings.warn(
        f"the input mean and std of this {type(model).__name__} are unknown; taking them to be "
        f"those of the proposal {proposal.name}, mean {proposal.mean} and std {proposal.std}. "
        f"Pass {_where_statistics_are(model)} to papr.prune if they differ",
        PaprWarning,
        stacklevel=4,
    )


def _where_statistics_are(model: nn.Module) -> str:
    """What a user of the host's library would pass."""
    library = next((c.__module__.partition(".")[0] for c in type(model).__mro__), "")
    return {
        "transformers": "mean=processor.image_mean, std=processor.image_std",
        "torchvision": "mean=weights.transforms().mean, std=weights.transforms().std",
    }.get(library, "mean=..., std=...")
