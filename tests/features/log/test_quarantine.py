"""Refused rows: the first reason that applies, everything that was read, and the limit."""

from datetime import UTC, datetime

import polars as pl
import pytest

from features.log.encode import read_log
from features.log.quarantine import QuarantineConfig, check_share
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US
from tests.toy.logs import START, raw_tables, read_rows


def test_bad_rows_get_the_first_reason_that_applies() -> None:
    read = read_rows(
        {
            "user_id": [None, 7, 7, 7, 7, 7],
            "item_id": [None, None, 1, 1, 1, 1],
            "timestamp": [START, START, None, 12, START, START],
            "watch_time_ms": pl.Series([1.0, 1.0, 1.0, 1.0, -1.0, None], dtype=pl.Float32),
            "like": [True, None, False, True, True, True],
        },
        ("like",),
    )
    assert read.log.record.tolist() == [5]
    expected = ["null user_id", "null item_id", "null timestamp", "implausible timestamp", "negative watch_time_ms"]
    assert read.refused["reason"].to_list() == expected
    assert read.refused["row"].to_list() == [0, 1, 2, 3, 4]
    assert read.refused["like"].to_list() == [True, None, False, True, True]
    assert read.refused["file"].to_list() == ["log"] * 5
    first = r"null user_id: 1, first in 'log', row 0"
    with pytest.raises(DataError, match=r"5 of 6 rows \(83.3%\) are unusable, allowed are 5.0%.*" + first):
        check_share(read.refused, 6, QuarantineConfig())


def test_what_the_reader_refused_keeps_its_reason_and_its_look() -> None:
    read = read_rows(
        {
            "user_id": ["u", None],
            "item_id": ["i", None],
            "timestamp": [START, None],
            "refused": [None, "3 fields, expected 4"],
            "raw": [None, "u,i,1"],
        }
    )
    assert len(read.log) == 1
    assert read.refused.select("row", "reason", "raw").rows() == [(1, "3 fields, expected 4", "u,i,1")]


def test_the_last_allowed_instant_and_the_share_that_is_just_allowed() -> None:
    """Of START - 1, START and START + 1 us one is after START; one of three rows is exactly a third."""
    limit = datetime.fromtimestamp(START / 1e6, UTC)
    rows = {"user_id": [7] * 3, "item_id": [1, 2, 3], "timestamp": [START - 1, START, START + 1]}
    config = QuarantineConfig(max_share=1 / 3, not_after=limit)
    read = read_log(raw_tables(rows), config, need_session_id=False)
    assert read.refused.select("row", "reason").rows() == [(2, f"timestamp after {limit.isoformat()}")]
    check_share(read.refused, 3, config)
    with pytest.raises(DataError, match="1 of 3 rows"):
        check_share(read.refused, 3, QuarantineConfig(max_share=0.333))


def test_the_first_and_the_last_plausible_instant_are_kept() -> None:
    times = [EARLIEST_US - 1, EARLIEST_US, LATEST_US, LATEST_US + 1]
    read = read_rows({"user_id": [7] * 4, "item_id": [1] * 4, "timestamp": times})
    assert read.log.record.tolist() == [1, 2]
    assert read.refused["reason"].to_list() == ["implausible timestamp"] * 2


@pytest.mark.parametrize("column", ["watch_time_ms", "duration_ms"])
def test_no_time_at_all_is_no_negative_time(column: str) -> None:
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 3, 4], "timestamp": [START] * 4}
    read = read_rows(rows | {column: pl.Series([0.0, -0.001, None, 1.0], dtype=pl.Float32)})
    assert read.refused.select("row", "reason").rows() == [(1, f"negative {column}")]


def test_timed_rows_need_a_session_and_rows_of_the_prehistory_a_place() -> None:
    """Row 0 is timed without a session, row 2 is early without a place; rows 1 and 3 have what they need and no more."""
    rows = {
        "user_id": [7] * 4,
        "item_id": [1, 2, 3, 4],
        "prehistory": [False, False, True, True],
        "timestamp": [START, START, None, None],
        "position": [1, None, None, 1],
        "session_id": [None, "s", None, None],
    }
    read = read_rows(rows, need_session_id=True)
    assert read.refused.select("row", "reason").rows() == [(0, "null session_id"), (2, "null position")]


def test_the_refusal_names_the_ten_most_frequent_reasons_and_where_each_is_met_first() -> None:
    """Reasons 'r0' to 'r11', of which r5 is met three times, first in row 5, and r7 twice."""
    reasons = [f"r{number}" for number in range(12)] + ["r5", "r7", "r5"]
    read = read_rows(
        {
            "user_id": pl.Series([None] * 15, dtype=pl.Int64),
            "item_id": pl.Series([None] * 15, dtype=pl.Int64),
            "timestamp": pl.Series([None] * 15, dtype=pl.Int64),
            "refused": reasons,
        }
    )
    with pytest.raises(DataError) as error:
        check_share(read.refused, 15, QuarantineConfig())
    said = str(error.value)
    assert "(r5: 3, first in 'log', row 5 (from 0); r7: 2, first in 'log', row 7 (from 0); r0: 1, first" in said
    assert "r9: 1, first in 'log', row 9 (from 0); and 2 more reasons)" in said
