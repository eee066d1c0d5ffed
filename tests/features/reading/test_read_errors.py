"""What cannot be read is refused by its kind, with its own way out; "fetch it again" is for files that were cut off."""

import gzip
import re
from pathlib import Path

import polars as pl
import pytest

from features.reading import TextFormat, open_parquet, open_text
from features.reading.errors import closest, probable_encoding
from features.reading.text_lines import LineScanner
from recsys.contracts.errors import DataError

AGAIN = "fetch it again$"


def text_error(tmp_path: Path, content: bytes, text: TextFormat | None = None, name: str = "t.csv") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_text([path], tmp_path, text).collect([])
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "line", "byte", "encoding"),
    [
        ("a,b\n1,café\n".encode("latin-1"), 2, 9, "latin-1"),
        ("a,b\n1,2\n3,it’s\n".encode("cp1252"), 3, 12, "cp1252"),
        ("a,é\n1,2\n".encode("latin-1"), 1, 2, "latin-1"),
        ("a,b\n1,é\n".encode("utf-16"), 1, 0, "utf-16"),
        ("a,b\n1,é\n".encode("utf-16-le"), 1, 1, "utf-16-le"),
        ("a,b\n1,é\n".encode("utf-16-be"), 1, 0, "utf-16-be"),
        ("a,b\n1,é\n".encode("utf-32"), 1, 0, "utf-32"),
        (b"a,b\n1,caf\xc3", 2, 9, "latin-1"),
    ],
)
def test_another_encoding_is_named_with_line_byte_and_key(
    tmp_path: Path, content: bytes, line: int, byte: int, encoding: str
) -> None:
    message = text_error(tmp_path, content)
    assert f"line {line}, byte {byte} is 0x" in message
    assert f"set source.encoding: {encoding}, or convert it with `iconv -f " in message
    assert message.endswith("fetching it again does not help")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Привет", "cp1251"), ("кино", "koi8-r"), ("日本語", "shift_jis"), ("中文商品", "gb18030"), ("영화", "euc_kr")],
)
def test_other_scripts_are_not_taken_for_western(tmp_path: Path, text: str, encoding: str) -> None:
    content = f"a,b\n1,{text}\n".encode(encoding)
    assert "It is probably not Western text: declare what it was written in as source.encoding" in text_error(
        tmp_path, content
    )
    (tmp_path / "t.csv").write_bytes(content)
    table = open_text([tmp_path / "t.csv"], tmp_path, TextFormat(encoding=encoding))
    assert table.collect(["b"])["b"].to_list() == [text]


def test_a_file_that_ends_inside_of_a_character_was_cut_off(tmp_path: Path) -> None:
    message = text_error(tmp_path, "a,b\n1,é\n2,é".encode()[:-1])
    assert message.endswith("ends inside of a character: it is cut off, fetch it again")


@pytest.mark.parametrize(
    ("content", "encoding", "shown"),
    [
        (b"a,b\n1,\x81\n", "cp1252", "line 2, byte 6 is 0x81"),
        ("a,b\n1,é\n".encode("utf-16-le")[:-1], "utf-16-le", "is not valid utf-16-le"),
        ("a,b\n1,é\n".encode("utf-16"), "latin-1", "It is probably utf-16"),
        ("a,b\n1,café\n".encode(), "latin-1", "is UTF-8, and source.encoding declares latin-1: line 2 has 'é', which"),
        ("a,b\n1,it’s\n".encode(), "cp1252", "would be read as 'â€™'; set source.encoding: utf-8"),
        ("a,b\n1,é\n".encode("utf-16-le"), "utf-16", "does not start with BOM); set source.encoding: utf-16-le"),
        ("a,b\n1,é\n".encode("utf-16-be"), "utf-16", "does not start with BOM); set source.encoding: utf-16-be"),
        ("a,b\n1,é\n".encode("utf-32-le"), "utf-32", "does not start with BOM); set source.encoding: utf-32-le"),
        ("a,b\n1,é\n".encode("utf-32-be"), "utf-8", "It is probably utf-32-be"),
        ("a,b\n1,é\n".encode("utf-32-le"), "latin-1", "It is probably utf-32-le"),
        (b"a,b\n1,2\n", "undefined", "(undefined encoding); set source.encoding: utf-8"),
    ],
)
def test_a_declared_encoding_that_does_not_fit(tmp_path: Path, content: bytes, encoding: str, shown: str) -> None:
    message = text_error(tmp_path, content, TextFormat(encoding=encoding))
    assert shown in message


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n \n\r\n", "not even a header"),
        (b"PAR1....", "it is a Parquet file; give it the ending .parquet"),
        (b"PK\x03\x04....", "a ZIP archive .or a spreadsheet.; unpack it"),
        (b"\x28\xb5\x2f\xfd...", "compressed with zstd; unpack it"),
        (b'{"user_id": 1, "item_id": 2}\n', "holds JSON; convert it to CSV or Parquet"),
        (b"\xef\xbb\xbf <!DOCTYPE html>\n<html>", "is a page in HTML or XML"),
        (b"SQLite format 3\0...", "an SQLite database"),
        (b'a,"b\n1,2\n', "a quote in the header is not closed"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 9999, mtime=0)[:-9], f"cut off or damaged.*{AGAIN}"),
        (b"a;b\n1;2\n", "set source.separator: ';'"),
        (b"a\tb\n1\t2\n", r'set source.separator: "\\t"'),
        (b"a\x01b\n1\x012\n", r'set source.separator: "\\u0001"'),
        (b"a|b\n1|2\n", r"set source.separator: '\|'"),
        (b"a::b\n1::2\n", "set source.separator: '::'"),
    ],
)
def test_what_is_no_table_says_what_it_is(tmp_path: Path, content: bytes, shown: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=shown):
        open_text([path], tmp_path).collect([])


