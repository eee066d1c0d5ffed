"""No room, file or function is too large, tests stand in the room of what they test, and the checker would notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.architecture import structure_rules


def test_nothing_is_too_large_or_in_no_room() -> None:
    assert structure_rules.violations() == []


@pytest.mark.parametrize(("modules", "count"), [(12, 0), (13, 1)])
def test_a_folder_of_thirteen_modules_is_found(modules: int, count: int) -> None:
    """``__init__`` is not counted."""
    names = ["__init__.py", *(f"module_{number}.py" for number in range(modules))]
    found = structure_rules.folder_violations(Path("recsys/data"), names)
    assert found == ["recsys/data: 13 modules, at most 12: split by idea"] * count


@pytest.mark.parametrize(("lines", "count"), [(400, 0), (401, 1)])
def test_a_file_of_401_lines_is_found(lines: int, count: int) -> None:
    found = structure_rules.file_violations(Path("features/build.py"), "X = 1\n" * lines)
    assert found == ["features/build.py: 401 lines, at most 400: split by idea"] * count


@pytest.mark.parametrize("head", ["def long():", "async def long():", "class A:\n  def long(self):"])
@pytest.mark.parametrize(("lines", "count"), [(80, 0), (81, 1)])
def test_a_function_of_81_lines_is_found(head: str, lines: int, count: int) -> None:
    """The first line counts, a decorator's does not; methods and nested functions are functions."""
    source = head + "\n    x = 1" * (lines - 1) + "\n"
    found = structure_rules.file_violations(Path("tests/x.py"), source)
    assert len(found) == count
    assert all("long has 81 lines, at most 80" in said for said in found)


@pytest.mark.parametrize(
    ("path", "count"), [("tests/data/test_x.py", 1), ("tests/toy/builders.py", 0), ("features/build.py", 0)]
)
def test_a_toy_that_is_written_out_is_found(path: str, count: int) -> None:
    found = structure_rules.file_violations(Path(path), "spec = DatasetSpec(num_users=1)\n")
    assert len(found) == count


def test_a_folder_of_tests_without_a_room_is_found(tmp_path: Path) -> None:
    """``tests/model`` follows ``recsys/model``, ``tests/serving/batch`` follows ``serving/batch``, ``tests/toy`` nothing."""
    for room in ("recsys/model", "serving/batch"):
        (tmp_path / room).mkdir(parents=True)
    for folder in ("model", "serving/batch", "toy", "misc", "serving/extra"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / "test_it.py").touch()
    assert structure_rules.mirror_violations(tmp_path) == [
        "tests/misc: there is no recsys/misc that it could test",
        "tests/serving/extra: there is no serving/extra that it could test",
    ]


def test_a_test_outside_its_module_s_room_is_found(tmp_path: Path) -> None:
    """``fit`` is in two rooms, and its tests in one of them; ``everything`` is no module."""
    names = ["recsys/data/loader.py", "recsys/model/fit.py", "recsys/data/fit.py"]
    names += [
        "tests/model/test_loader.py",
        "tests/model/test_fit.py",
        "tests/model/test_everything.py",
        "tests/toy/test_loader.py",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = "tests/model/test_loader.py: the module of this name is in recsys/data"
    assert structure_rules.mirror_violations(tmp_path) == [expected]


def test_the_whole_tree_is_walked(tmp_path: Path) -> None:
    """A made-up project with one fault of each kind, each in another package."""
    for number in range(13):
        path = tmp_path / "pipelines" / "cli" / f"m{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("X = 1\n")
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "large.py").write_text("X = 1\n" * 401)
    (tmp_path / "tests" / "suites").mkdir(parents=True)
    (tmp_path / "tests" / "suites" / "test_it.py").write_text("def long():\n" + "    x = 1\n" * 80)
    found = structure_rules.violations(tmp_path)
    assert [said.partition(":")[0] for said in found] == [
        "pipelines/cli",
        "serving/large.py",
        "tests/suites/test_it.py",
    ]


def test_what_runs_before_a_commit_is_a_part_of_make_check() -> None:
    """Each hook is word for word a line of the target, from the installed environment; nothing is fetched."""
    root = structure_rules.ROOT
    makefile = (root / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    lines = makefile.split("\ncheck:")[1].split("\n\n")[0].split("\n\t")[1:]
    (repo,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert [hook["entry"] for hook in repo["hooks"] if hook["entry"] not in lines] == []
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
