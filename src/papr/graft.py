"""Put behaviour on a module and take it off again.

A graft swaps the module's class for a generated subclass: (behaviour, original class). The
behaviour's `forward` runs in place of the original and reaches it through `super()`. What it needs
to know lies in one plain object on the instance, outside the module tree, so parameters and
state_dict stay as they were.

Why not a forward hook: `torch.compile` does not guard on hooks, so a dense model compiled earlier
in the process would answer for a pruned one. A changed class fails the guards, always.
"""

from typing import Any

from torch import nn

from papr.errors import MissingSiteError, UnsupportedModelError

_STATE = "_papr"
_STAGE = "_papr_stage"


class Grafted:
    """Base of every behaviour: what the generated subclasses have in common.

    `_papr` is the state the graft was given. Sites of one host share one state object, and
    deepcopy and pickle keep it shared.
    """

    _papr: Any
    _papr_stage: Any
    _papr_base: type[nn.Module]
    _papr_behaviour: type["Grafted"]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and deepcopy by parts: the generated class has no importable name."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        return (_rebuild, (self._papr_behaviour, self._papr_base), *reduced[2:])

    def _get_name(self) -> str:
        return f"{self._papr_base.__name__}[papr]"


class Filler(nn.Module):
    """Stands in a slot that a host leaves empty (None), so that a behaviour can be put there."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.registered = registered  # whether the empty slot was in the host's _modules


_subclasses: dict[tuple[type[Grafted], type[nn.Module]], type[nn.Module]] = {}


def _subclass(behaviour: type[Grafted], base: type[nn.Module]) -> type[nn.Module]:
    """The one generated class for a pair: compiled code is guarded by it, so it is made once."""
    if (behaviour, base) not in _subclasses:
        _subclasses[behaviour, base] = _make(behaviour, base)
    return _subclasses[behaviour, base]


def _make(behaviour: type[Grafted], base: type[nn.Module]) -> type[nn.Module]:
    members = {
        # not base.__module__: what claims to be of torch.nn, strict export does not look into
        "__module__": behaviour.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_papr_base": base,
        "_papr_behaviour": behaviour,
    }
    return type(base.__name__, (behaviour, base), members)


def _rebuild(behaviour: type[Grafted], base: type[nn.Module]) -> nn.Module:
    cls = _subclass(behaviour, base)
    return cls.__new__(cls)


def check_graftable(root: nn.Module, path: str) -> None:
    """Raise UnsupportedModelError unless `graft(root, path, ...)` would take effect.

    It is a MissingSiteError where no module is at `path`.
    """
    if not path:
        _check_not_replaced(root, type(root).__name__)
        return
    try:
        parent, name = _locate(root, path)
    except AttributeError:
        raise MissingSiteError(f"{type(root).__name__} has no {path} to cut at") from None
    site = getattr(parent, name)
    if site is not None and not isinstance(site, nn.Module):
        raise MissingSiteError(
            f"expected a module at {type(root).__name__}.{path}, got {type(site).__name__}"
        )
    if site is not None:
        _check_not_replaced(site, path)


def _check_not_replaced(site: nn.Module, path: str) -> None:
    if "forward" in vars(site):
        raise UnsupportedModelError(
            f"{path}.forward was replaced on the instance (by an offloading or tracing library?), "
            "which would hide the pruning: remove that first"
        )


def _locate(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the site, and the site's name in it. Raises AttributeError."""
    above, _, name = path.rpartition(".")
    parent = root.get_submodule(above)
    getattr(parent, name)
    return parent, name


def graft(
    root: nn.Module, path: str, behaviour: type[Grafted], state: object, stage: Any = None
) -> None:
    """Give the module at `path` below `root` a behaviour.

    Args:
        root: the host.
        path: dotted path of a leaf module, or of a slot holding None; "" for the root itself.
        behaviour: subclass of Grafted to put before the module's class.
        state: what the behaviour finds in `self._papr`.
        stage: what it finds in `self._papr_stage`.
    """
    parent, name = _locate(root, path) if path else (root, "")
    module = getattr(parent, name) if path else root
    if module is None:
        module = Filler(registered=name in parent._modules)
        vars(parent).pop(name, None)
        parent.add_module(name, module.train(parent.training))
    module.__class__ = _subclass(behaviour, type(module))
    vars(module).update({_STATE: state, _STAGE: stage})


def ungraft(root: nn.Module) -> None:
    """Take every graft below `root` off; emptied slots hold None again."""
    for parent in list(root.modules()):
        for name, module in list(parent.named_children()):
            _restore(module)
            if isinstance(module, Filler):
                if module.registered:
                    parent._modules[name] = None
                else:
                    del parent._modules[name]
                    vars(parent)[name] = None
    _restore(root)


def _restore(module: nn.Module) -> None:
    if isinstance(module, Grafted):
        module.__class__ = module._papr_base  # type: ignore[assignment]
        del vars(module)[_STATE], vars(module)[_STAGE]


def states(root: nn.Module) -> list[Any]:
    """The distinct state objects of the grafts below `root`, in module order."""
    found = {id(m._papr): m._papr for m in root.modules() if isinstance(m, Grafted)}
    return list(found.values())