def test_a_file_without_line_ends_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.reading.text_bytes.LONGEST_LINE", 1 << 20)
    monkeypatch.setattr("features.reading.text.BLOCK_BYTES", 1 << 16)
    assert "has a line of more than 1 MB" in text_error(tmp_path, b"a,b\n1,2\n" + b"x" * (1 << 21))


def test_a_name_that_stands_twice_matters_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,rating,,rating,\n1,2,3,4,5\n")
    table = open_text([path], tmp_path)
    assert table.collect(["id"])["id"].to_list() == ["1"]
    with pytest.raises(DataError, match="column 'rating' stands 2 times in the header"):
        table.collect(["rating"])


def test_a_parser_that_loses_a_record_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,2\n3,4\n")
    true_read = pl.read_csv
    monkeypatch.setattr(pl, "read_csv", lambda *args, **kwargs: true_read(*args, **kwargs).head(1))
    with pytest.raises(DataError, match=r"t.csv': 2 records were counted from line 2 on, and the parser gave 1"):
        open_text([path], tmp_path).collect(["a"])


def test_a_line_that_was_not_settled_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,2\n3,4\n")
    true_scan = LineScanner.scan

    def forgetful(self, data: bytes, *, final: bool):
        return true_scan(self, data[: data.index(b"\n") + 1], final=final)

    monkeypatch.setattr(LineScanner, "scan", forgetful)
    with pytest.raises(
        DataError, match=r"t.csv': the file has 3 lines, and 2 of them were settled; no line may be lost"
    ):
        open_text([path], tmp_path).collect(["a"])


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, -40, -1])
def test_a_parquet_file_that_was_cut_off(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": list(range(1000))}).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(
        whole[: int(len(whole) * keep) if keep == 0.5 else int(keep) if keep >= 0 else len(whole) + int(keep)]
    )
    with pytest.raises(DataError, match=r"t.parquet' (cannot be read: .*fetch it again|is empty \(0 bytes\))"):
        open_parquet([path], tmp_path)


@pytest.mark.parametrize("opener", [open_text, open_parquet])
def test_permission_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a,b\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match="no permission; allow reading with `chmod"):
        opener([path], tmp_path)


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("us\u00e9r", ["use\u0301r", "item"], "'use\u0301r' is there with its accents written in another way"),
        ("user", ["u" * 1000], f"columns there: {'u' * 80}…$"),
        ("user", [f"c{place}" for place in range(300)], "c59 and 240 others$"),
        ("usre", ["user"], r"^did you mean 'user'\? columns there: user$"),
    ],
)
def test_columns_that_exist_are_named_briefly(name: str, known: list[str], said: str) -> None:
    assert re.search(said, closest(name, known))


@pytest.mark.parametrize(
    ("start", "bad", "expected"),
    [
        (b"caf\xe9", b"", "latin-1"),
        (b"caf\xa0", b"", "latin-1"),
        (b"caf\x9f", b"", "cp1252"),
        (b"caf\x80", b"", "cp1252"),
        (b"caf\xe9", b"\x92", "cp1252"),
        (b"plain\x7f", b"", "latin-1"),
        (b"\xd0\xbf\xd1\x80 x\xe9", b"", None),  # four of five in a run
        (b"\xd0\xbf\xd1 a\xe9 b\xe9 c\xe9", b"", "latin-1"),  # three of six: not more than half
        (b"a\0" * 8, b"", "utf-16-le"),
        (b"\0a" * 8, b"", "utf-16-be"),
    ],
)
def test_encodings_are_told_by_where_high_bytes_stand(start: bytes, bad: bytes, expected: str | None) -> None:
    assert probable_encoding(start, bad) == expected
