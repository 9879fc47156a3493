"""Put behaviour on a module and take it off again.

A graft swaps the module's class for a generated subclass: (behaviour, original class). The
behaviour's `forward` runs in place of the original and reaches it through `super()`. What it needs
to know lies in one plain object on the instance, outside the module tree, so parameters and
state_dict stay as they were.

Why not a forward hook: `torch.compile` does not guard on hooks, so a dense model compiled earlier
in the process would answer for a pruned one. A changed class fails the guards, always.

What other libraries put around a module of the host (PEFT's adapters, checkpoints, torch.compile)
is looked through: the graft is on the host's own module. What they put on top of a graft is never
taken off with it. Every change is made whole or not at all.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from papr.errors import MissingSiteError, PrunedModelError, UnsupportedModelError, one_line
from papr.wrappers import has_other_forward, on_top, steps, unwrapped, wrapped_spots

_STATE = "_papr"
_STAGE = "_papr_stage"
_PATH = "_papr_path"


class Grafted:
    """Base of every behaviour: what the generated subclasses have in common.

    `_papr` is the state the graft was given. Sites of one host share one state object, and
    deepcopy and pickle keep it shared. `_papr_path` is where the site was when it was grafted.
    """

    _papr: Any
    _papr_stage: Any
    _papr_path: str
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
    @functools.wraps(base.__init__)
    def make_dense(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Whoever makes another module of a site's class (PEFT does) gets one that is no site."""
        self.__class__ = base
        base.__init__(self, *args, **kwargs)

    members = {
        # not base.__module__: what claims to be of torch.nn, strict export does not look into
        "__module__": behaviour.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__init__": make_dense,
        "_papr_base": base,
        "_papr_behaviour": behaviour,
    }
    return type(base.__name__, (behaviour, base), members)


def _rebuild(behaviour: type[Grafted], base: type[nn.Module]) -> nn.Module:
    cls = _subclass(behaviour, base)
    return cls.__new__(cls)


class Place(NamedTuple):
    """Where a graft comes: a module of the host, or a slot that is empty.

    Attributes:
        parent: what holds it; None above the root.
        name: its name there.
        module: None for an empty slot.
        path: dotted path from the root, of what stands around the module.
        behaviour: what it is given.
        stage: what goes with that.
    """

    parent: nn.Module | None
    name: str
    module: nn.Module | None
    path: str
    behaviour: type[Grafted]
    stage: Any


def _find(root: nn.Module, path: str, behaviour: type[Grafted], stage: Any) -> list[Place]:
    """The places at `path` below `root`. Raises AttributeError where there is none."""
    if not path:
        return [Place(None, "", root, path, behaviour, stage)]
    *above, name = steps(path)
    parents = [root]
    for step in above:
        parents = [own for parent in parents for own in unwrapped(parent.get_submodule(step))]
    found = []
    for parent in parents:
        site = getattr(parent, name)
        modules = unwrapped(site) if isinstance(site, nn.Module) else [site]
        found += [Place(parent, name, module, path, behaviour, stage) for module in modules]
    return found


def check_graftable(root: nn.Module, path: str) -> None:
    """Raise UnsupportedModelError unless `graft(root, path, ...)` would take effect.

    It is a MissingSiteError where no module is at `path`. A module that carries a graft already is
    no hindrance; `Grafting` says whether that may go.
    """
    try:
        places = _find(root, path, Grafted, None)
    except AttributeError:
        raise MissingSiteError(f"{type(root).__name__} has no {path} to cut at") from None
    for place in places:
        site = place.module
        if site is not None and not isinstance(site, nn.Module):
            raise MissingSiteError(
                f"expected a module at {type(root).__name__}.{path}, got {type(site).__name__}"
            )
        if site is not None and not isinstance(site, Grafted) and has_other_forward(site):
            raise UnsupportedModelError(
                f"{path or type(root).__name__}.forward was replaced on the instance (by an "
                "offloading or tracing library?), which would hide the pruning: remove that first"
            )


class Grafting:
    """All grafts of a host, to be put in place of those it has; checked before any is.

    Args:
        root: the host.
        sites: of each its dotted path ("" for the root itself), behaviour and stage.

    Raises:
        UnsupportedModelError: a module is not there, cannot be grafted, or would be two sites at
            once.
        PrunedModelError: grafts that must go first cannot.
    """

    def __init__(self, root: nn.Module, sites: Iterable[tuple[str, type[Grafted], Any]]) -> None:
        self.root = root
        self._places: list[Place] = []
        for path, behaviour, stage in sites:
            check_graftable(root, path)
            self._places += _find(root, path, behaviour, stage)
        _check_shared(root, self._places)
        self._places = _once(root, self._places)
        self._same = self._are_there()
        if self._same:
            return
        check_removable(root)
        for place in self._places:  # makes classes, which a class may refuse
            if place.module is not None:
                _check_subclass(place)

    def _are_there(self) -> bool:
        """Whether the host has just these grafts, so that they need another state only."""
        there = {
            (id(m), m._papr_behaviour, m._papr_path)
            for m in self.root.modules()
            if isinstance(m, Grafted)
        }
        return there == {(id(p.module), p.behaviour, p.path) for p in self._places}

    @property
    def paths(self) -> set[str]:
        """Where the grafts are; of a module that is used in several places, the first."""
        return {place.path for place in self._places}

    def apply(self, state: object, look: Callable[[], object]) -> None:
        """Graft, or leave everything as it was.

        Args:
            state: of the new grafts.
            look: what else is to be done with the grafts in place.
        """
        with _Changes() as changes:
            if not self._same:
                _remove(changes, self.root)
            for place in self._places:
                (_give if self._same else _put)(changes, place, state)
            look()


