"""Text tables: every line is read right, or is refused with its number, or stops the run; none goes without a word."""

import tracemalloc
from pathlib import Path
from random import Random

import polars as pl
import pytest

from features.reading import FILE, LIKE_A_COMMENT, RAW, REFUSED, ROW, TextFormat, open_text, quoted_records
from features.reading.text_lines import LineScanner
from recsys.contracts.errors import DataError


def opened(tmp_path: Path, content: bytes, text: TextFormat | None = None):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    return open_text([path], tmp_path, text)


def rows_of(table, columns=None):
    return table.collect(columns or list(table.schema)).drop(FILE, ROW, REFUSED, RAW).rows()


def refused_of(table) -> list[tuple[int, str]]:
    """(line from 1, reason) of every refused record."""
    found = table.collect([]).drop_nulls(REFUSED)
    return [(row + 1, reason) for row, reason in found.select(ROW, REFUSED).iter_rows()]


@pytest.mark.parametrize(
    "value", ["007", "9e12", "true", "False", "12345678901234567890", "1.0", "+7", "0x10", "1_000", "é", " 7", "NULL"]
)
def test_values_come_as_they_are_written(tmp_path: Path, value: str) -> None:
    assert rows_of(opened(tmp_path, f"a,b\n{value},x\n".encode())) == [(value, "x")]


@pytest.mark.parametrize(
    ("content", "good", "refused"),
    [
        (b"a,b\n1,2\n3\n4,5\n", 2, [(3, "too few fields")]),
        (b"a,b\n1,2\n3,4,5\n4,5\n", 2, [(3, "too many fields")]),
        (b"a,b\n1,2\ntotal\n", 1, [(3, "too few fields")]),
        (b"a,b\n1,2\n# end of file", 1, [(3, LIKE_A_COMMENT)]),
        (b"a,b\n1,\0\n3,4\n", 1, [(2, "a NUL byte")]),
        (b"a,b\n1,2\na,b\n3,4\n", 2, [(3, "the header again")]),
        (b'a,b\n1,"x"y\n3,4\n', 1, [(2, "text behind a closing quote")]),
        (b'a,b\n1,2\n3,"so\n4,5\n6,7\n', 3, [(3, "a quote is not closed")]),
        (b'a,b\n1,2\n3,"so\n4,5\n6,nice"\n', 3, [(3, "a quote is not closed")]),
        (b'a,b\n1,x\n3,"so\n4,nice"\n5,y\n', 3, [(3, "a quote is not closed")]),
        (b'a,b\n1,2\n3,4\n5,"so', 2, [(4, "a quote is not closed")]),
        (b'a,b\n1,2\n"3,4\n"5,6\n', 1, [(3, "a quote is not closed"), (4, "a quote is not closed")]),
        (b'a,b\n1,"2,5",3\n3,4\n', 1, [(2, "too many fields")]),
        (b"a,b\r\n1,2\r\na,b\r\n3,4\r\n", 2, [(3, "the header again")]),
        # as many separators as the lines need, but not in the lines that need them
        (b"a,b\n1,2,3\n4\n5,6\n", 1, [(2, "too many fields"), (3, "too few fields")]),
        (b"a,b\n4\n1,2,3\n5,6\n", 1, [(2, "too few fields"), (3, "too many fields")]),
    ],
)
def test_a_malformed_line_is_refused_with_its_number_and_no_other_line_goes(
    tmp_path: Path, content: bytes, good: int, refused: list[tuple[int, str]]
) -> None:
    table = opened(tmp_path, content)
    assert len(rows_of(table)) == good + len(refused)
    assert refused_of(table) == refused


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"a,b\nza,b\n1,2\n", [("za", "b"), ("1", "2")]),  # ends like the header, and is not it
        (b"a,b\na,bz\n1,2\n", [("a", "bz"), ("1", "2")]),
        (b"a\r\n1\r\n\r\n2\r\n", [("1",), ("2",)]),  # one column: a blank line has as many separators as any
        (b'a,b\n1, "x,y"\n2,3\n', [("1", "x,y"), ("2", "3")]),  # no quote but behind a blank
        (b'a,b\n1,\t"x,y"\n2,3\n', [("1", "x,y"), ("2", "3")]),
    ],
)
def test_lines_that_only_look_odd_are_read(tmp_path: Path, content: bytes, rows: list[tuple]) -> None:
    table = opened(tmp_path, content)
    assert rows_of(table) == rows
    assert refused_of(table) == []


