"""Where to cut: one file per family, found by the qualified name of the model's class.

Looking a model up imports the file of its family and nothing else, so no host library is imported
unless the model comes from it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from papr.errors import UnsupportedModelError
from papr.graft import Grafted
from papr.hosts.refused import REFUSED
from papr.hosts.state import HostFacts


class Cut(NamedTuple):
    """A site: dotted path, behaviour, and its stage where the host has stages.

    Sites of a stage that is not pruned are left alone.
    """

    path: str
    behaviour: type[Grafted]
    stage: int | None = None


@dataclass(frozen=True)
class Plan:
    """How one host is cut.

    Attributes:
        family: the family's name, for people.
        entry: dotted path of the module the pixels come in at, and its behaviour.
        cuts: the other sites; left alone at keep = 1.
        facts: what else pruning must know of the host.
        kept_attention: the other sites with attention="kept"; None where the host has no such
            mode.
    """

    family: str
    entry: tuple[str, type[Grafted]]
    cuts: tuple[Cut, ...]
    facts: HostFacts
    kept_attention: tuple[Cut, ...] | None = None


#: Qualified class name -> the module whose `plan(model)` knows how to cut it.
FAMILIES = {
    "timm.models.vision_transformer.VisionTransformer": "papr.hosts.timm_vit",
    "timm.models.deit.VisionTransformerDistilled": "papr.hosts.timm_vit",
    "timm.models.eva.Eva": "papr.hosts.timm_eva",
    "timm.models.cait.Cait": "papr.hosts.timm_cait",
    "timm.models.beit.Beit": "papr.hosts.timm_beit",
    "timm.models.swin_transformer.SwinTransformer": "papr.hosts.timm_swin",
    "timm.models.swin_transformer_v2.SwinTransformerV2": "papr.hosts.timm_swin",
    "timm.models.convnext.ConvNeXt": "papr.hosts.timm_convnext",
}


def find_plan(model: nn.Module) -> Plan:
    """The plan for a model.

    Raises:
        UnsupportedModelError: no family knows the model, or its family cannot cut it safely; the
            message names the class and the reason.
    """
    for cls in (getattr(c, "_papr_base", c) for c in type(model).__mro__):
        module = FAMILIES.get(qualified_name(cls))
        if module is not None:
            _check_forward(model, cls)
            plan: Callable[[nn.Module], Plan] = importlib.import_module(module).plan
            return plan(model)
    raise UnsupportedModelError(f"cannot prune {type(model).__name__}: {_reason(model)}")


def qualified_name(cls: type) -> str:
    """The name a class is registered under: module and class name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_forward(model: nn.Module, known: type) -> None:
    """A subclass with a forward of its own may never reach the site: that would be a no-op."""
    for name in ("forward", "forward_features"):
        # a forward on the instance wraps the class's (accelerate does that) and reaches the site
        replaced = name == "forward_features" and name in vars(model)
        if replaced or getattr(type(model), name) is not getattr(known, name):
            raise UnsupportedModelError(
                f"cannot prune {type(model).__name__}: it has its own {name} in place of "
                f"{known.__name__}'s, which may never reach the place where tokens are cut"
            )


def _reason(model: nn.Module) -> str:
    for cls in type(model).__mro__:
        if cls.__name__ in REFUSED and cls.__module__.startswith(("timm.", "transformers.")):
            return REFUSED[cls.__name__]
    inside = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if name and any(qualified_name(cls) in FAMILIES for cls in type(module).__mro__)
    ]
    if inside:
        return f"papr does not know this class; it does know the model inside at {inside[0]}"
    known = ", ".join(name.rpartition(".")[2] for name in FAMILIES)
    return f"papr does not know this class; it knows {known} of timm"
