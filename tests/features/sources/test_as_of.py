"""Events up to a day: what later files hold changes nothing, and a day appended equals preparing everything up to it."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.log.encode import read_log
from features.log.quarantine import QuarantineConfig
from features.sources.as_of import HELD_BACK, as_of, end_of
from features.sources.base import EventStream, RawTables
from pipelines.config import RunConfig
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_times import LATEST_US
from recsys.contracts.manifest import Artifact
from tests.pipelines.test_appended_days import START, config_of, prepare, write_items, write_parquet


def up_to(folder: Path, output: Path, number: int | None) -> RunConfig:
    day = None if number is None else START + timedelta(days=number)
    return config_of(folder, "parquet", output, as_of=day)


def data_of(artifact: Artifact) -> dict[str, bytes]:
    """Every file but those that name the files that were looked at: the manifest, the report, and what the log was of."""
    named = ("manifest.json", "data_report.json", "data_report.html", "data_contract.json")
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file() and path.name not in named and path.parent.name != "log"
    }


def test_the_instant_after_the_day_is_the_first_that_is_held_back() -> None:
    """Of four events the last of 5 November stays, midnight goes; an event without a time and one of 2150 stay."""
    midnight = end_of(date(2026, 11, 5))
    assert datetime.fromtimestamp(midnight / 1e6, UTC) == datetime(2026, 11, 6, tzinfo=UTC)
    times = [midnight - 1, midnight, None, LATEST_US + 1]
    frame = pl.DataFrame({"user_id": [1, 2, 3, 4], "item_id": [1] * 4, "timestamp": times})
    raw = RawTables(EventStream.from_frame(frame, "log"), None, None, (), (), has_timestamps=True)
    seen = as_of(raw, date(2026, 11, 5)).interactions
    assert seen.collect()["user_id"].to_list() == [1, 3, 4]
    assert seen.facts[HELD_BACK] == [{"file": "log", "rows": 1, "of": 4}]
    assert as_of(raw, None) is raw


def test_a_source_without_times_has_no_days() -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [1], "position": [0]})
    raw = RawTables(EventStream.from_frame(frame, "log"), None, None, (), (), has_timestamps=False)
    with pytest.raises(ConfigError, match="as_of is 2026-11-05, but the source has no times"):
        as_of(raw, date(2026, 11, 5))


def test_a_day_before_the_first_event_is_told_from_an_empty_source() -> None:
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 1], "timestamp": [end_of(date(2026, 11, 5))] * 2})
    raw = RawTables(EventStream.from_frame(frame, "log"), None, None, (), (), has_timestamps=True)
    with pytest.raises(DataError, match="all 2 interactions of the source come after the day asked for"):
        read_log(as_of(raw, date(2026, 11, 5)), QuarantineConfig(), need_session_id=False)


def write_day(log: Path, number: int) -> None:
    """A file of usable rows of one day alone."""
    write_parquet(log, number)
    (path,) = log.glob(f"day={START + timedelta(days=number)}/*.parquet")
    begin = end_of(START + timedelta(days=number - 1)) // 1_000_000
    inside = pl.col("at").is_between(begin, begin + 86_399) & ~pl.col("user").is_in(["", "NULL"])
    pl.read_parquet(path).filter(inside).write_parquet(path)


def days(log: Path, *numbers: int) -> Path:
    log.mkdir(exist_ok=True)
    write_items(log, 5)
    for number in numbers:
        write_day(log, number)
    return log


def test_files_of_later_days_change_nothing(tmp_path: Path) -> None:
    """The log of days 0 to 3, against that of days 0 to 6 as of day 3."""
    alone = prepare(up_to(days(tmp_path / "short", 0, 1, 2, 3), tmp_path / "a", None), append=False)
    among = prepare(up_to(days(tmp_path / "long", 0, 1, 2, 3, 4, 5, 6), tmp_path / "b", 3), append=False)
    assert data_of(among) == data_of(alone)
    assert among.manifest.summary["last_event"] < "2026-10-05"
    reports = [
        {name: value for name, value in artifact.manifest.summary.items() if name not in (HELD_BACK, "files")}
        for artifact in (alone, among)
    ]
    assert reports[0] == reports[1]
    assert [found["file"][:14] for found in among.manifest.summary[HELD_BACK]] == [
        "day=2026-10-05",
        "day=2026-10-06",
        "day=2026-10-07",
    ]


def same(left: Artifact, right: Artifact) -> None:
    files = [{p.relative_to(a.path): p.read_bytes() for p in a.path.rglob("*") if p.is_file()} for a in (left, right)]
    assert [name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name)] == []


def test_night_after_night_appended_equals_everything_up_to_the_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Days come one by one; the file of a day far ahead lies there from the start and is read when its day has come."""
    log = days(tmp_path / "log", 0, 1, 9)
    prepare(up_to(log, tmp_path / "nights", 1), append=False)
    with caplog.at_level(logging.INFO):
        for number in (3, 5, 9):
            if number < 9:
                write_day(log, number)
            caplog.clear()
            night = prepare(up_to(log, tmp_path / "nights", number), append=True)
            assert "nothing to append to" not in caplog.text
            same(night, prepare(up_to(log, tmp_path / f"whole{number}", number), append=False))
    assert HELD_BACK not in night.manifest.summary


def test_what_has_seen_too_much_is_not_extended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Going back a day, or from everything to a day, prepares anew; so does a file that was seen in part."""
    log = days(tmp_path / "log", 0, 1)
    write_parquet(log, 2)  # with a late row about day 1

    def night(output: str, number: int | None, reason: str) -> None:
        caplog.clear()
        artifact = prepare(up_to(log, tmp_path / output, number), append=True)
        assert reason in caplog.text
        same(artifact, prepare(up_to(log, tmp_path / f"{output}{number}", number), append=False))

    prepare(up_to(log, tmp_path / "back", 2), append=False)
    night("back", 1, "has seen the events up to 2026-10-03")
    prepare(up_to(log, tmp_path / "all", None), append=False)
    night("all", 2, "has seen all events")
    prepare(up_to(log, tmp_path / "part", 1), append=False)
    night("part", 2, "'day=2026-10-03/part-0.parquet' holds")
