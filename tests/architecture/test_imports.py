"""The import rules hold, and the checker would notice if they did not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import import_rules


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
