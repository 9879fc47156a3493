"""Whether the modules that a host is cut at are still there.

A user replaces every Dropout, or folds an adapter: the module that carried a cut is gone, and
nobody would take the selection that the entry made. So every pass looks before it selects; while
a graph is made, once.
"""

import itertools
import weakref
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from papr.graft import Grafted
from papr.wrappers import inside

_Ref = weakref.ref[Any]
#: By parent its children to look for: their names, themselves, and whether they are sites.
_Edges = tuple[tuple[_Ref, tuple[tuple[str, _Ref, bool], ...]], ...]
_Steps = dict[int, tuple[nn.Module, str, nn.Module]]  # id of a module -> parent, name, module


class Presence:
    """The sites of one host that no pass may miss.

    It holds nothing alive: the modules hold the state that holds this.

    Args:
        root: the host.
        entry: dotted path where pixels come in.
        paths: dotted paths of the sites; each carries its own.
        may_end: those of them in stages and blocks that may be taken off the host's end.
    """

    def __init__(
        self,
        root: nn.Module | None = None,
        entry: str = "",
        paths: Collection[str] = (),
        may_end: Collection[str] = (),
    ) -> None:
        self._entry, self._paths, self._may_end = entry, frozenset(paths), frozenset(may_end)
        self._top = ""  # where the root was below the host that was pruned
        self._forget(root)

    def _forget(self, root: nn.Module | None = None) -> None:
        self._root: _Ref | None = None if root is None else weakref.ref(root)
        self._known: dict[str, list[_Ref]] = {}  # every copy of each site
        self._edges: _Edges = ()

    def join(self, site: Grafted) -> None:
        """Here is a site, or a copy of one."""
        others = [ref for ref in self._known.get(site._papr_path, ()) if ref() not in (None, site)]
        self._known[site._papr_path] = [*others, weakref.ref(site)]

    def missing(self) -> str | None:
        """The path of a site that no pass would come by; None where all are there."""
        if self._edges and self._unchanged():
            return None
        self._edges = ()
        root = None if self._root is None else self._root()
        steps = {} if root is None else _steps(root)
        found = list(self._sites(steps))
        for site in found:
            self.join(site)
        there = {site._papr_path for site in found}
        if root is None or self._entry not in there:
            # a part of the host lives on elsewhere, and the root has no say in it
            known = self._known.items()
            there = {path for path, refs in known if any(self._carries(ref()) for ref in refs)}
        gone = sorted(p for p in self._paths - there if root is None or not self._ended(root, p))
        if not gone and root is not None:
            self._edges = _edges(found, steps)
        return gone[0] if gone else None

    def _unchanged(self) -> bool:
        """Whether the modules between root and sites are those of the last thorough look."""
        for parent, children in self._edges:
            module = parent()
            if module is None:
                return False
            modules = module._modules
            for name, ref, is_site in children:
                child = ref()
                if modules.get(name) is not child or (is_site and not self._carries(child)):
                    return False
        return True

    def _sites(self, steps: _Steps) -> Iterator[Any]:
        for _, _, module in steps.values():
            if self._carries(module):
                yield module

    def _carries(self, module: nn.Module | None) -> bool:
        """Whether a module is a site of this host."""
        if not isinstance(module, Grafted):
            return False
        return getattr(module._papr, "presence", None) is self

    def _ended(self, root: nn.Module, path: str) -> bool:
        """Whether the site went with the end of a list of stages or blocks, where nothing runs."""
        if path not in self._may_end:
            return False
        module: nn.Module | None = root
        for name in path.removeprefix(self._top).strip(".").split("."):
            if module is None:
                return False
            module = inside(module)
            if name not in module._modules:
                return isinstance(module, nn.Sequential | nn.ModuleList)
            module = module._modules[name]
        return False

    def copied(self, memo: dict[int, Any]) -> "Presence | None":
        """That of a copy that `copy.deepcopy` is making; None where only a part is copied.

        A part (PEFT copies modules to train them beside the old ones) belongs to the same host.
        """
        root = None if self._root is None else self._root()
        copy = Presence()
        vars(copy).update(self.__getstate__())
        if root is None:
            return copy
        for top in self._tops():
            module = _at(root, top.removeprefix(self._top).strip("."))
            if module is not None and id(module) in memo:
                copy._root, copy._top = weakref.ref(memo[id(module)]), top
                return copy
        return None

    def copied_before(self, memo: dict[int, Any]) -> Iterator[Grafted]:
        """The sites below the root whose copies `copy.deepcopy` has made already: those copies."""
        root = None if self._root is None else self._root()
        for module in () if root is None else root.modules():
            twin = memo.get(id(module)) if isinstance(module, Grafted) else None
            if isinstance(twin, Grafted) and hasattr(twin, "_papr"):
                yield twin

    def _tops(self) -> list[str]:
        """Where the modules are that hold every site, the host first."""
        shared = [path.split(".")[:-1] for path in self._paths]
        common = [names[0] for names in itertools.takewhile(_alike, zip(*shared, strict=False))]
        tops = [".".join(common[:count]) for count in range(len(common) + 1)]
        return [top for top in tops if len(top) >= len(self._top)]

    def __getstate__(self) -> dict[str, Any]:
        names = ("_entry", "_paths", "_may_end", "_top")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


def _steps(root: nn.Module) -> _Steps:
    """Every module below the root, and how it is reached."""
    steps: _Steps = {}
    todo = [root]
    while todo:
        parent = todo.pop()
        for name, module in parent._modules.items():
            if module is not None and id(module) not in steps:
                steps[id(module)] = (parent, name, module)
                todo.append(module)
    return steps


def _edges(sites: list[Any], steps: _Steps) -> _Edges:
    """By parent the children to look for on the ways from the root to the sites."""
    ways: dict[int, tuple[nn.Module, dict[str, nn.Module]]] = {}
    for site in sites:
        module = site
        while id(module) in steps:
            parent, name, _ = steps[id(module)]
            children = ways.setdefault(id(parent), (parent, {}))[1]
            if name in children:
                break  # from here on the way is known
            children[name] = module
            module = parent
    known = {id(site) for site in sites}
    return tuple(
        (
            weakref.ref(parent),
            tuple((name, weakref.ref(m), id(m) in known) for name, m in children.items()),
        )
        for parent, children in ways.values()
    )


def _alike(names: tuple[str, ...]) -> bool:
    return len(set(names)) == 1


def _at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
