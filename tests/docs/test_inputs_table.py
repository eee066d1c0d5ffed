"""Every row of the table of misread inputs names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "guides" / "inputs.md").read_text(encoding="utf-8")
ROWS = [line for line in TABLE.splitlines() if re.match(r"\| [A-K] ", line)]


def test_every_kind_has_a_row() -> None:
    assert {row[2] for row in ROWS} == set("ABCDEFGHIJK")


@pytest.mark.parametrize("row", ROWS)
def test_the_test_behind_a_row_is_there(row: str) -> None:
    (named,) = re.findall(r"`([a-z_/]+\.py)::(\w+)`", row)
    tree = ast.parse((ROOT / "tests" / named[0]).read_text(encoding="utf-8"))
    assert named[1] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
