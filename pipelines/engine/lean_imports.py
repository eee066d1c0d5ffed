"""Importing Lightning without what it never uses: a fifth of the start of a command that trains.

Lightning imports TorchMetrics for the name of one class, and TorchMetrics tries whatever else is installed: transformers for
its metrics of text, matplotlib for its pictures. A command line asks for neither of them there, so that in its process both
count as not installed while TorchMetrics is imported. Afterwards they can be imported like any other package.

Only the command line asks for this; a program that imports this project as a library gets TorchMetrics as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

PACKAGE: Final = "torchmetrics"
NOT_FOR_IT: Final = ("transformers", "matplotlib")
"""What TorchMetrics looks for, and nobody here asks it to use."""


def import_lightning_lean() -> None:
    """Leave optional packages out when TorchMetrics is imported, whoever imports it first; a second call changes nothing."""
    if PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def hidden(names: Sequence[str]) -> Iterator[None]:
    """Let packages that were not imported yet count as not installed."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent, None))  # type: ignore[arg-type]  # None is how Python writes "not to be had"
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


class _Finder(MetaPathFinder):
    """Finds one package, once, and hands it to a loader that hides others meanwhile."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The package's own spec, with its loader wrapped; ``None`` for every other name."""
        if name != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            sys.meta_path.remove(self)
            spec.loader = _Lean(spec.loader)
        return spec


class _Lean(Loader):
    """The loader of a package, with others hidden while its code runs; in all else it is that loader."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the package's code, and leave its own loader behind."""
        with hidden(NOT_FOR_IT):
            self._loader.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
