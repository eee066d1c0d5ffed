"""Ids: text as written, integers only where declared, nobody for null markers, a word about nearly all integers."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest

from features.sources.columns.cells import Parsed, Place
from features.sources.columns.ids import IdReader, id_type
from recsys.contracts.errors import DataError
from recsys.contracts.null_markers import MACHINE_MARKERS, NULL_MARKERS

INTEGER, TEXT = pl.Int64(), pl.String()


def read(values: list | pl.Series, declared: str | None = None) -> tuple[IdReader, Parsed]:
    raw = pl.Series("user_id", values)
    reader = IdReader("user_id", "user_id", raw.dtype, "log.csv", declared=declared)  # type: ignore[arg-type]
    zero = pl.zeros(len(raw), dtype=pl.Int32, eager=True)
    return reader, reader.read(raw, Place(("log.csv",), zero, pl.int_range(1, len(raw) + 1, eager=True)))


@pytest.mark.parametrize(
    "written",
    ["007", "7", "+5", "1e3", "9e12", "true", "1.0", "٣", "0x1F", "-0", "18446744073709551616", "a,b", "na", "0", "-"],
)
def test_a_text_id_stays_as_it_is_written(written: str) -> None:
    _, parsed = read([written])
    assert parsed.values.to_list() == [written]
    assert not parsed.refusals


def test_leading_zeros_keep_two_users_apart() -> None:
    _, parsed = read(["3", "03", "003"])
    assert parsed.values.n_unique() == 3


@pytest.mark.parametrize("written", ["007", "+5", "1e3", "1.0", "-0", "seven", "9223372036854775808", "1_000", "1,000"])
def test_a_declared_integer_refuses_other_spellings(written: str) -> None:
    _, parsed = read(["7", written, "-7", "0"], "integer")
    assert parsed.values.to_list() == [7, None, -7, 0]
    assert [(refusal.reason, refusal.rows.to_list()) for refusal in parsed.refusals] == [
        ("user_id is not an integer", [False, True, False, False])
    ]


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (["7", "-9223372036854775808", "-9223372036854775807"], "integer"),
        ([7, -(2**63), -(2**63) + 1], None),
        (pl.Series([7, -(2**63), -(2**63) + 1], dtype=pl.Decimal(19, 0)), None),
    ],
    ids=["text", "Int64", "Decimal"],
)
def test_the_integer_that_numpy_makes_of_a_missing_number_is_nobody(values: list, declared: str | None) -> None:
    """``numpy.array([nan]).astype("int64")`` is -2^63; the number beside it is an id like others."""
    _, parsed = read(values, declared)
    assert parsed.values.to_list() == [7, None, -(2**63) + 1]
    (refusal,) = parsed.refusals
    assert refusal.reason == "user_id is -9223372036854775808, NumPy's missing number"
    assert refusal.rows.to_list() == [False, True, False]


@pytest.mark.parametrize("marker", [*NULL_MARKERS, "", "  ", "\u00a0", " NULL ", "nan\u200b", "\ufeff"])
@pytest.mark.parametrize("declared", [None, "integer"])
def test_null_markers_are_nobody(marker: str, declared: str | None) -> None:
    _, parsed = read(["7", marker], declared)
    assert parsed.values.to_list()[1] is None
    assert not parsed.refusals, "a missing id is no id that could not be read"


def test_null_markers_and_blanks_are_counted() -> None:
    """Two NULL, one \\N; blanks around u8 and u9 only, since nothing stands between those of the empty value."""
    reader, parsed = read(["NULL", " NULL", "\\N", "", "u7", " u8", "u9\u00a0"])
    assert parsed.values.to_list() == [None, None, None, None, "u7", "u8", "u9"]
    assert reader.markers_met == {"NULL": 2, "\\N": 1}
    assert reader.stripped == 2


def test_other_markers_may_be_declared() -> None:
    raw = pl.Series("user_id", ["NA", "NULL", "-"])
    reader = IdReader("user_id", "user_id", raw.dtype, "log.csv", markers=("-",))
    place = Place(("log.csv",), pl.zeros(3, dtype=pl.Int32, eager=True), pl.int_range(3, eager=True))
    assert reader.read(raw, place).values.to_list() == ["NA", "NULL", None]
    assert set(MACHINE_MARKERS) < set(NULL_MARKERS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([1, None], dtype=pl.UInt8), [1, None]),
        (pl.Series([2**63 - 1], dtype=pl.UInt64), [2**63 - 1]),
        (pl.Series([Decimal(7)], dtype=pl.Decimal(20, 0)), [7]),
        (pl.Series(["a", None], dtype=pl.Categorical), ["a", None]),
        (pl.Series(["a"], dtype=pl.Enum(["a"])), ["a"]),
        (pl.Series([b"\xc3\xa9", None], dtype=pl.Binary), ["é", None]),
    ],
)
def test_types_of_parquet_keep_their_ids(values: pl.Series, expected: list) -> None:
    reader, parsed = read(values)
    assert parsed.values.to_list() == expected
    assert parsed.values.dtype == reader.dtype
    assert reader.dtype in (INTEGER, TEXT)


def test_bytes_that_are_no_text_refuse_their_row() -> None:
    _, parsed = read(pl.Series([b"a", b"\xff"], dtype=pl.Binary))
    assert parsed.values.to_list() == ["a", None]
    assert [refusal.reason for refusal in parsed.refusals] == ["user_id is not UTF-8"]


def test_floats_are_integers_only_where_declared() -> None:
    """7.5 and 2^53 are no ids that a float could hold; NaN is nobody."""
    reader, parsed = read([7.0, 7.5, float("nan"), 2.0**53, float("inf")], "integer")
    assert parsed.values.to_list() == [7, None, None, None, None]
    assert parsed.refusals[0].rows.to_list() == [False, True, False, True, True]
    assert reader.dtype == INTEGER
    with pytest.raises(
        DataError, match=r"'user_id' is Float64, expected integers or text.*types: \{user_id: integer\}"
    ):
        read([7.0])


@pytest.mark.parametrize(
    "values", [pl.Series([2**63], dtype=pl.UInt64), pl.Series([Decimal(10**20)], dtype=pl.Decimal(38, 0))]
)
def test_an_integer_beyond_64_bits_is_named_and_may_be_text(values: pl.Series) -> None:
    with pytest.raises(DataError, match=r"holds (9223372036854775808|100000000000000000000).*types: \{user_id: text\}"):
        read(values)
    _, parsed = read(values, "text")
    assert parsed.values.to_list() == [str(values[0])]


@pytest.mark.parametrize(
    "dtype",
    [
        pl.Boolean(),
        pl.Date(),
        pl.Datetime("us"),
        pl.Duration("us"),
        pl.Time(),
        pl.Decimal(10, 2),
        pl.List(pl.Int64()),
        pl.Array(pl.Int64(), 2),
        pl.Struct({"a": pl.Int64()}),
    ],
)
def test_a_type_that_can_be_no_id_is_refused_by_name(dtype: pl.DataType) -> None:
    with pytest.raises(DataError, match=r"id column 'user_id' is .*expected integers or text; convert it in the file"):
        id_type("user_id", dtype, "log.parquet", None)


@pytest.mark.parametrize("odd", ["total", "guest", "12a", "0012", "TOTAL: 120"])
def test_a_column_of_integers_but_one_is_worth_a_word(odd: str) -> None:
    reader, _ = read([str(number) for number in range(30)] * 4 + [odd])
    (warning,) = reader.warnings()
    assert "log.csv: user_id reads as an integer in 120 of 121 rows and in 30 of 31 distinct values" in warning
    assert f"others: {odd!r} ('log.csv', line 122)" in warning


@pytest.mark.parametrize(
    "ids",
    [
        [str(number) for number in range(100)],
        [f"u{number}" for number in range(100)],
        [f"{number:04}" for number in range(100)],
        [f"{number}" if number % 3 else f"x{number}" for number in range(100)],
    ],
)
def test_other_columns_are_not(ids: list[str]) -> None:
    reader, _ = read(ids)
    assert reader.warnings() == []


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([str(number) for number in range(19)] + ["total"], True),  # 95 per cent of rows and of distinct values
        ([str(number) for number in range(18)] + ["total"], False),  # 94.7
        (["7"] * 98 + ["a", "b"], True),  # 98 per cent of the rows, a third of the distinct values
        ([str(number) for number in range(99)] + ["total"] * 50, True),  # 66 per cent of the rows, 99 of the values
        (["7"] * 9 + ["a", "b"], False),
    ],
)
def test_a_word_about_nearly_all_integers_comes_at_95_per_cent(texts: list[str], told: bool) -> None:
    assert bool(read(texts)[0].warnings()) is told


def test_two_digits_have_one_spelling_too() -> None:
    assert read(["7", "07", "0", "00"], "integer")[1].values.to_list() == [7, None, 0, None]


def test_plain_values_are_taken_as_they_are() -> None:
    """What the reader of the file vouches for is not looked at again; null markers are."""
    raw = pl.Series("user_id", [" u7", "NULL", "u8"])
    reader = IdReader("user_id", "user_id", raw.dtype, "log.csv")
    place = Place(("log.csv",), pl.zeros(3, dtype=pl.Int32, eager=True), pl.int_range(3, eager=True), plain=True)
    assert reader.read(raw, place).values.to_list() == [" u7", None, "u8"]
    assert (reader.stripped, reader.markers_met) == (0, {"NULL": 1})


@pytest.mark.parametrize("odd", [0, 1, 1000, 1001, 1999, 2000, 2001, 6000])
@pytest.mark.parametrize("first", [True, False])
def test_a_first_look_at_a_large_batch_decides_nothing_else_than_all_of_it(
    odd: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 ids, of which up to a tenth may be no integers, at the start of the batch or at its end."""
    others = [f"x{number}" for number in range(odd)]
    numbers = [str(number) for number in range(20_000 - odd)]
    values = [*others, *numbers] if first else [*numbers, *others]
    told = []
    for glance in (1000, 10**9):
        monkeypatch.setattr("features.sources.columns.ids._GLANCE", glance)
        told.append(read(values)[0].warnings())
    assert told[0] == told[1]
    assert bool(told[0]) == (0 < odd <= 1000)


def test_floats_of_32_bits_end_earlier() -> None:
    """2^24 + 1 is no Float32, so that beyond 2^24 two users were one before the file was written."""
    small = pl.Series([7.0, 2.0**24 - 1, float("nan"), float("inf"), None], dtype=pl.Float32)
    assert read(small, "integer")[1].values.to_list() == [7, 2**24 - 1, None, None, None]
    for large in (2**24 + 1, -(2**24)):
        with pytest.raises(
            DataError, match=rf"32-bit floats and holds {abs(large) // large * 2**24}: .*several ids are one"
        ):
            read(pl.Series([7.0, float(large)], dtype=pl.Float32), "integer")
