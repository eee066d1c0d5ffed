"""Times as numbers and typed columns: units, what is no number, two units in one column, zones."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import polars as pl
import pytest

from features.sources.columns.cells import Parsed, Place
from features.sources.columns.times import DateTimes, NumberTimes
from recsys.contracts.errors import DataError
from recsys.contracts.event_times import NANOSECONDS, NumberUnit

SECOND = 1_700_000_000  # 2023-11-14 22:13:20 UTC
NOON = datetime(2023, 7, 1, 12)


def place(count: int) -> Place:
    return Place(("log",), pl.zeros(count, dtype=pl.Int32, eager=True), pl.int_range(count, eager=True))


def read(values: list | pl.Series, unit: NumberUnit = "s") -> tuple[NumberTimes, Parsed]:
    raw = pl.Series("timestamp", values)
    reader = NumberTimes("timestamp", raw.dtype, unit, "log")
    return reader, reader.read(raw, place(len(raw)))


@pytest.mark.parametrize("unit", NANOSECONDS)
@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String, pl.UInt64])
def test_every_unit_becomes_microseconds(unit: NumberUnit, dtype: type[pl.DataType]) -> None:
    """1,700,000,000 s are 1.7e9 * 1e9 / unit of the file, and 1.7e15 us."""
    number = SECOND * 10**9 // NANOSECONDS[unit]
    _, parsed = read(pl.Series([number]).cast(dtype), unit)
    assert parsed.values.to_list() == [SECOND * 10**6]


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [
        ("1700000000", SECOND * 10**6),
        ("1700000000.0", SECOND * 10**6),
        ("1700000000.25", SECOND * 10**6 + 250_000),
        ("1.7e9", SECOND * 10**6),
        ("+1700000000", SECOND * 10**6),
        (" 1700000000\u00a0", SECOND * 10**6),
    ],
)
def test_a_number_in_a_text_file_may_be_written_in_several_ways(written: str, microseconds: int) -> None:
    _, parsed = read([written, "1700000001"])
    assert parsed.values.to_list() == [microseconds, (SECOND + 1) * 10**6]
    assert not parsed.refusals


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String, pl.Null])
def test_a_column_without_any_time_says_so_and_blames_no_unit(dtype: type[pl.DataType]) -> None:
    reader, _ = read(pl.Series([None, None], dtype=dtype))
    with pytest.raises(DataError, match=r"column 'timestamp' is empty in all 2 rows.*map the column"):
        reader.finish()


@pytest.mark.parametrize("written", ["yesterday", "1,700,000,000", "2023-11-14", "1700000000s", "?", "12:30"])
def test_what_is_no_number_refuses_its_row(written: str) -> None:
    _, parsed = read(["1700000000", written, "1700000001"])
    assert parsed.values.to_list()[1] is None
    assert [(refusal.reason, refusal.rows.to_list()) for refusal in parsed.refusals] == [
        ("timestamp is not a number", [False, True, False])
    ]


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity"])
def test_an_infinite_time_refuses_its_row(value: str) -> None:
    for values in ([str(SECOND), value], [float(SECOND), float(value)]):
        _, parsed = read(values)
        assert parsed.values.to_list() == [SECOND * 10**6, None]
        assert [refusal.reason for refusal in parsed.refusals] == ["timestamp is infinite"]


@pytest.mark.parametrize("missing", [None, "NULL", "", "nan", "NaT", "\\N"])
def test_a_missing_time_is_null_and_no_other_reason_is_invented(missing: str | None) -> None:
    _, parsed = read([str(SECOND), missing])
    assert parsed.values.to_list() == [SECOND * 10**6, None]
    assert not parsed.refusals


def test_placeholders_stay_implausible_and_huge_numbers_do_not_wrap() -> None:
    """0, -1 and 2^62 s are outside the years 1990 to 2100, where the quarantine refuses them."""
    _, parsed = read([0, -1, 2**62, -(2**62), SECOND])
    assert parsed.values.to_list() == [0, -1_000_000, 9 * 10**18, -9 * 10**18, SECOND * 10**6]


@pytest.mark.parametrize(
    "dtype",
    [pl.Float32, pl.Boolean, pl.Date, pl.Datetime("us"), pl.Duration("us"), pl.Time, pl.List(pl.Int64), pl.Binary],
)
def test_a_type_that_holds_no_such_number_is_refused_by_name(dtype: pl.DataType) -> None:
    with pytest.raises(DataError, match="column 'timestamp' is "):
        NumberTimes("timestamp", pl.Series([], dtype=dtype).dtype, "s", "log")


def test_float32_seconds_say_why() -> None:
    """The next Float32 after 1.7e9 is 1.7e9 + 128."""
    assert pl.Series([SECOND + 60]).cast(pl.Float32).cast(pl.Int64)[0] == SECOND
    with pytest.raises(DataError, match="to 128 s only"):
        read(pl.Series([SECOND], dtype=pl.Float32))


@pytest.mark.parametrize("other", ["ms", "us", "ns"])
def test_two_units_in_one_column_are_both_named(other: NumberUnit) -> None:
    scale = 10**9 // NANOSECONDS[other]
    reader, _ = read([SECOND] * 6 + [SECOND * scale] * 4)
    with pytest.raises(DataError, match=rf"6 rows fit 's' \(such as {SECOND}\) and 4 fit '{other}'"):
        reader.finish()


def test_one_stray_value_is_no_second_unit() -> None:
    reader, parsed = read([SECOND] * 30 + [SECOND * 1000])
    reader.finish()  # refuses a column of two units
    assert parsed.values[:30].to_list() == [SECOND * 10**6] * 30
    assert reader.warnings() == []


@pytest.mark.parametrize(("declared", "true"), [("s", "ms"), ("ms", "s"), ("s", "ns"), ("us", "ms"), ("ns", "s")])
def test_a_wrong_unit_names_the_right_one(declared: NumberUnit, true: NumberUnit) -> None:
    reader, _ = read([SECOND * 10**9 // NANOSECONDS[true]] * 3, declared)
    with pytest.raises(DataError, match=f"wrong unit.*declare timestamp_unit: {true}"):
        reader.finish()


def test_text_that_is_no_number_at_all_asks_for_datetime() -> None:
    reader, _ = read(["2023-11-14", "2023-11-15"])
    with pytest.raises(DataError, match=r"holds text such as '2023-11-14'.*declare timestamp_unit: datetime"):
        reader.finish()


def test_a_short_first_part_does_not_speak_for_the_column() -> None:
    """One bad row in a file of its own is one bad row of a thousand."""
    reader, first = read(["soon"])
    assert first.refusals
    raw = pl.Series("timestamp", [str(SECOND)] * 999)
    assert not reader.read(raw, place(999)).refusals
    reader.finish()


def test_a_long_column_in_another_unit_is_refused_before_it_is_read_to_the_end() -> None:
    with pytest.raises(DataError, match="declare timestamp_unit: ms"):
        read([SECOND * 1000] * 10_000)


def local(values: list | pl.Series, zone: str | None = None) -> tuple[DateTimes, Parsed]:
    raw = pl.Series("timestamp", values)
    reader = DateTimes("timestamp", raw.dtype, "log", zone=zone)
    return reader, reader.read(raw, place(len(raw)))


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_instants_of_any_unit_and_zone(unit: str, zone: str | None) -> None:
    raw = (
        pl.Series([NOON.replace(tzinfo=UTC)]).dt.convert_time_zone(zone or "UTC").cast(pl.Datetime(unit, zone or "UTC"))
    )  # type: ignore[arg-type]
    raw = raw if zone is not None else raw.dt.replace_time_zone(None)
    _, parsed = local(raw)
    assert parsed.values.to_list() == [int(NOON.replace(tzinfo=UTC).timestamp()) * 10**6]


def test_a_declared_zone_moves_dates_and_naive_times_and_no_others() -> None:
    """Noon in Paris in July is 10:00 UTC; midnight there is 22:00 of the day before."""
    _, naive = local([NOON], "Europe/Paris")
    assert naive.values.to_list() == [int((NOON - timedelta(hours=2)).replace(tzinfo=UTC).timestamp()) * 10**6]
    _, day = local([date(2023, 7, 1)], "Europe/Paris")
    assert day.values.to_list() == [int(datetime(2023, 6, 30, 22, tzinfo=UTC).timestamp()) * 10**6]
    _, aware = local([NOON.replace(tzinfo=UTC)], "Europe/Paris")
    assert aware.values.to_list() == [int(NOON.replace(tzinfo=UTC).timestamp()) * 10**6]


def test_an_hour_that_happens_twice_is_counted_and_one_that_does_not_is_refused() -> None:
    """On 29 October 2023 Paris had 02:30 at 00:30 and at 01:30 UTC; on 26 March it had no 02:30."""
    reader, parsed = local([datetime(2023, 10, 29, 2, 30), datetime(2023, 3, 26, 2, 30)], "Europe/Paris")
    assert parsed.values.to_list() == [int(datetime(2023, 10, 29, 0, 30, tzinfo=UTC).timestamp()) * 10**6, None]
    assert [refusal.reason for refusal in parsed.refusals] == ["timestamp does not exist in Europe/Paris"]
    assert "1 times of 'timestamp' happened twice in Europe/Paris" in reader.warnings()[0]


@pytest.mark.parametrize("values", [[timedelta(hours=1)], [time(12)], [SECOND], [True]])
def test_what_is_no_date_is_refused_by_name(values: list) -> None:
    with pytest.raises(DataError, match="timestamp_unit is 'datetime' but column 'timestamp' is"):
        local(values)


@pytest.mark.parametrize(("others", "refused"), [(1, True), (0, False)])
def test_a_twentieth_of_the_rows_is_a_second_unit(others: int, refused: bool) -> None:
    """19 seconds and one millisecond are 5 per cent, 20 and one are less."""
    reader, _ = read([SECOND] * (20 - others) + [SECOND * 1000])
    if refused:
        with pytest.raises(DataError, match=r"19 rows fit 's'.* and 1 fit 'ms'"):
            reader.finish()
    else:
        reader.finish()


def test_half_of_the_times_speak_for_the_unit() -> None:
    """0 fits no unit: two of four are enough, two of five are not."""
    read([SECOND, SECOND, 0, 0])[0].finish()
    with pytest.raises(DataError, match="in the wrong unit"):
        read([SECOND, SECOND, 0, 0, 0])[0].finish()


def test_a_float_that_is_no_number_is_not_known() -> None:
    reader, parsed = read([float(SECOND), float("nan"), None])
    assert parsed.values.to_list() == [SECOND * 10**6, None, None]
    assert not parsed.refusals
    reader.finish()


def test_the_first_rows_do_not_make_the_declared_unit_a_wrong_one() -> None:
    """Three sound times and then four zeros: the unit is right, and the zeros are what is to be mended."""
    reader, _ = read([SECOND] * 3)
    reader.read(pl.Series("timestamp", [0] * 4), place(4))
    with pytest.raises(DataError, match=rf"fewer than half .* as 's' \(some do, around {SECOND}\); mend the others"):
        reader.finish()


@pytest.mark.parametrize("written", ["1700000000,25", "1,7e9", "1,700,000,000", "1.700.000.000", "1 700 000 000"])
def test_numbers_with_a_comma_say_how_to_write_them(written: str) -> None:
    reader, _ = read([written, written])
    with pytest.raises(DataError, match=r"unit is 's'.*decimal comma or separators of thousands: write them as 1234.5"):
        reader.finish()


FAR = {
    "days": pl.Series([19_700, 2**31 - 1, -(2**31), None], dtype=pl.Int32).cast(pl.Date),
    "ms": pl.Series([SECOND * 1000, 2**63 - 1, -(2**62), None]).cast(pl.Datetime("ms")),
    "us": pl.Series([SECOND * 10**6, 2**63 - 1, -(2**62), None]).cast(pl.Datetime("us")),
    "ms of a zone": pl.Series([SECOND * 1000, 2**62, -(2**62), None]).cast(pl.Datetime("ms", "UTC")),
}


@pytest.mark.parametrize("zone", [None, "Europe/Paris", "America/New_York"])
@pytest.mark.parametrize("kind", FAR)
def test_days_that_no_calendar_holds_stay_implausible(kind: str, zone: str | None) -> None:
    """Polars panics, and would end the process, where such a day is shown or put into a zone."""
    near, late, early, missing = local(FAR[kind], zone)[1].values.to_list()
    assert 1_600_000_000 < near / 10**6 < 1_800_000_000
    assert late > 4_102_444_800_000_000
    assert early < 631_152_000_000_000
    assert missing is None


@pytest.mark.parametrize("edge", [datetime(1990, 1, 1), datetime(2099, 12, 31, 23, 59, 59)])
def test_plausible_times_at_the_edges_are_still_in_their_zone(edge: datetime) -> None:
    """Paris is one hour ahead in winter."""
    expected = int((edge - timedelta(hours=1)).replace(tzinfo=UTC).timestamp()) * 10**6
    assert local([edge], "Europe/Paris")[1].values.to_list() == [expected]


@pytest.mark.parametrize(
    ("written", "unit"),
    [
        ("{:.0E}", "ms"),
        ("{:.5E}", "ms"),
        ("{:.5e}", "s"),
        ("{:.5E}", "us"),
    ],
)
def test_numbers_that_a_spreadsheet_shortened_are_refused(written: str, unit: NumberUnit) -> None:
    """A minute apart, they are 2.8 hours apart or equal once they have six digits; 1.70000E+12 ms says no more."""
    scale = 10**9 // NANOSECONDS[unit]
    values = [written.format((SECOND + 60 * row) * scale) for row in range(40)]
    reader, parsed = read(values, unit)
    assert parsed.values.n_unique() < 5
    with pytest.raises(
        DataError, match=r"40 of 40 times of column 'timestamp' were shortened, as a spreadsheet does: '[12]"
    ):
        reader.finish()


@pytest.mark.parametrize(
    "values",
    [
        [f"{SECOND + 60 * row:.9e}" for row in range(40)],  # all digits are there
        [f"{(SECOND // 86_400 + row) * 86_400:.7E}" for row in range(40)],  # days, to a hundred seconds
        ["1.7e9"] * 19,
        ["1.7e9"] * 40 + [str(SECOND + row) for row in range(41)],  # few that end in zeros
        [repr(1e9 * (SECOND + row)) for row in range(40)],
    ],
    ids=["digits", "days", "few", "beside others", "floats of Python"],
)
def test_exponents_that_lose_nothing_are_read(values: list[str]) -> None:
    reader, parsed = read(values, "ns" if len(values[0]) > 20 or values[0].endswith("e+18") else "s")
    reader.finish()  # nothing is refused
    assert parsed.values.null_count() == 0
