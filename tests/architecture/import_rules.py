"""Who may import whom, checked by reading the import statements.

``python tests/architecture/import_rules.py`` lists what breaks the rules below and exits with 1 if anything does.
An area is a package or, inside ``recsys``, one of its parts; each names the areas it may import beside itself.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("recsys", "features", "serving", "pipelines")

_CONTRACTS = {"recsys.contracts"}
_BASE = _CONTRACTS | {"recsys.config", "recsys.runtime"}
_IDS = _BASE | {"recsys.semantic_ids"}
_DATA = _IDS | {"recsys.data"}
_MODEL = _DATA | {"recsys.native", "recsys.model"}
_DECODING = _MODEL | {"recsys.decoding"}
_TRAINING = _DECODING | {"recsys.metrics", "recsys.intervals", "recsys.training"}

ALLOWED: dict[str, set[str]] = {
    "recsys.contracts": set(),
    "recsys.config": _CONTRACTS,
    "recsys.runtime": _CONTRACTS,
    "recsys.metrics": _BASE,
    "recsys.intervals": _BASE,
    "recsys.semantic_ids": _BASE,
    "recsys.data": _IDS,
    "recsys.native": set(),
    "recsys.model": _DATA | {"recsys.native"},
    "recsys.decoding": _MODEL,
    "recsys.training": _TRAINING,
    "recsys.evaluation": _TRAINING,
    "recsys.reward": _TRAINING,
    "recsys.alignment": _TRAINING | {"recsys.reward"},
    "features": _BASE,
    "serving": _DECODING | {"recsys.reward"},
    "pipelines": _TRAINING | {"recsys.evaluation", "recsys.reward", "recsys.alignment", "features", "serving"},
}
FOREIGN: dict[str, set[str]] = {"recsys": {"mlflow"}, "features": {"mlflow", "torchrec", "lightning"}}
"""Libraries that a package must not import."""


def violations(root: Path = ROOT) -> list[str]:
    """Return one line per forbidden import below ``root``, sorted by file."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found += file_violations(path.relative_to(root), path.read_text(encoding="utf-8"), root)
    return found


def file_violations(path: Path, source: str, root: Path = ROOT) -> list[str]:
    """Check the text of one file.

    Args:
        path: Relative to the project, for example ``recsys/data/batch.py``.
    """
    here = area_of(".".join(path.with_suffix("").parts))
    found = []
    for line, module in imports(ast.parse(source), path):
        top = module.partition(".")[0]
        if top in FOREIGN.get(path.parts[0], set()):
            found.append(f"{path}:{line}: {path.parts[0]} must not import {top}")
        there = area_of(module) if top in PACKAGES else None
        if there is None or there == here or there in ALLOWED.get(here, set()):
            continue
        if there == "recsys" and top == "recsys":  # "import recsys" alone: the package holds nothing
            continue
        found.append(f"{path}:{line}: {here} must not import {there} ({module})")
    return found


def imports(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute module name of every import, wherever it stands in the file."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "recsys":  # from recsys import training
                yield from ((node.lineno, f"recsys.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def area_of(module: str) -> str:
    """Return the area a module belongs to.

    Example:
        >>> area_of("recsys.data.batch"), area_of("features.sources.table")
        ('recsys.data', 'features')
    """
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "recsys" else parts[0]


def main() -> int:
    """Print what breaks the rules."""
    found = violations()
    print("\n".join(found) or "import directions: no violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
