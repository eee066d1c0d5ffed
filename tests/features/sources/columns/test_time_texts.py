"""Times as text: the forms of ISO 8601, declared formats, and what nothing says how to read."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from features.sources.columns.cells import Parsed, Place
from features.sources.columns.time_texts import TextTimes, fitting_formats
from recsys.contracts.errors import DataError

MIDNIGHT = datetime(2022, 5, 1, tzinfo=UTC)


def us(when: datetime) -> int:
    return int(when.timestamp()) * 10**6 + when.microsecond


def read(texts: list, form: str | None = None, zone: str | None = None) -> tuple[TextTimes, Parsed]:
    raw = pl.Series("timestamp", texts, dtype=pl.String)
    place = Place(("log.csv",), pl.zeros(len(raw), dtype=pl.Int32, eager=True), pl.int_range(len(raw), eager=True))
    reader = TextTimes("timestamp", "log.csv", form=form, zone=zone)
    parsed = reader.read(raw, place)
    reader.finish()
    return reader, parsed


ISO = {
    "2022-05-01T02:00:00+02:00": MIDNIGHT,
    "2022-05-01T02:00:00+0200": MIDNIGHT,
    "2022-05-01 02:00:00 +02": MIDNIGHT,
    "2022-04-30T19:30:00-04:30": MIDNIGHT,
    "2022-05-01T00:00:00Z": MIDNIGHT,
    "2022-05-01t00:00:00z": MIDNIGHT,
    "2022-05-01 00:00:00 UTC": MIDNIGHT,
    "2022-05-01 00:00:00 GMT": MIDNIGHT,
    "2022-05-01 00:00:00 +0000 UTC": MIDNIGHT,
    "2022-05-01T02:00+02:00[Europe/Paris]": MIDNIGHT,
    "2022-05-01T00:00:00.5Z": MIDNIGHT.replace(microsecond=500_000),
    "2022-05-01T00:00:00,123Z": MIDNIGHT.replace(microsecond=123_000),
    "2022-05-01T00:00:00.123456789123Z": MIDNIGHT.replace(microsecond=123_456),
}
NAIVE = {
    "2022-05-01": MIDNIGHT,
    "2022-05-01 00:00": MIDNIGHT,
    "2022-5-1": MIDNIGHT,
    "2022-5-1 0:00:00": MIDNIGHT,
    "2022-05-01T00:00:00": MIDNIGHT,
    "2022-05-01 00:00:00.25": MIDNIGHT.replace(microsecond=250_000),
    " 2022-05-01\u00a0": MIDNIGHT,
}


@pytest.mark.parametrize("written", ISO | NAIVE)
def test_forms_of_iso_8601(written: str) -> None:
    """Alone, where one call may read the whole batch, and behind a text of another form."""
    expected = us((ISO | NAIVE)[written])
    other = "2022-05-01T01:00:00Z" if written in ISO else "2022-05-01 01:00:00"
    for texts in ([written, None], [other, written]):
        _, parsed = read(texts)
        assert expected in parsed.values.to_list()
        assert not parsed.refusals


@pytest.mark.parametrize(
    "written",
    [
        *("soon", "2022-13-01T00:00:00Z", "2022-02-30T00:00:00Z", "2022-05-01T25:00:00Z", "01/05/2022"),
        "2022-05-01T00:00.5Z",  # half a minute, which is not half a second
        *("2022-05-01T00:00:00+24:00", "2022-05-01T00:00:00+02:60", "2022-05-01T00:00:00-9900"),
        "2022-05-01T00:00:00[Europe/Paris]",  # a zone that is not read is not left out
    ],
)
def test_a_text_among_others_that_is_no_time_refuses_its_row(written: str) -> None:
    _, parsed = read(["2022-05-01T00:00:00Z", "2022-05-01T00:00:01Z", written])
    assert [(refusal.reason, refusal.rows.to_list()) for refusal in parsed.refusals] == [
        ("timestamp is not an ISO date and time", [False, False, True])
    ]


@pytest.mark.parametrize(
    ("texts", "formats"),
    [
        (["01/02/2023", "03/04/2023"], ("%d/%m/%Y", "%m/%d/%Y")),
        (["01/02/2023 10:00"], ("%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M")),
        (["1-2-2023 10:00:00"], ("%d-%m-%Y %H:%M:%S", "%m-%d-%Y %H:%M:%S")),
        (["01/02/2023 10:00:00 AM"], ("%d/%m/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M:%S %p")),
        (["01/02/23"], ("%d/%m/%y", "%m/%d/%y")),
    ],
)
def test_day_and_month_are_never_guessed(texts: list[str], formats: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="nothing says which part is the day") as error:
        read(texts)
    assert repr(texts[0]) in str(error.value)
    assert all(f"'{form}'" in str(error.value) for form in formats)


@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (["31/01/2023 10:00", "01/02/2023 10:00"], "%d/%m/%Y %H:%M"),
        (["01/31/2023", "02/01/2023"], "%m/%d/%Y"),
        (["2023/01/05 10:00:00"], "%Y/%m/%d %H:%M:%S"),
        (["31.01.2023"], "%d.%m.%Y"),
        (["5 Jan 2023"], "%d %b %Y"),
        (["Thu, 05 Jan 2023 10:00:00 +0000"], "%a, %d %b %Y %H:%M:%S %z"),
        (["05/Jan/2023:10:00:00 +0100"], "%d/%b/%Y:%H:%M:%S %z"),
        (["20230105"], "%Y%m%d"),
    ],
)
def test_another_format_is_named_and_then_read(texts: list[str], form: str) -> None:
    with pytest.raises(DataError, match=r"not ISO 8601; declare source\.timestamp_format: ") as error:
        read(texts)
    assert f"'{form}'" in str(error.value)
    _, parsed = read(texts, form)
    assert parsed.values.null_count() == 0
    assert not parsed.refusals


def test_a_declared_format_decides_between_day_and_month() -> None:
    """01/02/2023 is 1 February here and 2 January there."""
    assert read(["01/02/2023"], "%d/%m/%Y")[1].values[0] == us(datetime(2023, 2, 1, tzinfo=UTC))
    assert read(["01/02/2023"], "%m/%d/%Y")[1].values[0] == us(datetime(2023, 1, 2, tzinfo=UTC))


def test_a_format_that_does_not_fit_names_the_one_that_does() -> None:
    with pytest.raises(
        DataError, match=r"not of the declared format '%d/%m/%Y'.*declare source.timestamp_format: '%Y/%m/%d'"
    ):
        read(["2023/01/31"], "%d/%m/%Y")
    _, parsed = read(["31/01/2023", "01/02/2023", "soon"], "%d/%m/%Y")
    assert parsed.refusals[0].reason == "timestamp is not of the format '%d/%m/%Y'"


@pytest.mark.parametrize(
    ("text", "unit"), [("1700000000", "s"), ("1700000000000", "ms"), ("1.7e9", "s"), ("1700000000000000", "us")]
)
def test_numbers_ask_for_their_unit(text: str, unit: str) -> None:
    with pytest.raises(DataError, match=f"these are numbers: declare timestamp_unit: {unit}"):
        read([text])


def test_times_with_and_without_a_zone_need_a_declared_one() -> None:
    """12:00 without a zone is 10:00 UTC in Paris in summer, beside 12:00 UTC."""
    texts = ["2023-07-01T12:00:00Z", "2023-07-01T12:00:00"]
    with pytest.raises(DataError, match=r"with a zone \('2023-07-01T12:00:00Z'\) and without one.*timestamp_zone"):
        read(texts)
    _, parsed = read(texts, zone="Europe/Paris")
    assert parsed.values.to_list() == [
        us(datetime(2023, 7, 1, 12, tzinfo=UTC)),
        us(datetime(2023, 7, 1, 10, tzinfo=UTC)),
    ]


@pytest.mark.parametrize("missing", [None, "", "NULL", "NaT", "\\N"])
def test_missing_times_are_null_without_another_reason(missing: str | None) -> None:
    for form in (None, "%Y-%m-%d"):
        _, parsed = read(["2022-05-01", missing, "2022-05-02"], form)
        assert parsed.values.to_list()[1] is None
        assert not parsed.refusals


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%Y-%m-%d %H:%M", "no form", ""])
@pytest.mark.parametrize("text", ["2023-11-14 22:13:20", "2023-11-14T22:13:20Z"])
def test_a_format_declared_for_iso_times_is_to_be_taken_out(form: str, text: str) -> None:
    with pytest.raises(DataError, match=r"they are ISO 8601: take source\.timestamp_format out"):
        read([text] * 3, form=form)


@pytest.mark.parametrize(
    "written",
    [
        "2022-05-01T02:00:00",
        "2022-05-01 02:00:00",
        "2022-05-01T02:00:00.0",
        "2022-05-01 02:00:00.0",
        "2022-05-01 02:00",
    ],
)
def test_every_form_without_a_zone_is_in_the_declared_one(written: str) -> None:
    _, parsed = read([written, written], zone="Europe/Paris")
    assert parsed.values.to_list() == [us(MIDNIGHT)] * 2


def test_a_format_fits_only_where_it_reads_every_text() -> None:
    """The first is a date either way, the second has no 31st month."""
    assert fitting_formats(pl.Series(["01/02/2023", "03/31/2023"])) == ["%m/%d/%Y"]
    assert fitting_formats(pl.Series(["01/02/2023", "soon"])) == []


def test_a_decimal_comma_is_no_form_of_a_date() -> None:
    with pytest.raises(DataError, match=r"'1700000060,5'; these are numbers with a decimal comma .* timestamp_unit: s"):
        read(["1700000000,25", "1700000060,5"])
    assert read(["2023-11-14T22:13:20,250"])[1].values.to_list() == [1_700_000_000_250_000]
