"""The code version follows from what a stage function imports, directly or not, and from nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.code_version import code_version, modules_behind

STAGE = "def run(config):\n    from recsys.first import work\n    return work(config)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "recsys"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("from . import second\n\ndef work(config):\n    return second.VALUE\n")
    (package / "second.py").write_text("VALUE = 1\n")
    (package / "unrelated.py").write_text("VALUE = 1\n")
    return tmp_path


def load(path: Path, text: str) -> Callable[..., Any]:
    """Import ``text`` as a module that ``inspect`` can read."""
    path.write_text(text)
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = module.run
    return function


def version(project: Path, number: list[int] = [0]) -> str:  # noqa: B006
    """Read the version as a fresh process would: the caches are keyed by path, so copy the project."""
    import shutil

    number[0] += 1
    copy = project.parent / f"copy{number[0]}-{project.name}"
    shutil.copytree(project, copy)
    return code_version(load(project / f"stage_{number[0]}.py", STAGE), copy)


def test_imports_are_followed(project: Path) -> None:
    function = load(project / "stage_a.py", STAGE)
    assert modules_behind(function, project) == ["recsys", "recsys.first", "recsys.second"]


def test_only_reached_code_counts(project: Path) -> None:
    before = version(project)
    (project / "recsys" / "unrelated.py").write_text("VALUE = 2\n")
    assert version(project) == before
    (project / "recsys" / "second.py").write_text('"""Explained."""\n\n# better\nVALUE   = 1\n')
    assert version(project) == before
    (project / "recsys" / "second.py").write_text("VALUE = 2\n")
    assert version(project) != before


def test_every_stage_reaches_its_own_package() -> None:
    from pipelines.stages import BY_NAME

    expected = {
        "prepare": "features.build",
        "embed": "features.item_embeddings",
        "tokenize": "recsys.semantic_ids.tokenize",
        "train": "recsys.model.generative_recommender",
        "reward": "recsys.reward.training",
        "align": "recsys.alignment.losses.policy_gradient",
        "baselines": "recsys.evaluation.baselines.registry",
        "evaluate": "recsys.metrics.ranking",
        "export": "serving.export.export",
        "recommend": "serving.batch.candidates",
    }
    for name, module in expected.items():
        assert module in modules_behind(BY_NAME[name].run), name
    assert "recsys.training.fit" not in modules_behind(BY_NAME["evaluate"].run)
    assert "pipelines.config" not in modules_behind(BY_NAME["evaluate"].run)
