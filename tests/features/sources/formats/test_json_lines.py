"""JSON lines: what a line may be, what becomes of the others, packed and plain."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.reading import FILE, RAW, REFUSED, ROW
from features.sources.formats import json_lines
from features.sources.formats.json_lines import BOOLEAN, INTEGER, NUMBER, TEXT, JsonLinesTable
from recsys.contracts.errors import DataError

FIELDS = {"user": TEXT, "stars": NUMBER, "at": INTEGER, "verified": BOOLEAN}
GOOD = b'{"user": "u7", "stars": 4.0, "at": 1650000000, "verified": true, "price": "$3"}\n'


def opened(folder: Path, *contents: bytes, loose: bool = False) -> JsonLinesTable:
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"part-{number}.json")
        paths[-1].write_bytes(content)
    return JsonLinesTable(paths, folder, FIELDS, str(folder), loose=loose)


def test_keys_become_columns_and_unknown_keys_are_left_alone(tmp_path: Path) -> None:
    table = opened(tmp_path, GOOD + b'{"user": "u8"}\n', GOOD)
    found = table.collect(["user", "stars", "at", "verified"])
    assert found.drop(REFUSED, RAW).rows() == [
        ("u7", 4.0, 1_650_000_000, True, 0, 0),
        ("u8", None, None, None, 0, 1),
        ("u7", 4.0, 1_650_000_000, True, 1, 0),
    ]
    assert found[REFUSED].null_count() == 3
    assert table.files == ("part-0.json", "part-1.json")
    assert table.notes == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"user": "u8"', "the line is not valid JSON"),
        (b'{"user": "u8"}{"user": "u9"}', "the line is not valid JSON"),
        (b"user,stars", "the line is not valid JSON"),
        (b'["u8", 4]', "the line is no object of keys and values"),
        (b"17", "the line is no object of keys and values"),
        (b'{"user": "caf\xe9"}', "the line is not valid UTF-8"),
        (b'{"user": 7}', "'user' is a number, expected text"),
        (b'{"user": ["u8"]}', "'user' is a list, expected text"),
        (b'{"stars": "4"}', "'stars' is a text, expected a number"),
        (b'{"stars": true}', "'stars' is true or false, expected a number"),
        (b'{"at": 1.5}', "'at' is a number with a fraction, expected a whole number"),
        (b'{"at": 99999999999999999999}', "'at' is a number beyond 64 bits"),
        (b'{"stars": 1e999}', "'stars' is a number too large to be one"),
        (b'{"stars": 1' + b"0" * 400 + b"}", "'stars' is a number too large to be one"),
        (b'{"at": -Infinity}', "'at' is a number too large to be one"),
        (b'{"verified": 1}', "'verified' is a number, expected true or false"),
        (b"[" * 100_000, "the line is not valid JSON"),
        (b'{"user": "u\\ud83d"}', "'user' holds half of a surrogate pair, which is no character"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_row_with_reason_line_and_place(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    """It stands between two good lines, behind a blank one: on line 3, row 2 from 0."""
    table = opened(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD)
    if line.startswith(b"[["):
        line = line[: json_lines.SHOWN_CHARACTERS]
    found = table.collect(list(FIELDS))
    assert found[ROW].to_list() == [0, 2, 3]
    assert found[REFUSED].to_list() == [None, reason, None]
    assert found[RAW].to_list() == [None, line.decode("utf-8", "replace"), None]
    assert found[1].select(list(FIELDS)).null_count().sum_horizontal().item() == len(FIELDS)
    assert table.notes == {"malformed_lines": 1, "blank_lines": 1}


def test_only_the_columns_that_are_asked_for_are_looked_at(tmp_path: Path) -> None:
    """A value of another type in a column that nobody reads cannot cost a row."""
    found = opened(tmp_path, b'{"user": "u7", "stars": "four"}\n').collect(["user"])
    assert found["user"].to_list() == ["u7"]
    assert found[REFUSED].to_list() == [None]


def test_whole_numbers_written_as_floats_nan_and_null(tmp_path: Path) -> None:
    found = opened(tmp_path, b'{"user": null, "stars": NaN, "at": 1.65e9}\n').collect(["user", "stars", "at"])
    assert found.select("user", "stars", "at").row(0) == (None, None, 1_650_000_000)


def test_python_dictionaries_only_where_they_are_declared(tmp_path: Path) -> None:
    line = b"{'user': \"u7's\", 'stars': 4.0, 'at': 1650000000, 'verified': True, 'price': None}\n"
    assert opened(tmp_path, line, loose=True).collect(["user", "verified"]).row(0)[:2] == ("u7's", True)
    assert opened(tmp_path, line).collect(["user"])[REFUSED].to_list() == [
        "the line is a Python dictionary and no JSON"
    ]


@pytest.mark.parametrize(
    "line", [b"__import__('os').system('true')", b"{'user': open('x')}", b"{'user': 'u7'", b"{'a'}"]
)
def test_nothing_in_a_dictionary_is_run(tmp_path: Path, line: bytes) -> None:
    found = opened(tmp_path, line, loose=True).collect(["user"])
    assert found[REFUSED].to_list()[0].startswith("the line is n")


@pytest.mark.parametrize("name", ["log.json.gz", "log.json"])
def test_packed_files_are_known_by_their_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(GOOD))
    table = JsonLinesTable([tmp_path / name], tmp_path, FIELDS, name)
    assert table.collect(["user"])["user"].to_list() == ["u7"]


def test_a_packed_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD * 1000)
    (tmp_path / "log.json.gz").write_bytes(packed[: len(packed) // 2])
    table = JsonLinesTable([tmp_path / "log.json.gz"], tmp_path, FIELDS, "log")
    with pytest.raises(DataError, match=r"log\.json\.gz' cannot be read: the compressed file is cut off"):
        table.collect(["user"])


def test_byte_order_mark_windows_line_ends_and_no_last_line_end(tmp_path: Path) -> None:
    table = opened(tmp_path, b"\xef\xbb\xbf" + GOOD.strip() + b"\r\n" + GOOD.strip())
    assert table.collect(["user"])["user"].to_list() == ["u7", "u7"]


def test_a_json_list_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is one JSON list.*jq -c"):
        opened(tmp_path, b'[\n{"user": "u7"}\n]\n').collect(["user"])


def test_batches_are_bounded_and_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = opened(tmp_path, GOOD * 7, GOOD * 3)
    whole = table.collect(list(FIELDS))
    monkeypatch.setattr(json_lines, "BATCH_ROWS", 3)
    batches = list(table.batches(list(FIELDS)))
    assert [len(batch) for batch in batches] == [3, 3, 1, 3]
    assert pl.concat(batches).equals(whole)


def test_one_file_of_several(tmp_path: Path) -> None:
    table = opened(tmp_path, GOOD, GOOD * 2)
    assert [batch[FILE].to_list() for batch in table.batches(["user"], only=["part-1.json"])] == [[1, 1]]
    with pytest.raises(DataError, match=r"has no file 'part-9\.json'"):
        list(table.batches(["user"], only=["part-9.json"]))
    with pytest.raises(DataError, match="missing column 'usr'"):
        table.collect(["usr"])


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert opened(tmp_path, b"").collect(["user", "at"]).schema["at"] == pl.Int64


ODD_LINES = [
    b'{"user": "a", "user": "b"}',
    b'{"user": 7}',
    b'{"at": 5.0}',
    b'{"at": 5.5}',
    b'{"stars": 5}',
    b'{"stars": 05}',
    b'{"stars": NaN}',
    b'{"stars": Infinity}',
    b'{"stars": 1e999}',
    b'{"stars": true}',
    b'{"verified": "true"}',
    b'{"user": "\\ud83d"}',
    b'{"user": "\\ud83d\\ude00 \\u00e9"}',
    b'{"user": "caf\xe9"}',
    b'{"other": "caf\xe9"}',
    b'{"user": "a"}{"user": "b"}',
    b'{"user": "a"\n, "stars": 5}',
    b'{"user": {}\n}',
    b'{"other": {}\n, "more": {}}',
    b'{"user": "a"} x',
    b'{"user": "a",}',
    b'{"user": "a\tb"}',
    b'{"user": "2018-01-01"}',
    b'{"at": 9223372036854775807}',
    b'{"at": 9223372036854775808}',
    b'{"stars": 123456789012345678901234567890}',
    b'{"other": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b"{}",
    b'{"stars": 0.1, "at": -0}',
]


@pytest.mark.parametrize("odd", [*ODD_LINES, b'{"user": "a"}{"user": "b"}\n{"other": {}\n, "more": {}}'])
def test_reading_all_lines_at_once_and_one_by_one_is_the_same(
    tmp_path: Path, odd: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two objects on a line and one over two lines have the right count together; they are still found."""
    table = opened(tmp_path, GOOD + odd + b"\n" + GOOD)
    at_once = table.collect(list(FIELDS))
    monkeypatch.setattr(json_lines, "parse_all", lambda lines, fields: None)
    one_by_one = table.collect(list(FIELDS))
    assert at_once.equals(one_by_one)
    assert at_once["user"].to_list()[0] == "u7"


