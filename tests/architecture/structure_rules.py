"""How large rooms may become, checked by counting: modules per folder, lines per file, lines per function.

Tests are held to the limits of files and functions; folders of tests follow the packages that they test, and toy data sets
are built in one place.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("recsys", "features", "serving", "pipelines")
MIRROR = {package: package for package in PACKAGES[1:]} | {"": "recsys"}
"""Which package a folder of tests follows: ``tests/serving`` follows ``serving``, ``tests/data`` follows ``recsys/data``."""
OWN_ROOMS = ("architecture", "benchmarks", "docs", "journey", "suites", "toy")
"""Folders of tests that follow no package: they cross several, or hold what tests share."""
BUILDERS = {"DatasetSpec": Path("tests/toy/builders.py")}
"""Classes of many fields that tests get from one builder: a new field is then written once."""

MAX_MODULES = 12
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def violations(root: Path = ROOT) -> list[str]:
    """Return one line per room, file or function that is too large, and per folder of tests without a room."""
    found = []
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (root / package).rglob("*.py")}):
            found += folder_violations(folder.relative_to(root), [path.name for path in folder.glob("*.py")])
    for package in (*PACKAGES, "tests"):
        for path in sorted((root / package).rglob("*.py")):
            found += file_violations(path.relative_to(root), path.read_text(encoding="utf-8"))
    return found + mirror_violations(root)


def folder_violations(folder: Path, names: list[str]) -> list[str]:
    """Count the modules of one folder of a package; ``__init__`` is not one."""
    count = len([name for name in names if name != "__init__.py"])
    return [f"{folder}: {count} modules, at most {MAX_MODULES}: split by idea"] if count > MAX_MODULES else []


def file_violations(path: Path, source: str) -> list[str]:
    """Count the lines of one file and of each of its functions, decorators aside, docstrings included; find built toys."""
    found = []
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}: split by idea")
    tree = ast.parse(source)
    found += [
        f"{path}:{node.lineno}: {node.func.id}(...) written out; take it from {BUILDERS[node.func.id]}"
        for node in ast.walk(tree)
        if path.parts[0] == "tests" and isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if BUILDERS.get(node.func.id, path) != path
    ]
    for node in _functions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def mirror_violations(root: Path = ROOT) -> list[str]:
    """Return one line per folder of tests where no package has one, and per test that is not in its module's room.

    ``tests/data/test_loader.py`` is taken for the tests of a module called ``loader`` if there is one.
    """
    found = []
    rooms: dict[str, set[Path]] = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            rooms.setdefault(f"test_{path.stem}", set()).add(path.parent)
    for folder in sorted({path.parent for path in (root / "tests").rglob("*.py")}):
        parts = folder.relative_to(root / "tests").parts
        if not parts or parts[0] in OWN_ROOMS:
            continue
        room = root.joinpath(*parts) if parts[0] in MIRROR else root.joinpath(MIRROR[""], *parts)
        if not room.is_dir():
            found.append(f"{folder.relative_to(root)}: there is no {room.relative_to(root)} that it could test")
        for path in sorted(folder.glob("test_*.py")):
            wanted = sorted(str(there.relative_to(root)) for there in rooms.get(path.stem, {room}))
            if str(room.relative_to(root)) not in wanted:
                found.append(f"{path.relative_to(root)}: the module of this name is in {' and '.join(wanted)}")
    return found
