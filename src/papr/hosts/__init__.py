"""Where to cut: one file per family, found by the qualified name of the model's class.

Looking a model up imports the file of its family and nothing else, so no host library is imported
unless the model comes from it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from papr.errors import UnsupportedModelError
from papr.graft import Grafted, check_graftable
from papr.hosts.refused import reason_for
from papr.hosts.state import HostFacts
from papr.hosts.versions import describe, is_tested, refuse_too_old


@dataclass(frozen=True)
class Plan:
    """How one host is cut.

    Attributes:
        family: the family's name, for people.
        entry: dotted path of the module the pixels come in at, and its behaviour.
        cuts: the other sites; left alone at keep = 1.
        facts: what else pruning must know of the host.
    """

    family: str
    entry: tuple[str, type[Grafted]]
    cuts: tuple[tuple[str, type[Grafted]], ...]
    facts: HostFacts


#: Qualified class name -> the module whose `plan(model)` knows how to cut it.
FAMILIES = {
    "timm.models.vision_transformer.VisionTransformer": "papr.hosts.timm_vit",
    "timm.models.deit.VisionTransformerDistilled": "papr.hosts.timm_vit",
    "timm.models.eva.Eva": "papr.hosts.timm_eva",
    "timm.models.cait.Cait": "papr.hosts.timm_cait",
    "timm.models.beit.Beit": "papr.hosts.timm_beit",
    "transformers.models.vit.modeling_vit.ViTModel": "papr.hosts.hf_vit",
    "transformers.models.vit.modeling_vit.ViTForImageClassification": "papr.hosts.hf_task",
    "transformers.models.deit.modeling_deit.DeiTModel": "papr.hosts.hf_vit",
    "transformers.models.deit.modeling_deit.DeiTForImageClassification": "papr.hosts.hf_task",
    "transformers.models.deit.modeling_deit.DeiTForImageClassificationWithTeacher": "papr.hosts.hf_task",
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNModel": "papr.hosts.hf_vit",
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNForImageClassification": "papr.hosts.hf_task",
    "transformers.models.ijepa.modeling_ijepa.IJepaModel": "papr.hosts.hf_vit",
    "transformers.models.ijepa.modeling_ijepa.IJepaForImageClassification": "papr.hosts.hf_task",
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": "papr.hosts.hf_vit",
    "transformers.models.dinov2.modeling_dinov2.Dinov2ForImageClassification": "papr.hosts.hf_task",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel": "papr.hosts.hf_vit",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersForImageClassification": "papr.hosts.hf_task",
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": "papr.hosts.hf_dinov3",
    "transformers.models.clip.modeling_clip.CLIPVisionModel": "papr.hosts.hf_vit",
    "transformers.models.clip.modeling_clip.CLIPVisionTransformer": "papr.hosts.hf_vit",
    "transformers.models.clip.modeling_clip.CLIPVisionModelWithProjection": "papr.hosts.hf_task",
    "transformers.models.clip.modeling_clip.CLIPForImageClassification": "papr.hosts.hf_task",
    "transformers.models.clip.modeling_clip.CLIPModel": "papr.hosts.hf_task",
    "transformers.models.siglip.modeling_siglip.SiglipVisionModel": "papr.hosts.hf_vit",
    "transformers.models.siglip.modeling_siglip.SiglipVisionTransformer": "papr.hosts.hf_vit",
    "transformers.models.siglip.modeling_siglip.SiglipForImageClassification": "papr.hosts.hf_task",
    "transformers.models.siglip.modeling_siglip.SiglipModel": "papr.hosts.hf_task",
    "transformers.models.beit.modeling_beit.BeitModel": "papr.hosts.hf_beit",
    "transformers.models.beit.modeling_beit.BeitForImageClassification": "papr.hosts.hf_task",
    "transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperModel": "papr.hosts.hf_task",
    "transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperForImageClassification": "papr.hosts.hf_task",
    "torchvision.models.vision_transformer.VisionTransformer": "papr.hosts.torchvision_vit",
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
            refuse_too_old(_library(cls), type(model).__name__)
            _check_forward(model, cls)
            return _plan(model, module, _library(cls))
    raise UnsupportedModelError(f"cannot prune {_full_name(type(model))}: {_reason(model)}")


def qualified_name(cls: type) -> str:
    """The name a class is registered under: module and class name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _plan(model: nn.Module, module: str, library: str) -> Plan:
    """A family's plan whose sites are all there, or an error that says what was not found.

    Where the library is of a version the tests do not cover, the error says that too: a module that
    moved is then the likeliest reason.
    """
    make: Callable[[nn.Module], Plan] = importlib.import_module(module).plan
    try:
        plan = make(model)
        for path, _ in (plan.entry, *plan.cuts):
            check_graftable(model, path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"cannot prune {_full_name(type(model))}: {error} where papr looked for a place to cut "
            f"({describe(library)})"
        ) from None
    except UnsupportedModelError as error:
        if is_tested(library) or describe(library) in str(error):
            raise
        raise UnsupportedModelError(f"{error} ({describe(library)})") from None
    return plan


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
        if replaced or getattr(type(model), name, None) is not getattr(known, name, None):
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
    return f"papr does not know this class; it knows {_known('timm')}, {_known('torchvision')} and, " \
        f"with their classifiers, {_known('transformers')}"


def _known(library: str) -> str:
    """The names of a library's classes; of transformers' those that classifiers are made of."""
    names = [name.rpartition(".")[2] for name in FAMILIES if name.startswith(library)]
    if library == "transformers":
        names = [name for name in names if name.endswith("Model")]
    return f"{', '.join(names)} of {library}"