def test_a_quoted_field_that_never_seems_to_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 20 bytes: the quote of line 2 would swallow ten lines before one of another record closes it."""
    content = b'a,b\nx,"so\n' + b"y,z\n" * 10 + b'w,q"\n'
    assert len(rows_of(opened(tmp_path, content))) == 1
    monkeypatch.setattr(quoted_records, "LONGEST_RECORD", 20)
    table = opened(tmp_path, content)
    assert refused_of(table) == [(2, "a quote is not closed")]
    assert rows_of(table)[1:11] == [("y", "z")] * 10


def test_a_file_of_refused_lines_alone_stops_the_run(tmp_path: Path) -> None:
    """As R writes them: the names of the rows have no name in the header."""
    with pytest.raises(
        DataError, match=r"no line is a record. 'log.csv', line 2, is refused \(too many.*header has 2 names"
    ):
        opened(tmp_path, b"a,b\nx,1,2\ny,3,4\n").collect(["a"])


def test_a_wrong_separator_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is one column when it is split at ','; it looks split at ';': set source.sep"
    ):
        opened(tmp_path, b"a;b\n1;2\n")


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_no_line_that_was_left_alone_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Random quotes, separators and line ends in a quarter of the lines; the others come back, each as it was."""
    monkeypatch.setattr("features.reading.text.BLOCK_BYTES", block)
    random = Random(block)
    texts = {"x": "x", "": None, "é": "é", '"q"': "q", '"a,b"': "a,b", '27" w': '27" w'}
    for _ in range(30):
        lines, alone = [], {}
        for row in range(30):
            text = random.choice(list(texts))
            line = f"{random.randint(0, 99)},{text},{1_700_000_000 + row}"
            if row and random.random() < 0.25:
                place = random.randrange(len(line))
                line = line[:place] + random.choice(['"', ",", '""', ',"', '",', "\n", '"\n']) + line[place:]
            else:
                alone[str(1_700_000_000 + row)] = (line.partition(",")[0], texts[text])
            lines.append(line)
        table = opened(tmp_path, ("id,text,time\n" + "\n".join(lines) + "\n").encode())
        good = table.collect(["id", "text", "time"]).filter(pl.col(REFUSED).is_null())
        found = {time: (identity, text) for identity, text, time in good.select("id", "text", "time").rows()}
        assert {time: found.get(time) for time in alone} == alone


@pytest.mark.parametrize("inside", ["\n", "x\n", "some text, and more\n", "a,b,c,d\n"])
def test_a_field_of_very_many_lines_is_one_record(tmp_path: Path, inside: str) -> None:
    field = inside * 50_000
    table = opened(tmp_path, f'u,t,note\n1,2,x\n3,4,"{field}"\n5,6,y\n'.encode())
    assert rows_of(table) == [("1", "2", "x"), ("3", "4", field), ("5", "6", "y")]
    assert refused_of(table) == []


def test_line_ends_without_end_cost_little_more_than_their_arrays(tmp_path: Path) -> None:
    """A block of a million blank lines in quotes: arrays of 8 bytes a line, and no object of Python for each of them."""
    data = b'1,"' + b"\n" * 1_000_000 + b'"\n2,y\n'
    tracemalloc.start()
    scan = LineScanner(b",", b'"', 2).scan(data, final=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scan.lines.tolist(), scan.wrapped) == ([0, 1_000_001], 1)
    assert peak < 70 * len(data)
