"""What installing compiles is what commands would, and they then parse nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.engine import code_version, source_facts
from pipelines.engine.compiled import compile_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "recsys" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "recsys" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("from recsys import inner\nVALUE = 1\n")
    cache = source_facts.FactsCache(tmp_path / "cache" / "facts.json")
    monkeypatch.setattr(code_version, "_cache", lambda: cache)
    return tmp_path


@pytest.mark.parametrize("not_allowed", [False, True])
def test_modules_are_compiled_and_their_facts_kept(
    project: Path, not_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", not_allowed)
    assert compile_project(project) == 3
    assert sys.dont_write_bytecode is not_allowed
    assert len(list(project.rglob("*.pyc"))) == 3

    def parse(source: bytes) -> None:
        raise AssertionError(f"parsed {source!r}")

    monkeypatch.setattr(source_facts.ast, "parse", parse)
    later = source_facts.FactsCache(project / "cache" / "facts.json")
    work = later.facts((project / "recsys" / "inner" / "work.py").read_bytes())
    assert work.imports == ((0, "recsys", ("inner",)),)


def test_a_module_that_is_no_python_is_named(project: Path) -> None:
    (project / "recsys" / "broken.py").write_text("def\n")
    with pytest.raises(OSError, match="could not be compiled"):
        compile_project(project)


def test_a_second_time_compiles_nothing(project: Path) -> None:
    compile_project(project)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*.pyc")}
    compile_project(project)
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*.pyc")} == before


def test_the_command_says_how_many_modules_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.engine.compiled"], capture_output=True, text=True, check=True
    )
    known = code_version._Project(code_version.PROJECT_ROOT).names
    assert done.stdout == f"compiled {len(known)} modules\n"
