"""``--log-format json``: every line on standard error is one object, whatever goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toy.tiny_run import write_small_log

ROOT = Path(__file__).resolve().parents[3]
FAULT = """
import sys
from unittest import mock
from pipelines.cli.app import main
with mock.patch("pipelines.workflow.Workflow.run_verb", side_effect=ZeroDivisionError("line one\\nline two")):
    main(sys.argv[1:])
"""
WARNS = """
import sys, warnings
from unittest import mock
from pipelines.cli.app import main
def work(*arguments, **options):
    warnings.warn("old\\u2028form")
    raise SystemExit(0)
with mock.patch("pipelines.workflow.Workflow.run_verb", work):
    main(sys.argv[1:])
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_small_log(tmp_path)


def spoken(*arguments: str, code: int = 0, script: str | None = None) -> list[dict[str, Any]]:
    """Run the command line in a process of its own and read what it said on standard error."""
    start = ["-m", "pipelines.cli.app"] if script is None else ["-c", script]
    done = subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["time"].endswith("Z")
    return lines


def test_a_run_speaks_json(recipe: Path) -> None:
    lines = spoken("prepare", "--config", str(recipe), "--log-format", "json")
    assert {line["level"] for line in lines} <= {"INFO", "WARNING"}
    assert any(line["message"].startswith("prepare: done in") for line in lines)
    assert {line["logger"] for line in lines} >= {"recsys.pipelines"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("prepare", "--config", "{recipe}", "--log-format=json", "seed=x"), 2, "seed"),
        (("prepare", "--config", "{recipe}", "--log-format", "json", "source.interactions=none.csv"), 3, "none.csv"),
        (("prepare", "--log-format", "json"), 2, "--config"),
        (("prepare", "--log-format", "json", "--config", "{recipe}", "--no-such"), 2, "--no-such"),
        (("prepare", "--config", "{recipe}", "--log-format", "json", "--progress", "on"), 2, "--progress on"),
        (("train", "--config", "{recipe}", "--log-format", "json"), 4, "prepare"),
        (("tokens", "report", "no_such_table", "--log-format", "json"), 4, "no_such_table"),
    ],
)
def test_errors_are_json_too(recipe: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    lines = spoken(*(word.format(recipe=recipe) for word in arguments), code=code)
    assert said in lines[-1]["message"]
    assert lines[-1]["level"] == "ERROR"


def test_a_traceback_is_one_line(recipe: Path) -> None:
    lines = spoken("prepare", "--config", str(recipe), "--log-format", "json", code=1, script=FAULT)
    assert "line one\nline two" in lines[-1]["message"]
    assert "Traceback" in lines[-1]["exception"]


def test_warnings_of_libraries_are_json(recipe: Path) -> None:
    """A line separator of Unicode inside a message is no end of a line."""
    lines = spoken("prepare", "--config", str(recipe), "--log-format", "json", script=WARNS)
    assert [line["level"] for line in lines] == ["WARNING"]
    assert "old\u2028form" in lines[0]["message"]
    assert lines[0]["logger"] == "py.warnings"


def test_another_format_is_refused(recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", "prepare", "--config", str(recipe), "--log-format", "xml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "xml" in done.stderr