def test_well_formed_lines_are_read_at_once() -> None:
    found = json_lines.parse_all([GOOD.strip()] * 3, FIELDS)
    assert found is not None
    assert found.rows() == [("u7", 4.0, 1_650_000_000, True)] * 3
    assert json_lines.parse_all([GOOD.strip(), b"{broken}"], FIELDS) is None


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
records = st.dictionaries(
    st.sampled_from([*FIELDS, "other"]), st.one_of(values, st.lists(values, max_size=2)), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.one_of(records, st.just("{broken"), st.just("   ")), max_size=12), packed=st.booleans())
def test_every_line_is_a_row_a_refusal_or_blank(lines: list[Any], packed: bool, tmp_path_factory: Any) -> None:
    """Rows in their order as a naive reader sees them: what it takes over unchanged, or why it does not."""
    folder = tmp_path_factory.mktemp("lines")
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    content = "\n".join(texts).encode()
    (folder / "log.json").write_bytes(gzip.compress(content) if packed else content)
    found = JsonLinesTable([folder / "log.json"], folder, FIELDS, "log").collect(list(FIELDS))
    assert found[ROW].to_list() == [number for number, text in enumerate(texts) if text.strip()]
    for row in found.iter_rows(named=True):
        line = lines[row[ROW]]
        if line == "{broken":
            assert row[REFUSED] == "the line is not valid JSON"
            continue
        expected = {name: line.get(name) for name in FIELDS}
        kept = {name: row[name] for name in FIELDS}
        assert kept == expected if row[REFUSED] is None else any(name in row[REFUSED] for name in line)
