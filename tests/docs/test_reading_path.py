"""The reading path goes in one direction: a file of it imports no file that comes later."""

from __future__ import annotations

import ast
import re

from docs._build.blocks import ROOT
from tests.architecture.import_rules import imports

PAGE = ROOT / "docs" / "concepts" / "reading_path.md"


def path_of_files() -> list[str]:
    return re.findall(r"^\| \d+ \| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def backward(files: list[str]) -> list[str]:
    """Imports of a later file by an earlier one, at the top of the file."""
    found = []
    for place, name in enumerate(files):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        top = ast.Module(
            body=[node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
        )
        imported = {module.replace(".", "/") + ".py" for _, module in imports(top, ROOT / name)}
        found += [f"{name} imports {later}" for later in files[place + 1 :] if later in imported]
    return found


def test_every_file_is_there_and_imports_point_back() -> None:
    files = path_of_files()
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert backward(files) == []


def test_a_wrong_order_is_noticed() -> None:
    files = ["recsys/decoding/recommender.py", "recsys/decoding/beam_search.py"]
    assert backward(files) == ["recsys/decoding/recommender.py imports recsys/decoding/beam_search.py"]
