"""Refusals that name what is wrong and the way out, from the file to the message; each runs `prepare` on a small file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import TableSource
from recsys.contracts.errors import DataError
from tests.features.test_misread_inputs import EVENTS, cells, csv, prepared


@pytest.mark.parametrize(
    ("k_core", "message"),
    [
        ({}, r"none of 60 events is positive: source.positive asks for liked; .* is true in none of 60 rows.*'Yes'"),
        (
            {"k_core": {"user": 2, "item": 2}},
            r"none of 60 usable rows is positive, so the k-core .* check source.positive",
        ),
    ],
)
def test_a_log_without_a_positive_event_names_the_signals(k_core: dict, message: str, tmp_path: Path) -> None:
    liked = {"name": "liked", "column": "liked", "equals": "yes"}
    source = csv(tmp_path, cells(liked=["Yes"] * EVENTS), signals=[liked], positive=["liked"])
    with pytest.raises(DataError, match=message):
        prepare(source, FeaturesConfig(split={"kind": "leave_last_out"}, **k_core), tmp_path / "out", seed=0)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("%y-%m-%d", "declare source.timestamp_format: '%y-%m-%d' or '%d-%m-%y'"),
        ("%y-%m-%d %H:%M:%S", "nothing says which part is the day"),
        ("%d.%m.%y", r"declare source.timestamp_format: '%d.%m.%y'"),
        ("%y/%m/%d", "nothing says which part is the day"),
    ],
)
def test_a_year_of_two_digits_is_no_year_of_the_romans(form: str, message: str, tmp_path: Path) -> None:
    """23-11-14 is no day of the year 23."""
    stamps = [datetime(2023, 11, 14 + place % 9, 10).strftime(form) for place in range(EVENTS)]
    with pytest.raises(DataError, match=message):
        prepared(csv(tmp_path, cells(timestamp=stamps), timestamp_unit="datetime"), tmp_path)
    declared = csv(tmp_path, cells(timestamp=stamps), timestamp_unit="datetime", timestamp_format=form)
    assert prepared(declared, tmp_path)[0]["kept"] == EVENTS


@pytest.mark.parametrize("form", ["%H:%M", "%d/%m", "yyyy-MM-dd", "day %d at %H"])
def test_a_format_without_a_year_is_refused_with_the_recipe(form: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no year"):
        csv(tmp_path, cells(), timestamp_unit="datetime", timestamp_format=form)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.binary(4), r"column 'user_id' is fixed_size_binary\[4\], which cannot be read; write it as text"),
        (
            pa.struct([("a", pa.int64())]),
            "column 'user_id' is a struct, which cannot be read; write each of its fields",
        ),
        (pa.map_(pa.string(), pa.int64()), "column 'user_id' is a map"),
        (pa.duration("us"), "column 'user_id' is a duration"),
        (pa.time32("s"), "column 'user_id' is a time of day"),
        (pa.list_(pa.list_(pa.int8())), "write one list per row"),
    ],
    ids=str,
)
@pytest.mark.parametrize("part", ["user_id", "signal", "tie_break"])
def test_what_cannot_be_read_says_what_it_is_in_every_part(
    kind: pa.DataType, message: str, part: str, tmp_path: Path
) -> None:
    table = pl.DataFrame(cells()).to_arrow()
    name = "user_id" if part == "user_id" else "odd"
    declared = {
        "user_id": {},
        "signal": {"signals": [{"name": "liked", "column": "odd"}]},
        "tie_break": {"columns": {"tie_break": "odd"}},
    }[part]
    empty = pa.nulls(EVENTS, kind)
    table = table.set_column(0, name, empty) if name == "user_id" else table.append_column(name, empty)
    pq.write_table(table, tmp_path / "log.parquet")
    source = TableSource(path=tmp_path, interactions="log.parquet", timestamp_unit="s", **declared)
    with pytest.raises(DataError, match=message.replace("user_id", name)):
        prepared(source, tmp_path)


def test_a_column_of_parquet_that_stands_twice_says_so(tmp_path: Path) -> None:
    table = pl.DataFrame(cells()).to_arrow()
    pq.write_table(table.append_column("user_id", table["item_id"]), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="column 'user_id' is there more than once"):
        prepared(TableSource(path=tmp_path, interactions="log.parquet", timestamp_unit="s"), tmp_path)
