"""Imports of transformers that leave out the compiler of torch.

transformers 5.17 to 5.24 import `torch._dynamo` for three decorators, which do nothing unless
`torch.compile` runs, and for one class that a function of theirs uses. It brings 900 modules, among
them sympy, `torch._inductor` and `torch.distributed.tensor`: a third of the import time, and 80 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_COMPILER = "torch._dynamo"
_WRAPPED = f"{_COMPILER}._trace_wrapped_higher_order_op"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let the imports of the body find a stand-in for `torch._dynamo`, and remove it afterwards.

    The stand-in holds what transformers takes from it while it is imported. If the body asks for
    anything else, as another version or library may, it gets the real module.
    """
    if _COMPILER in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.remove()


class _StandIn(ModuleType):
    """A module that imports the real one if it lacks a name."""

    def __getattr__(self, name: str) -> object:
        # Python itself, `inspect` for one, asks each module for `__file__`.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finds the stand-in, and the real submodules of the module for which it stands."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _COMPILER:
            return ModuleSpec(fullname, self, is_package=True)
        if fullname.startswith(f"{_COMPILER}."):
            return ModuleSpec(fullname, _Imported(_real(fullname)))
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        wrapped = sys.modules[_WRAPPED] = _StandIn(_WRAPPED)
        for stand_in in (module, wrapped):
            vars(stand_in).update(_NAMES[stand_in.__name__])

    def remove(self) -> None:
        """Remove the finder and its modules, as if nothing had imported them."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in _NAMES:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
        attributes = vars(sys.modules["torch"]) if "torch" in sys.modules else {}
        if isinstance(attributes.get("_dynamo"), _StandIn):
            del attributes["_dynamo"]


class _Imported(Loader):
    """Gives a module that was imported already, while the import system looks for it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _real(name: str) -> ModuleType:
    """Import the real module *name*, in place of the stand-ins."""
    for finder in list(sys.meta_path):
        if isinstance(finder, _Finder):
            finder.remove()
    return import_module(name)


def _unchanged(function: object = None, *_: object, **__: object) -> object:
    """Decorate a function, with or without arguments: it stays as it is."""
    return _unchanged if function is None else function


def _transform_get_item_to_index() -> object:
    return _real(_WRAPPED).TransformGetItemToIndex()


_NAMES: dict[str, dict[str, object]] = {
    _COMPILER: dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unchanged),
    _WRAPPED: {"TransformGetItemToIndex": _transform_get_item_to_index},
}
