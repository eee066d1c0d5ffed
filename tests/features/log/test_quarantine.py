"""Refused rows: the first reason that applies, everything that was read, and the limit."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from features.log.encode import read_log
from features.log.quarantine import QuarantineConfig, check_share
from features.refused import RefusedRows
from features.splits import SplitConfig
from recsys.config import FrozenConfig, validate
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_times import EARLIEST_US, LATEST_US, microseconds
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
    assert read.refused.table()["reason"].to_list() == expected
    assert read.refused.table()["row"].to_list() == [0, 1, 2, 3, 4]
    assert read.refused.table()["like"].to_list() == [True, None, False, True, True]
    assert read.refused.table()["file"].to_list() == ["log"] * 5
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
    assert read.refused.table().select("row", "reason", "raw").rows() == [(1, "3 fields, expected 4", "u,i,1")]


def test_the_last_allowed_instant_and_the_share_that_is_just_allowed() -> None:
    """Of START - 1, START and START + 1 us one is after START; one of three rows is exactly a third."""
    limit = datetime.fromtimestamp(START / 1e6, UTC)
    rows = {"user_id": [7] * 3, "item_id": [1, 2, 3], "timestamp": [START - 1, START, START + 1]}
    config = QuarantineConfig(max_share=1 / 3, not_after=limit)
    read = read_log(raw_tables(rows), config, need_session_id=False)
    assert read.refused.table().select("row", "reason").rows() == [(2, f"timestamp after {limit.isoformat()}")]
    check_share(read.refused, 3, config)
    with pytest.raises(DataError, match="1 of 3 rows"):
        check_share(read.refused, 3, QuarantineConfig(max_share=0.333))


def test_the_first_and_the_last_plausible_instant_are_kept() -> None:
    times = [EARLIEST_US - 1, EARLIEST_US, LATEST_US, LATEST_US + 1]
    read = read_rows({"user_id": [7] * 4, "item_id": [1] * 4, "timestamp": times})
    assert read.log.record.tolist() == [1, 2]
    assert read.refused.table()["reason"].to_list() == ["implausible timestamp"] * 2


@pytest.mark.parametrize("column", ["watch_time_ms", "duration_ms"])
def test_no_time_at_all_is_no_negative_time(column: str) -> None:
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 3, 4], "timestamp": [START] * 4}
    read = read_rows(rows | {column: pl.Series([0.0, -0.001, None, 1.0], dtype=pl.Float32)})
    assert read.refused.table().select("row", "reason").rows() == [(1, f"negative {column}")]


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
    assert read.refused.table().select("row", "reason").rows() == [(0, "null session_id"), (2, "null position")]


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


@pytest.mark.parametrize("max_share", [0.05, 1.0])
def test_a_log_without_a_usable_row_is_refused_for_that_whatever_is_allowed(max_share: float) -> None:
    """Raising the share would not help, and the k-core has nothing to do with it."""
    rows = {"user_id": [7, 7], "item_id": [1, 2], "timestamp": [12, 12]}
    read = read_log(raw_tables(rows), QuarantineConfig(), need_session_id=False)
    with pytest.raises(
        DataError, match=r"all 2 rows are unusable.*implausible timestamp: 2, first in 'log'.*mend"
    ) as refusal:
        check_share(read.refused, read.rows_in, QuarantineConfig(max_share=max_share))
    assert "max_share" not in str(refusal.value)
    check_share(read.refused, 3, QuarantineConfig(max_share=1.0))
    check_share(RefusedRows(read.refused.schema), 0, QuarantineConfig(max_share=0.0))


@pytest.mark.parametrize("value", ["soon", "2030-13-01", True, [1], "2030-01-32T00:00:00"])
@pytest.mark.parametrize(
    ("config", "key"),
    [(QuarantineConfig, "not_after"), (SplitConfig, "valid_from"), (SplitConfig, "test_from")],
)
def test_what_is_no_instant_is_told_what_one_looks_like(value: object, config: type[FrozenConfig], key: str) -> None:
    others = {"valid_from": "2022-01-01", "test_from": "2022-02-01"} if config is SplitConfig else {}
    with pytest.raises(ConfigError) as refusal:
        validate(config, {**others, key: value}, "recipe.yaml")
    assert str(refusal.value).startswith(f"config recipe.yaml: key '{key}' is {value!r}: expected a date such as")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["2030-01-31", date(2030, 1, 31), datetime(2030, 1, 31), None])
def test_dates_and_instants_are_taken(value: object) -> None:
    taken = validate(QuarantineConfig, {"not_after": value}, "recipe.yaml").not_after
    assert taken is None if value is None else taken is not None
    assert taken is None or microseconds(taken) == microseconds(date(2030, 1, 31))
