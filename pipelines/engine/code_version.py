"""The code version of a stage, read from the source itself: no constant that somebody forgets to bump.

Reads the stage function and, as text, every module of this project that it imports, directly or through others.
Produces one hash. Comments, docstrings and formatting do not count: explaining a line better must not retrain a model.
Third-party versions do not count either; they are pinned in ``requirements/``.

The rule for stage functions follows from this: import what you need *inside* the function. Modules that are loaded by a
name built at run time are not seen.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import textwrap
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pipelines.engine.source_facts import FactsCache, Import, SourceFacts, cache_path, imports_of, normalised

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT_PACKAGES: Final = ("recsys", "features", "serving", "pipelines")


def code_version(function: Callable[..., Any], root: Path = PROJECT_ROOT) -> str:
    """Return the hash (16 hex digits) of a function and of all project modules it reaches by import.

    Args:
        function: A function whose imports stand in its own body.
        root: Folder that holds the project's packages.
    """
    tree = _tree_of(function)
    project = _Project.at(root)
    parts = [f"{name} {project.facts(name).digest}" for name in project.behind(imports_of(tree))]
    _cache().save()
    return hashlib.sha256("\n".join([normalised(tree), *parts]).encode()).hexdigest()[:16]


def modules_behind(function: Callable[..., Any], root: Path = PROJECT_ROOT) -> list[str]:
    """Return the project modules whose source is part of ``function``'s code version, sorted."""
    return _Project.at(root).behind(imports_of(_tree_of(function)))


def keep_facts(root: Path = PROJECT_ROOT) -> int:
    """Parse every module of the project once and keep what was found, so that no command has to; return their number.

    Nothing is kept where byte code is not (:mod:`pipelines.engine.source_facts`).
    """
    project = _Project.at(root)
    for name in project.names:
        project.facts(name)
    _cache().save()
    return len(project.names)


def _tree_of(function: Callable[..., Any]) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@lru_cache(maxsize=1)
def _cache() -> FactsCache:
    return FactsCache(cache_path())


class _Project:
    """The modules of the project in one folder, as they are when they are first asked for.

    A process works with the code that it has loaded, so a file is read once, whatever becomes of it meanwhile.
    """

    def __init__(self, root: Path) -> None:
        self._files = dict(_modules(root))
        self._facts: dict[str, SourceFacts] = {}
        self._imports: dict[str, set[str]] = {}

    @property
    def names(self) -> list[str]:
        """All modules and packages, sorted."""
        return sorted(self._files)

    @classmethod
    @lru_cache(maxsize=64)
    def at(cls, root: Path) -> _Project:
        """The project in this folder."""
        return cls(root)

    def facts(self, name: str) -> SourceFacts:
        """What the file of a module says."""
        if name not in self._facts:
            self._facts[name] = _cache().facts(Path(self._files[name]).read_bytes())
        return self._facts[name]

    def behind(self, imports: Iterable[Import]) -> list[str]:
        """Return the modules that these imports reach, directly or through others, sorted."""
        found: set[str] = set()
        waiting = list(self._named(imports, package=""))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self._imports_of(name) - found)
        return sorted(found)

    def _imports_of(self, name: str) -> set[str]:
        if name not in self._imports:
            is_package = self._files[name].endswith("__init__.py")
            package = name if is_package else name.rpartition(".")[0]
            self._imports[name] = self._named(self.facts(name).imports, package)
        return self._imports[name]

    def _named(self, imports: Iterable[Import], package: str) -> set[str]:
        """The modules named by the imports of a module of ``package``, with their parent packages."""
        names: set[str] = set()
        for level, base, imported in imports:
            if level:  # "from . import x" is relative to the package, "from .. import x" to its parent, and so on
                parents = package.split(".")[: len(package.split(".")) - level + 1]
                base = ".".join([*parents, base] if base else parents)
            names.add(base)
            names.update(f"{base}.{name}" for name in imported)  # an imported name may be a module
        modules: set[str] = set()
        for name in names:
            while name and name not in modules:
                if name in self._files:
                    modules.add(name)
                name = name.rpartition(".")[0]
        return modules


def _modules(root: Path) -> Iterable[tuple[str, str]]:
    """Yield the name and the file of every module and package of the project."""
    waiting = [(name, root / name) for name in PROJECT_PACKAGES]
    while waiting:
        package, folder = waiting.pop()
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if entry.name == "__init__.py":
                yield package, entry.path
            elif entry.name.endswith(".py"):
                yield f"{package}.{entry.name[:-3]}", entry.path
            elif entry.is_dir() and entry.name.isidentifier() and entry.name != "__pycache__":
                waiting.append((f"{package}.{entry.name}", Path(entry.path)))
