"""Where to cut: one file per family, found by the qualified name of the model's class.

Looking a model up imports the file of its family and nothing else, so no host library is imported
unless the model comes from it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from papr.errors import MissingSiteError, UnsupportedModelError
from papr.graft import Grafted, check_graftable
from papr.hosts.refused import reason_for
from papr.hosts.registry import FAMILIES
from papr.hosts.state import HostFacts
from papr.hosts.versions import describe, is_tested, refuse_too_old


class Cut(NamedTuple):
    """A site: dotted path, behaviour, and its stage where the host has stages.

    Of a block that merges or cuts tokens the `Step` stands in place of a stage.

    Sites of a stage that is not pruned are left alone.
    """

    path: str
    behaviour: type[Grafted]
    stage: Any = None


@dataclass(frozen=True)
class Plan:
    """How one host is cut.

    Attributes:
        family: the family's name, for people.
        entry: dotted path of the module the pixels come in at, and its behaviour.
        cuts: the other sites; left alone at keep = 1.
        facts: what else pruning must know of the host.
        features: (host, pixels) and what else its forward takes, to the host's last features:
            tokens (B, P + K, C) or a map (B, C, H, W).
        empties: whether the cells of that map that were not selected are zero.
        feature_prefix: how many of those tokens are no patches.
        kept_attention: the other sites with attention="kept"; None where the host has no such
            mode.
        blocks: dotted paths of the blocks, in order, where tokens may merge or be cut later;
            none where the host cannot.
        block: their behaviour.
    """

    family: str
    entry: tuple[str, type[Grafted]]
    cuts: tuple[Cut, ...]
    facts: HostFacts
    features: Callable[..., Tensor]
    feature_prefix: int = 0
    empties: bool = False
    kept_attention: tuple[Cut, ...] | None = None
    blocks: tuple[str, ...] = ()
    block: type[Grafted] | None = None


def find_plan(model: nn.Module) -> Plan:
    """The plan for a model.

    Raises:
        UnsupportedModelError: no family knows the model, or its family cannot cut it safely; the
            message names the class and the reason.
    """
    for cls in (getattr(c, "_papr_base", c) for c in type(model).__mro__):
        module = FAMILIES.get(qualified_name(cls))
        if module is not None:
            refuse_too_old(_library(cls), type(model).__name__)
            _check_forward(model, cls)
            return _plan(model, module, _library(cls))
    raise UnsupportedModelError(f"cannot prune {_full_name(type(model))}: {_reason(model)}")


def qualified_name(cls: type) -> str:
    """The name a class is registered under: module and class name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _plan(model: nn.Module, module: str, library: str) -> Plan:
    """A family's plan whose sites are all there, or an error that says what was not found.

    Where a site is missing and the library is of a version that the tests do not cover, the error
    says that too: a module that moved is then the likeliest reason.
    """
    make: Callable[[nn.Module], Plan] = importlib.import_module(module).plan
    try:
        plan = make(model)
        for path in (plan.entry[0], *(cut.path for cut in plan.cuts)):
            check_graftable(model, path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"cannot prune {_full_name(type(model))}: {error} where papr looked for a place to cut"
            f"{_version_note(library)}"
        ) from None
    except MissingSiteError as error:
        raise UnsupportedModelError(f"{error}{_version_note(library)}") from None
    return plan


def _version_note(library: str) -> str:
    return "" if is_tested(library) else f" ({describe(library)})"


def _library(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _full_name(cls: type) -> str:
    """A class as errors name it: torchvision's share their names with timm's."""
    return qualified_name(cls) if _library(cls) == "torchvision" else cls.__name__


def _check_forward(model: nn.Module, known: type) -> None:
    """A subclass with a forward of its own may never reach the site: that would be a no-op."""
    for name in ("forward", "forward_features"):
        # a forward on the instance wraps the class's (accelerate does that) and reaches the site
        replaced = name == "forward_features" and name in vars(model)
        own = getattr(type(model), "_papr_base", type(model))  # the root may be grafted itself
        if replaced or getattr(own, name, None) is not getattr(known, name, None):
            raise UnsupportedModelError(
                f"cannot prune {type(model).__name__}: it has its own {name} in place of "
                f"{_full_name(known)}'s, which may never reach the place where tokens are cut"
            )


def _reason(model: nn.Module) -> str:
    for cls in type(model).__mro__:
        reason = reason_for(cls)
        if reason is not None:
            return reason
    inside = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if name and any(qualified_name(cls) in FAMILIES for cls in type(module).__mro__)
    ]
    if inside:
        return f"papr does not know this class; it does know the model inside at {inside[0]}"
    return (
        "papr does not know this class; it knows vision transformers, Swin and ConvNeXt of timm, "
        "torchvision and transformers, by the names in papr.hosts.registry.FAMILIES"
    )
