"""What to say where a site finds no selection, or a selection no site."""

import torch

from papr.hosts.passes import Record, is_recomputing

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
