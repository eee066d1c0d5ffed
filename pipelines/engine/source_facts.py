"""What a file of source code means for the code version: a hash of its statements, and what it imports.

Reads the bytes of Python files; produces :class:`SourceFacts`. Parsing three hundred files takes the better part of a
second, so what was found is kept beside Python's own byte code, in ``__pycache__``, under the hash of the file's bytes: an
edit, whatever its time stamp, is another entry. As with byte code, nothing is written where that is not allowed (a folder
that cannot be written, ``PYTHONDONTWRITEBYTECODE``); then every command parses anew, and finds the same.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, Final, Self

MOST_ENTRIES: Final = 3000
"""More than this are not kept: of the older ones, which may be of files that are gone, none stays."""

Import = tuple[int, str, tuple[str, ...]]
"""``from ..base import x, y`` as ``(2, "base", ("x", "y"))``; ``import base`` as ``(0, "base", ())``."""


@dataclass(frozen=True)
class SourceFacts:
    """What is kept of one file.

    Attributes:
        digest: Hash of its statements, without comments, docstrings and formatting.
        imports: What its import statements name, wherever they stand, sorted.
    """

    digest: str
    imports: tuple[Import, ...]

    @classmethod
    def of(cls, tree: ast.Module) -> Self:
        """Take the facts from a syntax tree, which loses its docstrings."""
        return cls(hashlib.sha256(normalised(tree).encode()).hexdigest(), imports_of(tree))


class FactsCache:
    """Facts by the hash of a file's bytes, in a file that may be missing, unreadable or of another Python.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = _read(path)
        self._used: dict[str, SourceFacts] = {}
        self._fresh = False

    def facts(self, source: bytes) -> SourceFacts:
        """Return the facts of a file with this text."""
        key = hashlib.sha256(source).hexdigest()
        facts = self._used.get(key) or self._found.get(key)
        if facts is None:
            facts = SourceFacts.of(ast.parse(source))
            self._fresh = True
        self._used[key] = facts
        return facts

    def save(self) -> None:
        """Write what was found anew; where that is not allowed, nothing happens."""
        if not self._fresh or sys.dont_write_bytecode:
            return
        kept = {**self._found, **self._used}
        kept = kept if len(kept) <= MOST_ENTRIES else self._used
        values = {"of": _made_by(), "facts": {key: [facts.digest, facts.imports] for key, facts in kept.items()}}
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(values), encoding="utf-8")
            partial.replace(self._path)
        self._fresh = False


def cache_path() -> Path:
    """Where the facts are kept: where Python keeps the byte code of this module."""
    return Path(cache_from_source(__file__)).with_suffix(".json")


def imports_of(tree: ast.Module) -> tuple[Import, ...]:
    r"""Return what the import statements name, wherever they stand, sorted.

    Example:
        >>> imports_of(ast.parse("import a.b\ndef f():\n    from ..c import d, e"))
        ((0, 'a.b', ()), (2, 'c', ('d', 'e')))
    """
    imports: set[Import] = set()
    for node in statements(tree):
        if isinstance(node, ast.Import):
            imports.update((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.add((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return tuple(sorted(imports))


def normalised(tree: ast.Module) -> str:
    """Return the syntax tree as text, without docstrings.

    Example:
        >>> normalised(ast.parse("x = 1  # one")) == normalised(ast.parse("x=1"))
        True
    """
    for node in statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree, annotate_fields=False)


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and every statement in it; imports and docstrings stand nowhere else, and expressions are many."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                waiting += block


def _made_by() -> str:
    """What the facts depend on beside the text: the Python that parses it and the code of this module."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{sys.version} {own}"


def _read(path: Path) -> Mapping[str, SourceFacts]:
    """Read what was kept; nothing where the file is missing, cut off, or made by another Python or module."""
    try:
        values: Any = json.loads(path.read_bytes())
        if values["of"] != _made_by():
            return {}
        return {
            key: SourceFacts(
                str(digest), tuple((int(level), str(base), tuple(names)) for level, base, names in imports)
            )
            for key, (digest, imports) in values["facts"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
