"""Numbers: watch times, positions and what orders ties."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from features.sources.columns.cells import ColumnReader, Parsed, Place
from features.sources.columns.numbers import NumberReader
from features.sources.columns.tie_breaks import TieBreakReader
from recsys.contracts.errors import DataError


def parse(reader: ColumnReader, raw: pl.Series) -> Parsed:
    place = Place(("log",), pl.zeros(len(raw), dtype=pl.Int32, eager=True), pl.int_range(len(raw), eager=True))
    return reader.read(raw, place)


def read(values: list | pl.Series, dtype: pl.DataType | None = None, scale: float = 1.0) -> Parsed:
    raw = pl.Series("seconds", values)
    return parse(NumberReader("seconds", "watch_time_ms", dtype or pl.Float32(), raw.dtype, "log", scale=scale), raw)


def test_seconds_become_milliseconds() -> None:
    """1.5 s are 1500 ms; NaN and a null marker are not known."""
    for values in ([1.5, float("nan")], ["1.5", "nan"], ["1.5", "NULL"], [" 1.5", ""]):
        parsed = read(values, scale=1000.0)
        assert parsed.values.to_list() == [1500.0, None]
        assert not parsed.refusals


COMMA = "seconds has a decimal comma or separators of thousands"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((value, "seconds is not a number") for value in ("12:30", "5s", "$5", "five", "1,,5", "1,5s")),
        *((value, COMMA) for value in ("1,5", "1.000,5", "-1,5e3", "1 000", "1'000'000", " 2,5 ")),
    ],
)
def test_what_is_no_number_refuses_its_row(value: str, reason: str) -> None:
    parsed = read(["1", value])
    assert parsed.values.to_list() == [1.0, None]
    assert [(one.reason, one.rows.to_list()) for one in parsed.refusals] == [(reason, [False, True])]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e39])
def test_what_a_column_cannot_hold_refuses_its_row(value: float) -> None:
    """Float32 ends at 3.4e38."""
    for values in ([1.0, value], ["1", str(value)]):
        parsed = read(values)
        assert parsed.values.to_list() == [1.0, None]
        assert [refusal.reason for refusal in parsed.refusals] == ["seconds is infinite or too large"]


def test_positions_are_whole_and_large_ones_are_refused() -> None:
    assert read(["1", "2.0", " 3 ", "4e0"], pl.Int64()).values.to_list() == [1, 2, 3, 4]
    parsed = read(pl.Series([1, 2**63], dtype=pl.UInt64), pl.Int64())
    assert parsed.values.to_list() == [1, None]
    assert [refusal.reason for refusal in parsed.refusals] == ["seconds is infinite or too large"]


@pytest.mark.parametrize("values", [[1.0, 2.5, 3.0], ["1", "2.5", "3.0"]])
def test_a_place_between_two_others_is_refused_and_not_rounded(values: list) -> None:
    """2.5 would be the place 2, and so would 1.5: an order that nobody gave."""
    parsed = read(values, pl.Int64())
    assert parsed.values.to_list() == [1, None, 3]
    assert [(one.reason, one.rows.to_list()) for one in parsed.refusals] == [
        ("seconds is not a whole number", [False, True, False])
    ]


def test_places_beyond_the_exact_floats_stay_apart() -> None:
    """Numbers of 64 bits made of a time and a counter, as many systems give them, written as text."""
    texts = ["1780000000000000001", " 1780000000000000002", "9223372036854775807", "-9007199254740993"]
    assert read(texts, pl.Int64()).values.to_list() == [int(text) for text in texts]
    parsed = read(["1", "9223372036854775808"], pl.Int64())
    assert parsed.values.to_list() == [1, None]
    assert [one.reason for one in parsed.refusals] == ["seconds is infinite or too large"]


@pytest.mark.parametrize("large", ["1780000000000000001", "-9007199254740993", " 18446744073709551615 "])
def test_texts_of_large_integers_break_ties_once_they_are_declared(large: str) -> None:
    raw = pl.Series("seq", ["7", large, "1e300", None])
    with pytest.raises(DataError, match=rf"beyond 2\^53, such as '{large}'.*declare source.types: .seq: integer"):
        parse(TieBreakReader("seq", raw.dtype, "log"), raw)
    declared = pl.Series("seq", [1780000000000000001, 1780000000000000002])
    assert parse(TieBreakReader("seq", declared.dtype, "log"), declared).values.to_list() == declared.to_list()


@pytest.mark.parametrize("values", [[[1.0]], [True], [datetime(2023, 1, 1)], [b"1"], [{"a": 1}]])
def test_other_types_are_refused_by_name(values: list) -> None:
    with pytest.raises(DataError, match=r"column 'seconds' \(for watch_time_ms\) is .*expected a number"):
        read(values)


@pytest.mark.parametrize(
    "ascending",
    [
        [1, 2, 10],
        ["1", "2", "10"],
        [-1.5, -0.5, 0.0, 0.5, 1e300],
        ["-2", "-1e-3", "3.5", "1e10"],
        [datetime(2023, 1, 1), datetime(2023, 1, 1, 0, 0, 0, 1)],
        pl.Series([1, 2**63, 2**64 - 1], dtype=pl.UInt64),
    ],
)
def test_ties_are_broken_in_the_order_of_the_column(ascending: list | pl.Series) -> None:
    raw = pl.Series("seq", ascending)
    values = parse(TieBreakReader("seq", raw.dtype, "log"), raw).values
    assert values.dtype == pl.Int64
    assert values.to_list() == sorted(set(values.to_list()))


def test_texts_break_ties_where_they_are_declared_and_are_not_guessed() -> None:
    """'10' comes before '9' and 'B' before 'a', by bytes; without the declaration the message says how to get that."""
    raw = pl.Series("seq", ["b", " 9 ", "10", None, "NULL", "é"])
    parsed = parse(TieBreakReader("seq", raw.dtype, "log", as_text=True), raw)
    assert parsed.values.to_list() == ["b", "9", "10", None, None, "é"]
    assert not parsed.refusals
    reader = TieBreakReader("seq", raw.dtype, "log")
    parse(reader, pl.Series("seq", ["1", "2", "x", "y"]))
    reader.finish()  # half of them are no numbers, and refused one by one
    parse(reader, pl.Series("seq", ["z"]))
    with pytest.raises(
        DataError, match=r"column 'seq' .* no numbers, such as 'x', 'y', 'z'; declare source.types: .seq: text"
    ):
        reader.finish()


def test_a_tie_break_that_is_no_number_is_refused() -> None:
    raw = pl.Series("seq", ["1", "x", None])
    parsed = parse(TieBreakReader("seq", raw.dtype, "log"), raw)
    assert [(one.reason, one.rows.to_list()) for one in parsed.refusals] == [
        ("seq is not a number", [False, True, False])
    ]
    with pytest.raises(DataError, match="column 'seq'"):
        TieBreakReader("seq", pl.List(pl.Int64()), "log")
