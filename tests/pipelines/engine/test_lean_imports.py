"""Lightning without what it never uses: left out once, there afterwards, and only where it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.engine.lean_imports import hidden

ROOT = Path(__file__).resolve().parents[3]


def run(code: str) -> str:
    """Run code in a fresh process and return what it printed."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_training_and_its_page_import_neither_transformers_nor_matplotlib_and_both_can_be_had_afterwards() -> None:
    code = """
import sys
from pipelines.engine.lean_imports import import_lightning_lean
import_lightning_lean(); import_lightning_lean()
import recsys.training.fit, recsys.reports.evaluation, recsys.reports.alignment, torchmetrics
print([name for name in ("transformers", "matplotlib") if name in sys.modules])
print(torchmetrics.MeanMetric()(3.0).item(), type(torchmetrics.__loader__).__name__)
import matplotlib, transformers
print(matplotlib.__name__, transformers.__name__, [f for f in sys.meta_path if "lean" in type(f).__module__])
"""
    assert run(code).splitlines() == ["[]", "3.0 SourceFileLoader", "matplotlib transformers []"]


def test_a_program_that_imports_the_library_gets_its_packages_as_they_are() -> None:
    code = (
        "import sys, recsys.training.fit, torchmetrics.utilities.imports as found; print(found._TRANSFORMERS_AVAILABLE)"
    )
    assert run(code) == "True"


def test_a_package_is_hidden_only_inside_and_only_if_it_was_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with hidden(["colorsys", "json"]):
        import json

        assert json.dumps(1) == "1"
        with pytest.raises(ImportError):
            __import__("colorsys")
    assert __import__("colorsys").rgb_to_hsv(1, 0, 0) == (0.0, 1.0, 1)


def test_a_package_that_was_let_in_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with hidden(["colorsys"]):
        sys.modules["colorsys"] = sys
    assert sys.modules["colorsys"] is sys
