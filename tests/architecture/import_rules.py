"""Who may import whom, checked by reading the import statements.

``python tests/architecture/import_rules.py`` lists what breaks the rules below and exits with 1 if anything does.
An area is a package or a folder of it; each names the areas it may import beside itself. Three things are checked:

1. an import is allowed by :data:`ALLOWED` and :data:`FOREIGN`, and no test imports a benchmark;
2. :data:`ALLOWED` has a top and a bottom: no two areas may import each other, a folder and the folders inside it aside, so
   that an allowed import never points upwards;
3. no module imports itself by way of others. Imports inside functions and for type checkers are looked at apart, because
   they do not run when the module is read.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("recsys", "features", "serving", "pipelines")

_CONTRACTS = {"recsys.contracts"}
_BASE = _CONTRACTS | {f"recsys.{name}" for name in ("paths", "scratch", "config", "runtime", "device", "metrics")}
_IDS = _BASE | {"recsys.semantic_ids"}
_DATA = _IDS | {"recsys.data"}
_MODEL_CONFIG = {"recsys.model.config", "recsys.model.language_config"}
_LAYERS = _DATA | {"recsys.native", "recsys.model.layers"} | _MODEL_CONFIG
_MODEL = _LAYERS | {"recsys.model", "recsys.model.variants"}
_POLICIES = _MODEL | {"recsys.language_model", "recsys.model.checkpoint"}
_DECODING = _POLICIES | {"recsys.scorers", "recsys.decoding"}
_RANKED = _DECODING | {"recsys.ranker", "recsys.decoding.second_stage"}
_TRAINING = _DECODING | {"recsys.training", "recsys.training.distributed"}
_REWARD = _TRAINING | {"recsys.reward", "recsys.reward.feedback"}
_REWARDS = _REWARD | {
    *(
        "recsys.alignment.losses",
        "recsys.alignment.recall",
        "recsys.alignment.rewards",
        "recsys.alignment.sample_config",
    ),
}
_ROLLOUTS = _REWARDS | {"recsys.alignment.config", "recsys.alignment.rollouts"}
_ALIGNMENT = _ROLLOUTS | {"recsys.alignment.rounds", "recsys.alignment"}
_INPUTS = _DECODING | {"serving.config", "serving.bundle", "serving.inputs"}
_ANSWERS = _INPUTS | _RANKED | _REWARD | {"serving.answers"}
_SERVING = _ANSWERS | {"serving.registry", "serving.export", "serving.batch"}
_EVERYTHING = _ALIGNMENT | _SERVING | {"recsys.evaluation", "recsys.reports", "features"}
_ENGINE = {"pipelines.engine"}

ALLOWED: dict[str, set[str]] = {
    "recsys.contracts": set(),
    "recsys.strict_yaml": set(),
    "recsys.paths": {"recsys.strict_yaml"},
    "recsys.scratch": set(),
    "recsys.config": _CONTRACTS | {"recsys.paths", "recsys.strict_yaml"},
    "recsys.runtime": _CONTRACTS,
    "recsys.device": _CONTRACTS | {"recsys.config"},
    "recsys.metrics": _CONTRACTS | {"recsys.config", "recsys.runtime"},
    "recsys.semantic_ids": _BASE,
    "recsys.data": _IDS,
    "recsys.scorers": _DATA | {"recsys.native", "recsys.model.layers"},
    "recsys.native": set(),
    "recsys.model.language_config": _DATA,
    "recsys.model.config": _DATA | {"recsys.model.language_config"},
    "recsys.model.layers": _DATA | {"recsys.native"} | _MODEL_CONFIG,
    "recsys.model.variants": _LAYERS | {"recsys.model"},
    "recsys.model": _LAYERS | {"recsys.model.variants"},
    "recsys.language_model": _MODEL,
    "recsys.model.checkpoint": _POLICIES,
    "recsys.decoding": _POLICIES | {"recsys.scorers"},
    "recsys.decoding.second_stage": _RANKED,
    "recsys.training.distributed": _TRAINING,
    "recsys.training": _TRAINING,
    "recsys.evaluation": _TRAINING | _RANKED,
    "recsys.ranker": _DATA,
    "recsys.reward.feedback": _BASE | {"recsys.data", "recsys.reward"},
    "recsys.reward": _REWARD,
    "recsys.alignment.losses": _BASE,
    "recsys.alignment.sample_config": _BASE,
    "recsys.alignment.recall": _BASE,
    "recsys.alignment.rewards": _REWARD,
    "recsys.alignment.config": _REWARDS,
    "recsys.alignment.rollouts": _REWARDS | {"recsys.alignment.config"},
    "recsys.alignment.rounds": _ROLLOUTS,
    "recsys.alignment": _ALIGNMENT,
    "recsys.reports": _ALIGNMENT | _RANKED | {"recsys.evaluation"},
    "features": _BASE | {"recsys.native"},
    "serving.config": _BASE,
    "serving.bundle": _LAYERS | {"serving.config"},
    "serving.inputs": _DECODING | {"serving.config", "serving.bundle"},
    "serving.answers": _INPUTS | _RANKED | _REWARD,
    "serving.export": _ANSWERS,
    "serving.batch": _ANSWERS | {"serving.registry"},
    "serving.registry": _ANSWERS,
    "pipelines.engine": _CONTRACTS | {"recsys.config", "recsys.runtime", "recsys.device"},
    "pipelines.datasets": _CONTRACTS | {"recsys.config", "recsys.runtime"},
    "pipelines.release": _EVERYTHING | _ENGINE,
    "pipelines.simulation": _EVERYTHING | _ENGINE | {"pipelines"},
    "pipelines.cli": _EVERYTHING
    | _ENGINE
    | {"pipelines", "pipelines.datasets", "pipelines.release", "pipelines.simulation"},
    "pipelines": _EVERYTHING | _ENGINE | {"pipelines.release"},
}
FOREIGN: dict[str, set[str]] = {"recsys": {"mlflow"}, "features": {"mlflow", "torchrec", "lightning"}}
"""Libraries that a package must not import."""


def violations(root: Path = ROOT) -> list[str]:
    """Return one line per forbidden import below ``root``, sorted by file, then the circles."""
    found = []
    sources = {path.relative_to(root): path.read_text(encoding="utf-8") for path in _files(root)}
    for path, source in sources.items():
        found += file_violations(path, source)
    found += [f"ALLOWED lets {' and '.join(areas)} import each other" for areas in mutual_areas(ALLOWED)]
    found += [f"import circle: {', '.join(circle)}" for circle in circles(module_graph(sources))]
    found += [
        f"circle of imports inside functions: {', '.join(circle)}"
        for circle in circles(module_graph(sources, deferred=True))
        if circle not in circles(module_graph(sources))
    ]
    return found


def _files(root: Path) -> Iterator[Path]:
    for package in (*PACKAGES, "tests"):
        yield from sorted((root / package).rglob("*.py"))


def file_violations(path: Path, source: str) -> list[str]:
    """Check the imports of one file.

    Args:
        path: Relative to the project, for example ``recsys/data/batch.py``.
    """
    if path.parts[0] == "tests":
        return _benchmark_imports(path, source)
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


def _benchmark_imports(path: Path, source: str) -> list[str]:
    """Benchmarks are run, not imported: what a test needs stands in the package or in ``tests/toy``."""
    if path.parts[:2] == ("tests", "benchmarks"):
        return []
    return [
        f"{path}:{line}: a test must not import a benchmark ({module})"
        for line, module in imports(ast.parse(source), path)
        if module.startswith("tests.benchmarks")
    ]


def mutual_areas(allowed: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of areas that may reach each other, without those that are a folder and what is inside it."""
    groups = circles({area: set(others) - {area} for area, others in allowed.items()})
    return [group for group in groups if not all(area == group[0] or area.startswith(f"{group[0]}.") for area in group)]


