"""Declared formats of times: Python's spelling of fractions, and what is refused with the recipe."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from features.sources import TableSource
from features.sources.columns.cells import Place
from features.sources.columns.time_formats import check_format, polars_format
from features.sources.columns.time_texts import TextTimes

START = datetime(2024, 2, 28, 23, 59, 59)


@pytest.mark.parametrize(
    ("form", "spelled"),
    [
        ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S%.f"),
        ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"),
        ("%Y%m%d%H%M%S%6f", "%Y%m%d%H%M%S%6f"),
        ("%Y-%m-%d %H:%M:%S,%3f", "%Y-%m-%d %H:%M:%S,%3f"),
        ("%Y-%m-%d %%.%f", "%Y-%m-%d %%%.f"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
    ],
)
def test_a_point_and_a_fraction_in_the_spelling_of_python(form: str, spelled: str) -> None:
    assert polars_format(form) == spelled
    check_format(form)


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S.%f", "%Y%m%d%H%M%S%6f", "%d %b %Y %I:%M:%S.%f %p"]
)
def test_fractions_are_the_parts_of_a_second_that_python_wrote(form: str) -> None:
    """Half a second is 500,000 microseconds, and not the 500 nanoseconds that Polars' own %f makes of it."""
    written = [START + timedelta(seconds=0.25 * place) for place in range(8)]
    raw = pl.Series("timestamp", [when.strftime(form.replace("%6f", "%f")) for when in written])
    place = Place(("log.csv",), pl.zeros(len(raw), dtype=pl.Int32, eager=True), pl.int_range(len(raw), eager=True))
    read = TextTimes("timestamp", "log.csv", form=form).read(raw, place).values
    assert read.cast(pl.Datetime("us")).to_list() == written


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("%H:%M", "names no year"),
        ("yyyy-MM-dd", "names no year"),
        ("%%Y-%m-%d", "names no year"),
        ("%Y-%M-%d", r"names a day and no month \(%m\); %M are minutes"),
        ("%Y %d %H:%M", "names a day and no month"),
        ("%Y-%m-%d %H:%M:%S %Z", "10:00 EST and 10:00 CET would be one instant"),
        ("%a %b %d %H:%M:%S %Z %Y", "declare source.timestamp_zone"),
        ("%Y-%m-%d %H:%M:%S,%f", r"write %\.f .* or %3f, %6f or %9f for so many digits"),
        ("%Y%m%d%H%M%S%f", "counts nanoseconds"),
        ("%Y-%m-%d %I:%M:%S", "cannot be read: Please either specify both 12-hour directive and meridiem"),
        ("%Y-%m-%d %H", "cannot be read: Please either specify both hour and minute"),
    ],
)
def test_a_format_that_passes_over_a_part_is_refused_with_the_recipe(form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableSource(path=".", timestamp_unit="datetime", timestamp_format=form)


@pytest.mark.parametrize("form", ["%G-W%V-%u", "%Y-%j", "%F %T", "%s %Y", "%Y-%m-%dT%H:%M:%S%#z", "%d-%b-%y EST"])
def test_other_formats_that_say_the_day_are_taken(form: str) -> None:
    assert TableSource(path=".", timestamp_unit="datetime", timestamp_format=form).timestamp_format == form
