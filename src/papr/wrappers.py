"""What other libraries put around a module of a host, and on top of it.

Around: PEFT's adapters and its copies to train, torch's checkpoint_wrapper, torch.compile. There
the module itself is a child. On top: a class before its class, or another forward on the instance.
"""

from collections.abc import Iterator

from torch import nn

from papr.errors import UnsupportedModelError

_COMPILED = "_orig_mod"  # what torch.compile stands around
_WRAPPED = ("base_layer", "original_module", "_checkpoint_wrapped_module", _COMPILED)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_COPIES = "modules_to_save"  # PEFT's, one for each adapter, beside original_module


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and the data-parallel wrappers."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected an nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        else:
            return model


def unwrapped(module: nn.Module) -> list[nn.Module]:
    """The host's own module in what may be wrapped around it.

    More than one where PEFT keeps copies of it (`modules_to_save`): which of them runs, it decides
    in each call.
    """
    for name in _WRAPPED:
        inner = module._modules.get(name)
        if inner is None:
            continue
        copies = module._modules.get(_COPIES) if name == "original_module" else None
        found = [inner, *copies._modules.values()] if copies is not None else [inner]
        return [own for part in found if part is not None for own in unwrapped(part)]
    return [module]


def wrapped_spots(root: nn.Module) -> set[tuple[int, str]]:
    """Where wrappers keep what they stand around, and PEFT its copies: ids of holders, names."""
    found = set()
    for module in root.modules():
        children = module._modules
        found |= {(id(module), name) for name in _WRAPPED if name in children}
        copies = children.get(_COPIES) if "original_module" in children else None
        if copies is not None:
            found |= {(id(copies), name) for name in copies._modules}
    return found


def steps(path: str) -> list[str]:
    """The names on a dotted path, without those that wrappers add to it."""
    return [name for name in path.split(".") if name not in _WRAPPED]


def inside(module: nn.Module) -> nn.Module:
    """The host's own module in what may be wrapped around it, the first where there are copies."""
    return unwrapped(module)[0]


def own_modules(module: nn.Module) -> Iterator[nn.Module]:
    """A module and what is below it, in order; of what is wrapped only the host's own."""
    own = inside(module)
    yield own
    for child in own.children():
        yield from own_modules(child)


def on_top(module: nn.Module, own: str) -> str | None:
    """What came on top of a module's class, and how it goes away again.

    Args:
        module: any module.
        own: an attribute that its class itself has, unless another one was put before that.
    """
    cls = type(module)
    if own not in vars(cls):
        if hasattr(module, "parametrizations"):
            return (
                "a parametrization (weight_norm and the like): call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if any(base.__module__.startswith("torch.distributed") for base in cls.__mro__):
            return (
                "torch.distributed's fully_shard or the like, which cannot be undone: "
                "papr.unprune before that, or build the model anew"
            )
        return f"the class {cls.__qualname__} of {cls.__module__}: take that off first"
    if not has_other_forward(module):
        return None
    if hasattr(module, "_hf_hook"):
        return (
            "a hook of accelerate: call accelerate.hooks.remove_hook_from_submodules(model) first"
        )
    return (
        "another forward on the instance (of Accelerator.prepare? then call accelerator."
        "unwrap_model(model, keep_fp32_wrapper=False) first)"
    )


def is_a(module: nn.Module, *names: str) -> bool:
    """Whether a module is of a class of one of these names, whatever was put on top of it."""
    return any(cls.__name__ in names for cls in type(module).__mro__)


def has_other_forward(module: nn.Module) -> bool:
    """Whether a forward on the instance hides the class's.

    The class's own may lie there too: libraries put it back so when they take theirs away.
    """
    forward = vars(module).get("forward")
    if forward is None:
        return False
    own = getattr(forward, "__self__", None) is module
    return not (own and getattr(forward, "__func__", None) is type(module).forward)
