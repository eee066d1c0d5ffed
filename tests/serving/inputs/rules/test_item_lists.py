"""Files of business rules as people and spreadsheets write them: what cannot be seen makes no other item of an id."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.contracts.errors import DataError
from serving.inputs.rules.item_lists import read_item_list, read_rule_table

TEXTS = pl.Series(["A1", "007", "# 5", "item 9", "NA", "B,2"])
NUMBERS = pl.Series([7, 8, 9])


def ids_of(path: Path, content: str | bytes, known: pl.Series) -> list[object]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_item_list(path, known.dtype, known).to_list()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("A1\n007\n", ["A1", "007"]),
        ("\ufeffA1\n007\n", ["A1", "007"]),
        ("A1 \r\n 007\t\r\n", ["A1", "007"]),
        ("A1\u200b\n\u00a0007\u2060\n", ["A1", "007"]),
        ("\"A1\"\n'007'\n", ["A1", "007"]),
        ('\ufeff"A1" \n', ["A1"]),
        ("item_id\nA1\n", ["A1"]),
        ("# recalled in May\nA1\n# end\n", ["A1"]),
        ("# 5\nA1\n", ["# 5", "A1"]),
        ("item 9\n\n\nA1", ["item 9", "A1"]),
        ("A1\nA1 \nA1\u200b\n", ["A1"]),
        ("NULL\nnan\nA1\n", ["A1"]),
        ("NA\n", ["NA"]),
        ("B,2\n", ["B,2"]),
        ('"a ""quoted"" one"\n', ['a "quoted" one']),
        ("", []),
    ],
)
def test_plain_text(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert ids_of(tmp_path / "deny.txt", content, TEXTS) == expected


@pytest.mark.parametrize(
    "content",
    [
        "item_id\nA1\n007\n",
        "\ufeffitem_id\nA1\n007\n",
        '\ufeff"item_id","why"\r\n"A1","recall"\r\n"007 ","x"\r\n',
        " item_id ,why\nA1 ,x\n\t007,y\n",
        "why,item_id\nx,A1\u200b\nx,NULL\nx,\nx,007\n",
        "item_id\u200b\nA1\n007\n",
    ],
)
def test_csv(tmp_path: Path, content: str) -> None:
    assert ids_of(tmp_path / "deny.csv", content, TEXTS) == ["A1", "007"]
    assert ids_of(tmp_path / "DENY.CSV", content, TEXTS) == ["A1", "007"]


@pytest.mark.parametrize("content", ["7\n8\n", "\ufeff7\r\n8 \r\n", "# two\n'7'\n\u200b8\n", "item_id\n7\n8\nNULL\n"])
def test_integers(tmp_path: Path, content: str) -> None:
    assert ids_of(tmp_path / "deny.txt", content, NUMBERS) == [7, 8]


@pytest.mark.parametrize(
    ("name", "content", "known", "message"),
    [
        ("deny.csv", "A1\n007\n", TEXTS, "expected 'item_id'; the first line of a CSV file names its columns"),
        ("deny.csv", "item_id;why\nA1;x\n", TEXTS, "has the columns ['item_id;why'], expected 'item_id'"),
        ("deny.csv", "", TEXTS, "is empty; its first line is to name the columns"),
        ("deny.txt", "7\nA1\n", NUMBERS, "column 'item_id' is to hold Int64, and 1 values do not, the first is 'A1'"),
        ("deny.txt", "7.5\n", NUMBERS, "and 1 values do not, the first is '7.5'"),
        (
            "deny.csv",
            "item_id\n99999999999999999999\n",
            NUMBERS,
            "and 1 values do not, the first is '99999999999999999999'",
        ),
        ("deny.txt", "A1\n".encode("utf-16"), TEXTS, "give UTF-8 text, one id per line"),
        ("deny.parquet", b"PAR1", TEXTS, "cannot be read"),
    ],
)
def test_what_is_no_list_is_refused_by_name(
    tmp_path: Path, name: str, content: str | bytes, known: pl.Series, message: str
) -> None:
    with pytest.raises(DataError) as refused:
        ids_of(tmp_path / name, content, known)
    assert message in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("ids", "known", "message"),
    [
        (pl.Series([7, 8]), TEXTS, "is to hold String, found Int64; give ids of the same type"),
        (pl.Series([7.0]), TEXTS, "is to hold String, found Float64"),
        (pl.Series([True]), NUMBERS, "are Boolean, expected integers or text"),
        (pl.Series([[7]]), NUMBERS, "are List"),
        (pl.Series([2**63], dtype=pl.UInt64), NUMBERS, "does not fit into 64 bits"),
    ],
)
def test_parquet_of_another_type(tmp_path: Path, ids: pl.Series, known: pl.Series, message: str) -> None:
    path = tmp_path / "deny.parquet"
    pl.DataFrame({"item_id": ids}).write_parquet(path)
    with pytest.raises(DataError) as refused:
        read_item_list(path, known.dtype, known)
    assert message in str(refused.value)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.UInt64, pl.Float64])
def test_parquet_of_any_whole_number(tmp_path: Path, dtype: type[pl.DataType]) -> None:
    pl.DataFrame({"item_id": pl.Series([7, 8, None]).cast(dtype)}).write_parquet(tmp_path / "deny.parquet")
    assert read_item_list(tmp_path / "deny.parquet", pl.Int64(), NUMBERS).to_list() == [7, 8]


def test_tables_lose_the_same(tmp_path: Path) -> None:
    """A rule named `none` is a rule and no null marker; an empty item is none."""
    path = tmp_path / "rules.csv"
    path.write_text('\ufeffsegment,"item_id ",rule\r\n eu ,A1\u200b,allow \r\nus,,none\r\n')
    table = read_rule_table(path, {"segment": pl.String(), "item_id": pl.String(), "rule": pl.String()})
    assert table.rows() == [("eu", "A1", "allow"), ("us", None, "none")]


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids_of(tmp_path / "deny.csv", "item_id\nNULL\nA1\nnan\n", TEXTS)
    assert "2 of 3 entries are empty or null markers; they were left out" in caplog.text


def test_only_the_first_line_is_a_heading(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("item_id\nA1\nitem_id\n")
    assert read_item_list(tmp_path / "list.txt", pl.String()).to_list() == ["A1", "item_id"]
