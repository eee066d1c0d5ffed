"""Text tables against a naive reader: the same fields, the same order, whatever the quoting and the size of a block."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.reading import FILE, RAW, REFUSED, ROW, TextFormat, open_text
from features.sources.typed_table import TypedTable
from recsys.contracts.errors import DataError
from recsys.contracts.plain_text import SURROUNDINGS

FIELD = st.text(alphabet="ab éü\"',;|\n\t:#\u00a0", max_size=8)


def read(path: Path, text: TextFormat | None = None):
    table = open_text([path], path.parent, text)
    return table, table.collect(list(table.schema))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 10**25).map(str), FIELD, FIELD), max_size=12),
    separator=st.sampled_from([",", "\t", ";", "|", "::", "<>"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    block=st.sampled_from([5, 40, 1 << 20]),
    ended=st.booleans(),
)
def test_a_written_table_comes_back(tmp_path: Path, rows, separator, quoting, line_end, block, ended) -> None:
    """The first column is a number in every record, as the first one shows, so no line of a text is taken for a record."""
    rows = [("1", "x", "y"), *rows]
    if separator == "::":  # a field that ends in one colon is written in quotes, or nobody can tell
        quoting = csv.QUOTE_ALL
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter="\x1e" if len(separator) > 1 else separator, quoting=quoting, lineterminator=line_end
    )
    writer.writerows([("id", "first", "second"), *rows])
    content = out.getvalue().replace("\x1e", separator)
    path = tmp_path / "t.csv"
    path.write_bytes((content if ended else content.removesuffix(line_end)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("features.reading.text.BLOCK_BYTES", block)
        _, frame = read(path, TextFormat(separator=separator))
    assert frame[REFUSED].null_count() == len(rows), frame
    wanted = [tuple(value or None for value in row) for row in rows]  # an empty field is null or an empty text
    assert [tuple(value or None for value in row) for row in frame.select("id", "first", "second").rows()] == wanted
    assert frame[ROW].is_sorted()


@pytest.mark.parametrize("block", [1, 3, 16, 1 << 20])
def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Lines: 1 header, 2 and 3 one record, 4 blank, 5 unclosed, 6 to 8 records (the last with a separator inside)."""
    path = tmp_path / "t.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n\n2,"open\n3,"a ""b"" c"\n4,27" wide\n5,"x,y"')
    monkeypatch.setattr("features.reading.text.BLOCK_BYTES", block)
    table, frame = read(path)
    assert frame.select("id", "text", ROW, REFUSED).rows() == [
        ("1", "two\nlines", 1, None),
        (None, None, 4, "a quote is not closed"),
        ("3", 'a "b" c', 5, None),
        ("4", '27" wide', 6, None),
        ("5", "x,y", 7, None),
    ]
    assert table.notes == {"malformed_lines": 1, "blank_lines": 1, "records_over_several_lines": 1}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfid,text\n7,caf\xc3\xa9\n", None),
        (b"id,text\r\n7,caf\xc3\xa9", None),
        (b"id,text\r7,caf\xc3\xa9\r", None),
        (b' id ,"text"\n7,caf\xc3\xa9\n', None),
        (b"\xc2\xa0id,text\xe2\x80\x8b\n7,caf\xc3\xa9\n", None),
        (b"sep=;\r\nid;text\r\n7;caf\xc3\xa9\r\n", TextFormat(separator=";")),
        (b"\n\nid,text\n7,caf\xc3\xa9\n", None),
        (b"id;text\n7;caf\xe9\n", TextFormat(separator=";", encoding="latin-1")),
        ("id\ttext\n7\tcafé\n".encode("utf-16"), TextFormat(separator="\t", encoding="utf-16")),
        ("id§text\n7§café\n".encode(), TextFormat(separator="§")),
        (b"id \xc2\xa6\xc2\xa6 text\n7 \xc2\xa6\xc2\xa6 caf\xc3\xa9\n", TextFormat(separator=" ¦¦ ")),
        (b"7::caf\xc3\xa9\n", TextFormat(separator="::", header=("id", "text"))),
        (gzip.compress(b"id,text\n7,caf\xc3\xa9\n", mtime=0), None),
        (gzip.compress(b"id,text\n", mtime=0) + gzip.compress(b"7,caf\xc3\xa9\n", mtime=0), None),
    ],
)
def test_forms_of_the_same_table(tmp_path: Path, content: bytes, text: TextFormat | None) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert read(path, text)[1].drop(FILE, ROW, REFUSED, RAW).to_dicts() == [{"id": "7", "text": "café"}]


@pytest.mark.parametrize("content", [b"id,text", b"id,text\n", b"id,text\r\n\r\n", b"\xef\xbb\xbfid,text\n"])
def test_a_header_alone_is_a_table_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table, frame = read(path)
    assert list(table.schema) == ["id", "text"]
    assert len(frame) == 0


@pytest.mark.parametrize(
    ("content", "separator", "plain"),
    [
        (b"id,text\n7,a-b\n8,c_d!\n", ",", True),
        (b'id,text\n7,"a,b"\n8,c\n', ",", True),
        (b"id\ttext\n7\ta\n8\tb\n", "\t", True),
        (b"id,text\n7,a\n8,b", ",", True),
        (b"id,text\n7, a\n8,b\n", ",", False),
        (b"id,text\n7,a\n8,b c\n", ",", False),
        (b"id,text\r\n7,a\r\n8,b\r\n", ",", False),  # it may be: that is looked at value by value
        (b"id,text\n7,caf\xc3\xa9\n", ",", False),
        (b"id,text\n7,a\n8\n9,b\n", ",", False),
        (b'id,text\n7,"a\nb"\n', ",", False),
        (b'id\ttext\n7\t"\ta"\n', "\t", False),
        (b"id,text\n7,a\x1f\n", ",", False),
        (b"id,text\n7,\n8,b\n", ",", True),
    ],
)
def test_a_table_says_whether_its_values_hold_visible_characters_only(
    tmp_path: Path, content: bytes, separator: str, plain: bool
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table = open_text([path], tmp_path, TextFormat(separator=separator))
    assert not table.plain
    assert [table.plain for _ in table.batches(["id", "text"])] == [plain]
    assert TypedTable(table, {"id": "integer"}, ()).plain == plain


def test_the_name_of_a_folder_is_no_value_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "day= 1 " / "t.csv"
    path.parent.mkdir()
    path.write_bytes(b"id,text\n7,a\n")
    table = open_text([path], tmp_path)
    assert [table.plain for _ in table.batches(["id", "day"])] == [False]
    assert [table.plain for _ in table.batches(["id", "text"])] == [True]


@given(
    rows=st.lists(
        st.tuples(*[st.text(st.sampled_from('7a" \t\u00a0,;é\x1f'), max_size=3)] * 2), min_size=1, max_size=4
    ),
    separator=st.sampled_from([",", "\t", " ", " ; "]),
    quoted=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_to_be_stripped_of_plain_values(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str, quoted: bool
) -> None:
    path = tmp_path / "t.csv"
    lines = [[f'"{value.replace(chr(34), chr(34) * 2)}"' if quoted else value for value in row] for row in rows]
    path.write_text("\n".join(separator.join(row) for row in [["id", "text"], *lines]) + "\n", encoding="utf-8")
    table = open_text([path], tmp_path, TextFormat(separator=separator))
    try:
        for batch in table.batches(["id", "text"]):
            for name in ("id", "text"):
                if table.plain:
                    assert batch[name].str.strip_chars(SURROUNDINGS).equals(batch[name])
    except DataError:
        pass  # not one line is a record
