"""What hangs on modules that a graft takes apart, calling their parts rather than them.

A hook there would not run, a replaced forward or a wrapper would not be called: the answer would
look right without it. So that is refused, when a host is pruned and again in each pass, since hooks
and adapters come later too. Modules that are called as modules need no such care.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

#: Modules taken apart, each by its path in the block and the qualified name of the class it had; ""
#: for any class of the block's own library and of torch.nn.
Bypassed = tuple[tuple[str, str], ...]

#: Whose hooks only collect what a caller asked for, on every host of transformers.
_COLLECTING = "transformers.utils.output_capturing"


def named(block: nn.Module, paths: Iterable[str]) -> Bypassed:
    """What `hanging` is to compare with, while the modules at these paths are as they should be."""
    return tuple((path, _class_of(block.get_submodule(path))) for path in paths)


def hanging(block: nn.Module, bypassed: Bypassed) -> str | None:
    """What would be passed by in a block, in a few words; None where nothing would."""
    for path, expected in bypassed:
        try:
            module = block.get_submodule(path)
        except AttributeError:  # not in every version of the library
            continue
        if _users(module._forward_hooks) or _users(module._forward_pre_hooks):
            return f"a forward hook on its {path}"
        if _users(module._backward_hooks) or _users(module._backward_pre_hooks):
            return f"a backward hook on its {path}"
        if "forward" in module.__dict__:
            return f"a replaced forward on its {path}"
        if _class_of(module) != expected and (expected or not _is_library(module, block)):
            return f"a {_class_of(module)} in place of its {path}"
    return None


def refusal(where: str, thing: str, options: str) -> str:
    """The message of an error.

    Args:
        where: the block, and of what.
        thing: what `hanging` found there.
        options: without which of papr's options it would not be passed by.
    """
    return (
        f"expected no hook or wrapper on what papr takes apart in {where}, got {thing}, which "
        "would be passed by: put it on the whole block or on parts that are called as modules, or "
        f"papr.prune without {options}"
    )


def _users(hooks: Mapping[int, Callable[..., Any]]) -> bool:
    """Whether one of these would be missed."""
    return any(getattr(h, "__module__", None) != _COLLECTING for h in hooks.values())


def _is_library(module: nn.Module, block: nn.Module) -> bool:
    name = type(module).__module__
    return name.startswith("torch.nn.") or name.partition(".")[0] == _library(block)


def _library(block: nn.Module) -> str:
    cls: type = getattr(type(block), "_papr_base", type(block))
    return cls.__module__.partition(".")[0]


def _class_of(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"
