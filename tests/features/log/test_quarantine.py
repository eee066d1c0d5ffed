"""Refused rows: the first reason that applies, everything that was read, and the limit."""

import polars as pl
import pytest

from features.log.quarantine import QuarantineConfig, check_share
from recsys.contracts.errors import DataError
from tests.toy.logs import START, read_rows


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