def module_graph(sources: Mapping[Path, str], *, deferred: bool = False) -> dict[str, set[str]]:
    """Return which modules each module imports when it is read.

    Args:
        sources: Text of every file by its path relative to the project.
        deferred: Also count imports inside functions and under ``if TYPE_CHECKING``.
    """
    modules = {_module_name(path) for path in sources}
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        tree = ast.parse(source)
        statements = _import_statements(tree if deferred else _when_read(tree))
        wanted = {name for statement in statements for name in _imported_names(statement, path)}
        here = _module_name(path)
        graph[here] = {module for name in wanted if (module := _longest_prefix(name, modules)) and module != here}
    return graph


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _longest_prefix(name: str, modules: set[str]) -> str | None:
    parts = name.split(".")
    return next((start for n in range(len(parts), 0, -1) if (start := ".".join(parts[:n])) in modules), None)


def _import_statements(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _when_read(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions and of ``if TYPE_CHECKING``."""

    class Without(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return ast.Module([kept for node in tree.body if (kept := Without().visit(node)) is not None], [])


def _imported_names(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    """Yield full names: of ``from a import b`` it is ``a.b``, which may be a module or something inside ``a``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = path.with_suffix("").parts[:-1]
    base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
    module = ".".join(part for part in (base, node.module) if part)
    yield from (f"{module}.{alias.name}" for alias in node.names)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (strongly connected, by Tarjan's algorithm), sorted.

    Example:
        >>> circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
        [['a', 'b', 'c']]
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in path:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            group = sorted(path[path.index(node) :])
            del path[path.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return sorted(found)


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
