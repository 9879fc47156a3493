"""transformers' models that hold a vision tower: classifiers, two-tower models, timm wrappers."""

from dataclasses import replace

from torch import nn

from papr.errors import MissingSiteError
from papr.hosts import Plan
from papr.hosts.hf_common import plan_inside
from papr.hosts.timm_common import input_statistics


def plan(model: nn.Module) -> Plan:
    """Cut the vision tower inside: at the name that transformers gives it, or `vision_model`."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    path = next((name for name in (prefix, "vision_model") if name in model._modules), None)
    if path is None:
        raise MissingSiteError(
            f"cannot prune {type(model).__name__}: expected its vision tower at {prefix} or "
            f"vision_model, got {', '.join(model._modules)}"
        )
    found = plan_inside(model, path)
    mean, std = input_statistics(getattr(model, "config", None))  # a timm wrapper knows them
    return found if mean is None else replace(found, facts=replace(found.facts, mean=mean, std=std))
