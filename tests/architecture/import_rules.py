"""Who may import whom, checked by reading the import statements.

``python tests/architecture/import_rules.py`` lists what breaks the rules below and exits with 1 if anything does.
An area is a package or a folder of it; each names the areas it may import beside itself.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("recsys", "features", "serving", "pipelines")

_CONTRACTS = {"recsys.contracts"}
_BASE = _CONTRACTS | {"recsys.config", "recsys.runtime", "recsys.metrics"}
_IDS = _BASE | {"recsys.semantic_ids"}
_DATA = _IDS | {"recsys.data"}
_LAYERS = _DATA | {"recsys.native", "recsys.model.config", "recsys.model.layers"}
_MODEL = _LAYERS | {"recsys.model", "recsys.model.variants"}
_DECODING = _MODEL | {"recsys.decoding"}
_TRAINING = _DECODING | {"recsys.training", "recsys.training.distributed"}
_REWARD = _TRAINING | {"recsys.reward", "recsys.reward.feedback"}
_REWARDS = _REWARD | {"recsys.alignment.losses", "recsys.alignment.rewards"}
_ROLLOUTS = _REWARDS | {"recsys.alignment.config", "recsys.alignment.rollouts"}
_ALIGNMENT = _ROLLOUTS | {"recsys.alignment.rounds", "recsys.alignment"}
_INPUTS = _DECODING | {"serving.config", "serving.bundle", "serving.inputs"}
_ANSWERS = _INPUTS | _REWARD | {"serving.answers"}
_SERVING = _ANSWERS | {"serving.registry", "serving.export", "serving.batch"}
_EVERYTHING = _ALIGNMENT | _SERVING | {"recsys.evaluation", "recsys.reports", "features"}
_ENGINE = {"pipelines.engine"}

ALLOWED: dict[str, set[str]] = {
    "recsys.contracts": set(),
    "recsys.config": _CONTRACTS,
    "recsys.runtime": _CONTRACTS,
    "recsys.metrics": _CONTRACTS | {"recsys.config", "recsys.runtime"},
    "recsys.semantic_ids": _BASE,
    "recsys.data": _IDS,
    "recsys.native": set(),
    "recsys.model.config": _DATA,
    "recsys.model.layers": _DATA | {"recsys.native", "recsys.model.config"},
    "recsys.model.variants": _LAYERS | {"recsys.model"},
    "recsys.model": _LAYERS | {"recsys.model.variants"},
    "recsys.decoding": _MODEL,
    "recsys.training.distributed": _TRAINING,
    "recsys.training": _TRAINING,
    "recsys.evaluation": _TRAINING,
    "recsys.reward.feedback": _BASE | {"recsys.data", "recsys.reward"},
    "recsys.reward": _REWARD,
    "recsys.alignment.losses": _BASE,
    "recsys.alignment.rewards": _REWARD,
    "recsys.alignment.config": _REWARDS,
    "recsys.alignment.rollouts": _REWARDS | {"recsys.alignment.config"},
    "recsys.alignment.rounds": _ROLLOUTS,
    "recsys.alignment": _ALIGNMENT,
    "recsys.reports": _ALIGNMENT | {"recsys.evaluation"},
    "features": _BASE,
    "serving.config": _BASE,
    "serving.bundle": _DATA,
    "serving.inputs": _DECODING | {"serving.config", "serving.bundle"},
    "serving.answers": _INPUTS | _REWARD,
    "serving.export": _ANSWERS,
    "serving.batch": _ANSWERS | {"serving.registry"},
    "serving.registry": _ANSWERS,
    "pipelines.engine": _CONTRACTS | {"recsys.config", "recsys.runtime"},
    "pipelines.release": _EVERYTHING | _ENGINE,
    "pipelines.simulation": _EVERYTHING | _ENGINE | {"pipelines"},
    "pipelines.cli": _EVERYTHING | _ENGINE | {"pipelines", "pipelines.release", "pipelines.simulation"},
    "pipelines": _EVERYTHING | _ENGINE | {"pipelines.release"},
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
    """Return the area a module belongs to: the longest name in :data:`ALLOWED` that it starts with.

    Example:
        >>> area_of("recsys.data.batch"), area_of("features.sources.table")
        ('recsys.data', 'features')
    """
    parts = module.split(".")
    for depth in range(len(parts), 0, -1):
        if ".".join(parts[:depth]) in ALLOWED:
            return ".".join(parts[:depth])
    return ".".join(parts[:2]) if len(parts) > 1 else parts[0]


def main() -> int:
    """Print what breaks the rules."""
    found = violations()
    print("\n".join(found) or "import directions: no violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
