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
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT_PACKAGES: Final = ("recsys", "features", "serving", "pipelines")


def code_version(function: Callable[..., Any], root: Path = PROJECT_ROOT) -> str:
    """Return the hash (16 hex digits) of a function and of all project modules it reaches by import.

    Args:
        function: A function whose imports stand in its own body.
        root: Folder that holds the project's packages.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    modules = _closure(_imported(tree, package="", root=root), root)
    parts = [normalised(tree)] + [f"{name} {_module_hash(_file_of(name, root))}" for name in sorted(modules)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def modules_behind(function: Callable[..., Any], root: Path = PROJECT_ROOT) -> list[str]:
    """Return the project modules whose source is part of ``function``'s code version, sorted."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return sorted(_closure(_imported(tree, package="", root=root), root))


def normalised(tree: ast.Module) -> str:
    """Return the syntax tree as text, without docstrings.

    Example:
        >>> normalised(ast.parse("x = 1  # one")) == normalised(ast.parse("x=1"))
        True
    """
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree, annotate_fields=False)


def _closure(start: set[str], root: Path) -> set[str]:
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting.extend(_imports_of_file(_file_of(name, root), name, root) - found)
    return found


@lru_cache(maxsize=1024)
def _parsed(path: Path) -> ast.Module:
    """The tree of a file; its docstrings may be gone already, which no import is."""
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def _imports_of_file(path: Path, name: str, root: Path) -> frozenset[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return frozenset(_imported(_parsed(path), package, root))


@lru_cache(maxsize=1024)
def _module_hash(path: Path) -> str:
    return hashlib.sha256(normalised(_parsed(path)).encode()).hexdigest()


def _imported(tree: ast.Module, package: str, root: Path) -> set[str]:
    """Project modules named by the import statements of ``tree``, with their parent packages."""
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # "from . import x" is relative to the package, "from .. import x" to its parent, and so on
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)  # an imported name may be a module
    modules: set[str] = set()
    for name in names:
        parts = name.split(".")
        if parts[0] in PROJECT_PACKAGES:
            prefixes = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
            modules.update(prefix for prefix in prefixes if _is_module(prefix, root))
    return modules


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and every statement in it; imports and docstrings stand nowhere else, and expressions are many."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                waiting += block


def _is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _file_of(name: str, root: Path) -> Path:
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if (path / "__init__.py").is_file() else path.with_suffix(".py")
