"""The table of faults: each row's test exists, its words are words of the code, and its exit code is one of ours."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "faults.md"
CODES = {0, 2, 3, 4, 5, 75, 130, 141, 143}
MUST_HOLD = (
    "disk is full",
    "bit of an artefact flipped",
    "database was cut short",
    "two runs in one folder",
    "moves the champion",
    "server is down",
    "never answers",
    "answers 500",
    "parent was deleted",
    "clock was set back",
    "read-only folder",
    "SIGTERM, SIGINT",
)
"""What the page was asked to cover."""


def rows(text: str) -> list[list[str]]:
    """Cells of every row of a table with five columns, heads and rules aside."""
    found = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [cells for cells in found if cells[0] != "fault"]


@cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


@cache
def literals() -> str:
    """Every text of the packages, one a line; what a program fills in is a blank place."""
    found = []
    for package in ("recsys", "features", "serving", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    found.append("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def faults(cells: list[str]) -> list[str]:
    """What is wrong with a row."""
    if len(cells) != 5:
        return [f"{len(cells)} cells: {cells}"]
    _, _, words, codes, test = cells
    found = []
    path, _, name = test.strip("`").partition("::")
    if not (ROOT / path).is_file() or name not in functions_of(ROOT / path):
        found.append(f"no such test: {test}")
    elif any("skip" in ast.unparse(mark) for mark in functions_of(ROOT / path)[name].decorator_list):
        found.append(f"skipped: {test}")
    found += [f"exit code {code}" for code in codes.split(", ") if not code.isdigit() or int(code) not in CODES]
    parts = [] if words == "–" else re.split(r"\s*…\s*", words)
    return found + [f"no text of the code holds '{part}'" for part in parts if part and part not in literals()]


@pytest.mark.parametrize("cells", rows(PAGE.read_text(encoding="utf-8")), ids=lambda cells: cells[0].replace("`", ""))
def test_a_row_is_true(cells: list[str]) -> None:
    assert not faults(cells)


def test_the_page_covers_what_it_was_asked_for() -> None:
    told = [cells[0] for cells in rows(PAGE.read_text(encoding="utf-8"))]
    assert len(told) == len(set(told)) > 40
    assert not [words for words in MUST_HOLD if not any(words in fault for fault in told)]


def test_a_wrong_row_is_noticed() -> None:
    good = "| x | `run` | another run works in | 75 | `tests/docs/test_faults.py::test_a_wrong_row_is_noticed` |"
    assert [faults(cells) for cells in rows(good)] == [[]]
    wrong = good.replace("75", "7").replace("works in", "sleeps in").replace("is_noticed", "is_gone")
    (found,) = [faults(cells) for cells in rows(wrong)]
    assert [one.partition(" ")[0] for one in found] == ["no", "exit", "no"]
    assert faults(["only", "three", "cells"])
