"""The import rules hold, and the checker would notice if they did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture import import_rules


def test_nobody_breaks_the_rules() -> None:
    assert import_rules.violations() == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("recsys/data/batch.py", "from recsys.training import fit", "recsys.data must not import recsys.training"),
        (
            "recsys/model/layers/moe.py",
            "def f():\n    import recsys.decoding.beam_search",
            "recsys.model.layers must not import recsys.decoding",
        ),
        ("recsys/reports/evaluation.py", "import mlflow.pyfunc", "recsys must not import mlflow"),
        ("features/build.py", "from recsys import data", "features must not import recsys.data"),
        ("recsys/data/loader.py", "from ..model import moe", "recsys.data must not import recsys.model"),
        ("serving/answers/scorer.py", "import pipelines.cli.app", "serving.answers must not import pipelines.cli"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str, expected: str) -> None:
    found = import_rules.file_violations(Path(path), source)
    assert len(found) == 1
    assert expected in found[0]


def test_allowed_imports_pass() -> None:
    source = "import mlflow\nfrom recsys.contracts.errors import DataError\nfrom recsys.data.histories import Histories"
    assert import_rules.file_violations(Path("serving/answers/scorer.py"), source) == []


@pytest.mark.parametrize("source", ["from tests.benchmarks.presets import x", "def f():\n    import tests.benchmarks"])
def test_a_test_that_imports_a_benchmark_is_found(source: str) -> None:
    """A benchmark may import another one, and whatever tests share."""
    assert "must not import a benchmark" in import_rules.file_violations(Path("tests/model/test_x.py"), source)[0]
    assert import_rules.file_violations(Path("tests/benchmarks/decoder.py"), source) == []
    assert import_rules.file_violations(Path("tests/model/test_x.py"), "from tests.toy.dataset import ring_ids") == []


SOURCES = {
    Path("recsys/a.py"): "from recsys.b import x",
    Path("recsys/b.py"): "from recsys import c",
    Path("recsys/c.py"): "import recsys.a",
    Path("recsys/d.py"): "import recsys.a\ndef f():\n    from recsys import e",
    Path("recsys/e.py"): "if TYPE_CHECKING:\n    from .f import x\nimport recsys.d.x",
    Path("recsys/f.py"): "class F:\n    def f(self):\n        from recsys.e import y",
    Path("recsys/__init__.py"): "",
}


def test_a_circle_of_imports_is_found() -> None:
    """a -> b -> c -> a. d imports the circle, and nothing in it imports d."""
    graph = import_rules.module_graph(SOURCES)
    assert graph["recsys.b"] == {"recsys.c"}
    assert import_rules.circles(graph) == [["recsys.a", "recsys.b", "recsys.c"]]


def test_imports_that_wait_are_looked_at_apart() -> None:
    """d -> e inside a function and e -> d; e -> f for type checkers and f -> e inside a method."""
    graph = import_rules.module_graph(SOURCES, deferred=True)
    assert import_rules.circles(graph) == [
        ["recsys.a", "recsys.b", "recsys.c"],
        ["recsys.d", "recsys.e", "recsys.f"],
    ]


def test_two_areas_that_allow_each_other_are_found() -> None:
    """A folder and the folders inside it may; so may not two rooms, by way of a third either."""
    nested = {"recsys.model": {"recsys.model.variants"}, "recsys.model.variants": {"recsys.model"}}
    assert import_rules.mutual_areas(nested) == []
    upwards = {**nested, "recsys.data": {"recsys.model"}, "recsys.model": {"recsys.data", "recsys.model.variants"}}
    assert import_rules.mutual_areas(upwards) == [["recsys.data", "recsys.model", "recsys.model.variants"]]
    siblings = {"a.b": {"a.c"}, "a.c": {"a.d"}, "a.d": {"a.b"}}
    assert import_rules.mutual_areas(siblings) == [["a.b", "a.c", "a.d"]]


def test_circles_are_reported_with_the_rules(tmp_path: Path) -> None:
    for name, source in {
        "recsys/data/a.py": "import recsys.data.b",
        "recsys/data/b.py": "import recsys.data.a",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    assert import_rules.violations(tmp_path) == ["import circle: recsys.data.a, recsys.data.b"]
