"""Rows: the first reason counts, what stood there is kept, and what the reader of the file refused stays refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl

from features import reading
from features.sources import TableSource
from features.sources.base import FILE, PREHISTORY, RAW, REFUSED, ROW
from features.sources.columns.ids import IdReader
from features.sources.columns.numbers import NumberReader
from features.sources.columns.rows import RowReader, as_json

START = 1_700_000_000


def reader() -> RowReader:
    users = IdReader("user", "user_id", pl.String(), "log.csv", declared="integer")
    items = IdReader("item", "item_id", pl.String(), "log.csv")
    return RowReader([users, items, NumberReader("at", "position", pl.Int64(), pl.String(), "log.csv")], ("log.csv",))


def batch(*rows: tuple[str | None, str | None, str | None], line: str | None = None) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "at": pl.String}, orient="row")
    return table.with_columns(
        pl.lit(0, pl.Int32).alias(reading.FILE),
        pl.int_range(1, len(rows) + 1, dtype=pl.Int64, eager=True).alias(reading.ROW),
        pl.lit(None if line is None else "too few fields", pl.String).alias(reading.REFUSED),
        pl.lit(line, pl.String).alias(reading.RAW),
    )


def test_a_row_has_one_reason_and_what_stood_there() -> None:
    rows = reader().read(batch(("7", "a", "1"), ("x", "NULL", "soon"), ("8", "", "2"), ("9", "b", "soon")))
    assert rows[REFUSED].to_list() == [None, "user is not an integer", "null item_id", "at is not a number"]
    assert rows[RAW].to_list()[0] is None
    assert json.loads(rows[RAW][1]) == {"user": "x", "item": "NULL", "at": "soon"}
    assert rows["user_id"].to_list() == [7, None, 8, 9]
    assert rows["position"].to_list() == [1, None, 2, None]
    assert rows.schema == reader().schema
    assert rows.columns[:5] == [FILE, ROW, PREHISTORY, REFUSED, RAW]


def test_a_line_that_is_no_record_keeps_its_own_reason() -> None:
    """Its columns are null, which is no reason of its own."""
    rows = reader().read(batch((None, None, None), line="7;a"))
    assert rows[REFUSED].to_list() == ["too few fields"]
    assert rows[RAW].to_list() == ["7;a"]


def test_any_value_can_be_written_as_json() -> None:
    table = pl.DataFrame(
        {
            "when": [datetime(2023, 1, 1, tzinfo=UTC)],
            "bytes": [b"a\xff"],
            "price": [Decimal("1.50")],
            "list": [[1, None]],
        }
    )
    assert json.loads(as_json(table)[0]) == {
        "when": "2023-01-01 00:00:00+00:00",
        "bytes": "a\\xff",
        "price": "1.50",
        "list": [1, None],
    }


def test_one_file_of_several_may_be_read_alone(tmp_path: Path) -> None:
    """Its place among the files and its rows are those of reading everything; the facts are its own."""
    for day, user in enumerate(["7", "NULL", "9"]):
        (tmp_path / f"day-{day}.csv").write_text(f"user_id,item_id,timestamp\n{user},a,{START + day}\n")
    stream = TableSource(path=tmp_path, interactions="day-*.csv", timestamp_unit="s").read(0).interactions
    whole = stream.collect()
    assert stream.files == ("day-0.csv", "day-1.csv", "day-2.csv")
    assert stream.facts["null_markers"] == {"user_id": {"NULL": 1}}
    alone = pl.concat(stream.batches(["day-2.csv"]))
    assert alone.equals(whole.filter(pl.col(FILE) == 2))
    assert "null_markers" not in stream.facts


def test_columns_without_a_part_stop_nothing(tmp_path: Path) -> None:
    """Of interactions, items and users, whatever they hold."""
    odd = {"struct": [{"a": 1}], "bytes": [b"\xff"], "nested": [[[1.5]]], "file": ["x"], "row": [None], "raw": [True]}
    base = {"user_id": [7], "item_id": [1], "timestamp": [START]}
    pl.DataFrame({**base, **odd}).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": [1], "title": ["One"], **odd}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user_id": [7], "country": ["at"], **odd}).write_parquet(tmp_path / "users.parquet")
    raw = TableSource(
        path=tmp_path,
        items="items.parquet",
        users="users.parquet",
        user_columns=["country"],
        item_columns={"title": ["title"]},
        timestamp_unit="s",
    ).read(0)
    assert raw.interactions.collect()["user_id"].to_list() == [7]
    assert raw.items is not None
    assert raw.items["title"].to_list() == ["One"]
    assert raw.users is not None
    assert raw.users.rows() == [(7, "at")]


def test_days_that_python_has_no_name_for_are_written_as_their_numbers() -> None:
    days = pl.Series("day", [19_700, 2**31 - 1], dtype=pl.Int32).cast(pl.Date)
    times = pl.Series("at", [0, 2**62]).cast(pl.Datetime("us"))
    known = pl.Series("known", [2_932_896, -719_162], dtype=pl.Int32).cast(pl.Date)
    nano = pl.Series("nano", [0, 2**62]).cast(pl.Datetime("ns"))
    far, near = as_json(pl.DataFrame([days, times])), as_json(pl.DataFrame([known, nano]))
    assert [json.loads(row) for row in far] == [
        {"day": 19700, "at": 0},
        {"day": 2**31 - 1, "at": 2**62},
    ]
    assert [json.loads(row)["known"] for row in near] == ["9999-12-31", "0001-01-01"]
    assert json.loads(near[1])["nano"].startswith("2116-")
