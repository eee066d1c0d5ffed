"""What is kept of a source file is found again by its bytes alone, and nothing that is kept can change what is found."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from pipelines.engine import source_facts
from pipelines.engine.source_facts import FactsCache, SourceFacts, imports_of, normalised

ONE = b'"""Doc."""\nfrom ..base import x, y\n\ndef f():\n    """Doc."""\n    import a.b\n    return x + 1\n'
TWO = ONE.replace(b"x + 1", b"x + 2")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return tmp_path / "cache" / "facts.json"


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be parsed: what is found was kept."""

    def parse(source: bytes) -> ast.Module:
        raise AssertionError(f"parsed {source!r}")

    monkeypatch.setattr(source_facts.ast, "parse", parse)


def keep(path: Path, *sources: bytes) -> list[SourceFacts]:
    cache = FactsCache(path)
    found = [cache.facts(source) for source in sources]
    cache.save()
    return found


def test_facts_of_a_file() -> None:
    facts = SourceFacts.of(ast.parse(ONE))
    assert facts.imports == ((0, "a.b", ()), (2, "base", ("x", "y")))
    assert (
        facts.digest == SourceFacts.of(ast.parse(ONE.replace(b'"""Doc."""', b"").replace(b"\n\ndef", b"\ndef"))).digest
    )
    assert facts.digest != SourceFacts.of(ast.parse(TWO)).digest


def test_imports_in_every_kind_of_block_are_found() -> None:
    code = """
try:
    import a
except ImportError:
    import b
else:
    import c
finally:
    import d
match 1:
    case 1:
        import e
for i in ():
    import f
else:
    import g
with x:
    async def h():
        while 1:
            import i
class C:
    import j
"""
    assert [base for _, base, _ in imports_of(ast.parse(code))] == list("abcdefgij")


def test_a_body_of_a_docstring_alone_is_not_an_empty_one() -> None:
    assert normalised(ast.parse("def f():\n    'x'")) == normalised(ast.parse("def f():\n    pass"))


def test_what_is_kept_is_not_parsed_again(path: Path, request: pytest.FixtureRequest) -> None:
    expected = keep(path, ONE, TWO)
    request.getfixturevalue("no_parser")
    assert keep(path, ONE, TWO) == expected


def test_an_edit_of_the_same_length_and_time_is_another_entry(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_bytes(ONE)
    os.utime(file, (1, 1))
    (before,) = keep(path, file.read_bytes())
    file.write_bytes(TWO)
    os.utime(file, (1, 1))
    assert keep(path, file.read_bytes()) != [before]
    assert keep(path, ONE) == [before]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"of": "me"}', b'{"of": 1, "facts": {}}'],
    ids=["empty", "cut off", "no text", "a list", "null", "without facts", "of another module"],
)
def test_a_damaged_file_is_as_none(path: Path, damaged: bytes) -> None:
    expected = keep(path, ONE)
    path.write_bytes(damaged)
    assert keep(path, ONE) == expected
    assert keep(path, ONE) == expected  # and it is whole again
    assert json.loads(path.read_bytes())["facts"]


@pytest.mark.parametrize("entry", [[], 7, ["digest"], ["digest", [[1]]], ["digest", [["x", "y", []]]]])
def test_entries_of_another_form_are_not_taken(path: Path, entry: object) -> None:
    expected = keep(path, ONE)
    values = json.loads(path.read_bytes())
    values["facts"] = dict.fromkeys(values["facts"], entry)
    path.write_text(json.dumps(values))
    assert keep(path, ONE) == expected


def test_what_another_python_has_found_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = keep(path, ONE)
    values = json.loads(path.read_bytes())
    values["facts"] = {key: ["0" * 64, []] for key in values["facts"]}
    path.write_text(json.dumps(values))
    assert keep(path, ONE)[0].digest == "0" * 64  # the same Python: as it is kept
    monkeypatch.setattr(sys, "version", "another")
    assert keep(path, ONE) == expected


def test_nothing_is_written_where_python_writes_no_byte_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keep(path, ONE)
    assert not path.exists()


def test_a_folder_that_cannot_be_made_stops_nothing(path: Path) -> None:
    path.parent.write_text("a file in the way")
    assert keep(path, ONE) == [SourceFacts.of(ast.parse(ONE))]


def test_entries_are_dropped_when_they_are_too_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_facts, "MOST_ENTRIES", 2)
    for number in range(3):
        keep(path, b"x = %d" % number)
        assert len(json.loads(path.read_bytes())["facts"]) == (1, 2, 1)[number]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no partial file is left