def _check_shared(root: nn.Module, places: list[Place]) -> None:
    """Refuse a module that the host also uses elsewhere, where nothing is to be cut."""
    spots: dict[int, set[tuple[int, str]]] = {}
    for place in places:
        if place.module is not None:
            spots.setdefault(id(place.module), set()).add((id(place.parent), place.name))
    wrapped = wrapped_spots(root)
    for above, parent in root.named_modules():
        for name, module in parent._modules.items():
            spot = (id(parent), name)
            if spot in spots.get(id(module), {spot}) or spot in wrapped:
                continue
            path = next(place.path for place in places if place.module is module)
            raise UnsupportedModelError(
                f"cannot prune {type(root).__name__}: expected a module of its own at {path}, got "
                f"one that is at {f'{above}.{name}'.strip('.')} too, where nothing is to be cut"
            )


def _once(root: nn.Module, places: list[Place]) -> list[Place]:
    """Each module once: a host may use one in several places, where all ask the same of it."""
    found: dict[int, Place] = {}
    slots = []
    for place in places:
        if place.module is None:
            slots.append(place)
            continue
        other = found.setdefault(id(place.module), place)
        if (other.behaviour, other.stage) != (place.behaviour, place.stage):
            raise UnsupportedModelError(
                f"cannot prune {type(root).__name__}: expected a module of its own at {place.path},"
                f" got the one that is at {other.path} too, which would have to do both's work"
            )
    return [*found.values(), *slots]


def _check_subclass(place: Place) -> None:
    base: Any = getattr(place.module, "_papr_base", type(place.module))
    try:
        _subclass(place.behaviour, base)
    except Exception as error:
        raise UnsupportedModelError(
            f"cannot cut at {place.path}: expected a class to derive another from, got "
            f"{base.__name__} ({one_line(error)})"
        ) from None


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
    with _Changes() as changes:
        for place in _find(root, path, behaviour, stage):
            _put(changes, place, state)


def ungraft(root: nn.Module) -> None:
    """Take every graft below `root` off; emptied slots hold None again.

    Raises:
        PrunedModelError: something stands on top of one; nothing is changed then.
    """
    check_removable(root)
    with _Changes() as changes:
        _remove(changes, root)


class _Changes:
    """What was done to a host's modules, undone in reverse where an error comes in between."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> "_Changes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while kind is not None and self._undo:
            self._undo.pop()()

    def turn(self, module: nn.Module, cls: type[nn.Module]) -> None:
        """Give a module another class."""
        before = module.__class__
        self._undo.append(lambda: setattr(module, "__class__", before))
        module.__class__ = cls

    def replace(self, holder: dict[str, Any], name: str, *value: Any) -> None:
        """Put a value under a name, or take it away."""
        before = holder.copy()

        def undo() -> None:
            holder.clear()
            holder.update(before)  # in the order they had

        self._undo.append(undo)
        holder.pop(name, None) if not value else holder.update({name: value[0]})


def _put(changes: _Changes, place: Place, state: object) -> None:
    module = place.module
    if module is None or isinstance(module, Filler):  # an earlier graft's, which is gone by now
        parent = place.parent
        assert parent is not None
        module = Filler(registered=place.name in parent._modules).train(parent.training)
        changes.replace(vars(parent), place.name)
        changes.replace(parent._modules, place.name, module)
    _turn(changes, module, _subclass(place.behaviour, type(module)))
    _give(changes, place._replace(module=module), state)


def _give(changes: _Changes, place: Place, state: object) -> None:
    for name, value in ((_STATE, state), (_STAGE, place.stage), (_PATH, place.path)):
        changes.replace(vars(place.module), name, value)


def check_removable(root: nn.Module) -> None:
    """Raise PrunedModelError where something stands on top of a graft below `root`."""
    for path, module in root.named_modules():
        above = on_top(module, "_papr_base") if is_site(module) else None
        if above:
            raise PrunedModelError(
                f"cannot take the pruning off {path or 'the model'} ({type(module).__name__}): "
                f"expected nothing on top of it, got {above}"
            )


def _remove(changes: _Changes, root: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, module in list(parent._modules.items()):
            if isinstance(module, Filler) and is_site(module):
                changes.replace(parent._modules, name, *([None] if module.registered else []))
                if not module.registered:
                    changes.replace(vars(parent), name, None)
        if is_site(parent) and not isinstance(parent, Filler):
            _restore(changes, parent)


def _restore(changes: _Changes, module: nn.Module) -> None:
    for name in (_STATE, _STAGE, _PATH):
        changes.replace(vars(module), name)
    base: Any = module._papr_base
    _turn(changes, module, base)


def _turn(changes: _Changes, module: nn.Module, cls: type[nn.Module]) -> None:
    if "forward" in vars(module):  # the class's own, which a library put on the instance
        changes.replace(vars(module), "forward")
    changes.turn(module, cls)


def is_site(module: nn.Module) -> bool:
    """Whether a module carries a graft."""
    return isinstance(module, Grafted)


def states(root: nn.Module) -> list[Any]:
    """The distinct state objects of the grafts below `root`, in module order."""
    found = {id(m._papr): m._papr for m in root.modules() if isinstance(m, Grafted)}
    return list(found.values())
