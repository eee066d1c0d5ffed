"""One night's data against another's: every kind of change is found, named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.audit.changes import MICROSECONDS_A_DAY, ChangesConfig, compare, refusals
from features.audit.contract import DataContract, Sample, contract_of, describe, read_contract, write_contract
from features.build import FeaturesConfig, foresee, prepare
from features.sources import TableSource
from features.tables import watched_times
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json

DAY = 86_400
START = 1_650_000_000
Rows = dict[str, list[Any]]


def rows() -> Rows:
    """Six users, five events each, a like in a third of the events, watch time of 20 s of 40 s."""
    events = [(user, 100 + (user + step) % 7, START + step * DAY + user) for user in range(6) for step in range(5)]
    count = len(events)
    return {
        "user_id": [user for user, _, _ in events],
        "item_id": [item for _, item, _ in events],
        "timestamp": [time for _, _, time in events],
        "like": [place % 3 == 0 for place in range(count)],
        "share": [place % 2 == 0 for place in range(count)],
        "watch": [20.0] * count,
        "length": [40.0] * count,
    }


def items(prefix: str = "c") -> Rows:
    return {"item_id": list(range(100, 107)), "title": ["t"] * 7, "category": [f"{prefix}{k % 3}" for k in range(7)]}


OPTIONS: dict[str, Any] = {
    "timestamp_unit": "s",
    "items": "items.parquet",
    "columns": {"watch_time": "watch", "duration": "length"},
    "item_columns": {"title": ["title"], "categories": ["category"]},
    "signals": [{"name": "like", "column": "like"}, {"name": "share", "column": "share"}],
}


def night(folder: Path, table: Rows, catalogue: Rows | None = None, **options: Any) -> DataContract:
    """Prepare a table and describe it."""
    folder.mkdir(parents=True)
    pl.DataFrame(table, schema_overrides={"like": pl.Boolean}).write_parquet(folder / "interactions.parquet")
    pl.DataFrame(catalogue or items()).write_parquet(folder / "items.parquet")
    given = {**OPTIONS, **options}
    config = given.pop("features", {"split": {"kind": "leave_last_out"}})
    report = prepare(TableSource(path=folder, **given), FeaturesConfig(**config), folder / "out", seed=0)
    return write_contract(folder / "out", report)


def test_the_contract_of_a_small_table_by_hand(tmp_path: Path) -> None:
    """30 events; likes in 10 of them, shares in 15; from day 0 of user 0 to day 4 of user 5."""
    contract = night(tmp_path / "a", rows())
    assert (contract.user_id_type, contract.item_id_type, contract.task) == ("integer", "integer", "next_item")
    assert contract.signals == ("like", "share")
    assert contract.signal_rates == {"like": pytest.approx(1 / 3, rel=1e-5), "share": 0.5}
    assert (contract.events, contract.positive_share, contract.sessions_by) == (30, 1.0, "gap")
    assert (contract.first_time, contract.last_time) == (START * 10**6, (START + 4 * DAY + 5) * 10**6)
    assert (contract.users.count, contract.items.count, contract.categories.count) == (6, 7, 3)
    assert contract.users.shapes == {"9": 1.0}
    assert read_contract(tmp_path / "a" / "out" / "data_contract.json") == contract


@pytest.mark.parametrize("options", [{}, {"columns": {}}, {"columns": {"duration": "length"}}])
def test_data_that_are_not_written_promise_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of watched times, two thirds are not known, some are 0, and the median is of the others."""
    table = rows() | {"watch": [None, None, 20.0, None, None, 0.0, None, None, 30.0, None] * 3}
    written = night(tmp_path / "a", table, **options)
    source = TableSource(path=tmp_path / "a", **{**OPTIONS, **options})
    data = foresee(source, FeaturesConfig(split={"kind": "leave_last_out"}), seed=0)
    users, watched = data.users["user_id"], watched_times(data.events.log)
    assert contract_of(data.spec, data.report, users, data.items.table, watched) == written
    assert (written.watch_time_ms is None) == bool(options)
    assert (written.duration_ms is None) == (options == {"columns": {}})


def test_the_same_table_again_and_a_day_more_are_no_change(tmp_path: Path) -> None:
    first = night(tmp_path / "a", rows())
    assert compare(first, night(tmp_path / "b", rows()), ChangesConfig()) == []
    longer = {name: values + values[-3:] for name, values in rows().items()}
    longer["timestamp"][-3:] = [START + 6 * DAY, START + 6 * DAY + 1, START + 6 * DAY + 2]
    longer["user_id"][-1], longer["item_id"][-1] = 99, 106
    assert compare(first, night(tmp_path / "c", longer), ChangesConfig()) == []


def changed(**columns: Callable[[Any], Any]) -> Rows:
    """The table with some columns mapped value by value."""
    table = rows()
    return {
        name: [columns[name](value) for value in values] if name in columns else values
        for name, values in table.items()
    }


SIGNALS = OPTIONS["signals"]
NO_ITEMS = {"items": None, "item_columns": {}}
NO_TIMES = {"timestamp_unit": "none", "columns": {**OPTIONS["columns"], "position": "timestamp"}}
SESSIONS = {"features": {"task": "session", "session_length": 2, "split": {"kind": "leave_last_out"}}}
CASES: list[tuple[str, Rows, dict[str, Any], set[str], str]] = [
    ("users as text", changed(user_id=str), {}, {"user_id_type"}, "user ids were integers and are text now"),
    ("items as text", changed(item_id=str), NO_ITEMS, {"item_id_type", "categories"}, "item ids were"),
    ("zero-padded users", changed(user_id=lambda u: f"{u:08}"), {}, {"user_id_type", "users"}, "only 0.0%"),
    ("prefixed users", changed(user_id=lambda u: f"web-{u}"), {}, {"user_id_type", "users"}, "'a-9' (100.0%)"),
    ("other users", changed(user_id=lambda u: u + 1000), {}, {"users"}, "of 6 users then and 6 now"),
    ("other items", changed(item_id=lambda i: i + 1000), NO_ITEMS, {"items", "categories"}, "7 items"),
    ("signal renamed", rows(), {"signals": [{"name": "liked", "column": "like"}, SIGNALS[1]]}, {"signals"}, "renamed?"),
    ("signals reordered", rows(), {"signals": SIGNALS[::-1]}, {"signals"}, "the same in another order"),
    ("signal removed", rows(), {"signals": SIGNALS[:1]}, {"signals"}, "[share] gone"),
    ("signal added", rows(), {"signals": [*SIGNALS, {"name": "again", "column": "like"}]}, {"signals"}, "[again] new"),
    ("signal false everywhere", changed(like=lambda _: False), {}, {"signal_gone"}, "'like' was given in 33.3%"),
    ("signal not known", changed(like=lambda _: None), {}, {"signal_gone"}, "is not known in any row"),
    ("times lost", rows(), NO_TIMES, {"timestamps", "sessions"}, "events had times and have none now"),
    ("an old export", changed(timestamp=lambda t: t - 900 * DAY), {}, {"times"}, "all before the first one of then"),
    ("from another decade", changed(timestamp=lambda t: t + 900 * DAY), {}, {"times"}, "long after the last one"),
    ("watch time in ms", changed(watch=lambda w: w * 1000), {}, {"watch_unit"}, "the median watch time"),
    ("duration in minutes", changed(length=lambda w: w / 60), {}, {"watch_unit"}, "the median duration"),
    ("sessions of two", rows(), SESSIONS, {"task"}, "next_item of 1 and is session of 2"),
]


@pytest.mark.parametrize(
    ("table", "options", "kinds", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_change_is_named_and_stops(
    tmp_path: Path, table: Rows, options: dict[str, Any], kinds: set[str], words: str
) -> None:
    options = dict(options)
    catalogue = items()
    if isinstance(table["item_id"][0], str):
        catalogue["item_id"] = [str(item) for item in catalogue["item_id"]]
    found = compare(night(tmp_path / "a", rows()), night(tmp_path / "b", table, catalogue, **options), ChangesConfig())
    stopping = refusals(found, ChangesConfig())
    assert {change.kind for change in stopping} == kinds
    assert words in " ".join(change.words for change in stopping)
    accepted = ChangesConfig(accept=tuple(sorted(kinds)))
    assert refusals(found, accepted) == []


def test_a_replaced_vocabulary_of_categories_stops(tmp_path: Path) -> None:
    found = compare(night(tmp_path / "a", rows()), night(tmp_path / "b", rows(), items("genre ")), ChangesConfig())
    assert [change.kind for change in found] == ["categories"]


@pytest.mark.parametrize(("on_small_volume", "stops"), [("warn", False), ("stop", True)])
def test_a_small_night_warns_or_stops(tmp_path: Path, on_small_volume: str, stops: bool) -> None:
    """60 copies then, 6 of them now: 10 % of the events."""
    many = rows()
    times = many["timestamp"]
    table = {name: values * 10 for name, values in many.items()}
    table["timestamp"] = [time + copy for copy in range(10) for time in times]
    config = ChangesConfig(on_small_volume=on_small_volume)
    found = compare(night(tmp_path / "a", table), night(tmp_path / "b", rows()), config)
    volume = [change for change in found if change.kind == "volume"]
    assert len(volume) == 1
    assert "300 events and there are 30, 10.0% of them" in volume[0].words
    assert bool(refusals(found, config)) is stops


def test_rates_that_jump_are_a_warning(tmp_path: Path) -> None:
    """Likes in 10 of 30 events, then in 29: odds 1/2 and 29."""
    table = rows()
    table["like"] = [True] * 29 + [False]
    found = compare(night(tmp_path / "a", rows()), night(tmp_path / "b", table), ChangesConfig())
    assert [(change.kind, change.stops) for change in found] == [("signal_rates", False)]


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    table = changed(user_id=lambda u: f"web-{u}", watch=lambda w: w * 1000, timestamp=lambda t: t - 900 * DAY)
    found = compare(night(tmp_path / "a", rows()), night(tmp_path / "b", table, signals=SIGNALS[::-1]), ChangesConfig())
    assert [change.kind for change in found] == ["user_id_type", "signals", "times", "watch_unit", "users"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="user_id_type"):
        ChangesConfig(accept=("user_ids",))  # type: ignore[arg-type]


def test_a_damaged_contract_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data_contract.json").write_text('{"task": 3}')
    with pytest.raises(ArtifactError, match="is no data contract"):
        read_contract(tmp_path / "data_contract.json")
    assert read_contract(tmp_path / "absent.json") is None


def test_describing_is_reading_only(tmp_path: Path) -> None:
    contract = night(tmp_path / "a", rows())
    before = sorted(path.name for path in (tmp_path / "a" / "out").iterdir())
    assert describe(tmp_path / "a" / "out", read_json(tmp_path / "a" / "out" / "data_report.json")) == contract
    assert sorted(path.name for path in (tmp_path / "a" / "out").iterdir()) == before


def test_what_the_report_counted_is_what_the_events_say(tmp_path: Path) -> None:
    """Likes that are not known count as neither; the instant of the last event keeps its microseconds."""
    table = rows()
    table["like"] = [None if place % 5 == 0 else place % 3 == 0 for place in range(len(table["user_id"]))]
    table["timestamp"] = [time + 0.000001 * (time == max(table["timestamp"])) for time in table["timestamp"]]
    contract = night(tmp_path / "a", table)
    events = pl.read_parquet(tmp_path / "a" / "out" / "events.parquet")
    assert events["like"].null_count() > 0
    assert contract.signal_rates["like"] == pytest.approx(events["like"].mean(), rel=1e-5)
    assert contract.positive_share == pytest.approx(events["positive"].mean(), rel=1e-5)
    assert (contract.first_time, contract.last_time) == (events["timestamp"].min(), events["timestamp"].max())
    assert contract.last_time is not None
    assert contract.last_time % 1_000_000 == 1
    assert contract.watch_time_ms == 20.0


def contract(first: int = 100, last: int = 110, like: float = 0.1, users: range = range(10)) -> DataContract:
    """A night from day ``first`` to day ``last``."""
    ids = Sample(count=len(users), hashes=tuple(users), shapes={"9": 1.0})
    none = Sample(count=0, hashes=(), shapes={})
    day = MICROSECONDS_A_DAY
    return DataContract(
        **{"user_id_type": "integer", "item_id_type": "integer", "task": "next_item", "session_length": 1},
        **{"signals": ("like",), "signal_rates": {"like": like}, "positive_share": 1.0, "sessions_by": "gap"},
        **{"has_timestamps": True, "first_time": first * day, "last_time": last * day, "events": 100},
        **{"watch_time_ms": None, "duration_ms": None, "users": ids, "items": ids, "categories": none, "authors": none},
    )


@pytest.mark.parametrize(
    ("now", "kinds"),
    [
        ({"like": 0.35}, []),  # odds of 1/9 and 7/13: 4.8 times
        ({"like": 0.36}, ["signal_rates"]),  # 5.1 times
        ({"like": 0.02}, ["signal_rates"]),  # 1/5.4
        ({"first": 90}, []),  # begins earlier, and goes on
        ({"first": 90, "last": 105}, ["times"]),  # ends earlier: a warning
        ({"first": 90, "last": 99}, ["times"]),
        ({"first": 110 + 365, "last": 500}, []),  # a year of silence, to the day
        ({"first": 110 + 366, "last": 500}, ["times"]),
        ({"users": range(5, 15)}, []),  # half of the users are known: as many as are asked for
        ({"users": range(6, 16)}, ["users", "items"]),
    ],
)
def test_the_borders_of_what_is_named(now: dict, kinds: list[str]) -> None:
    found = compare(contract(), contract(**now), ChangesConfig())
    assert [change.kind for change in found] == kinds
    ends_early = now == {"first": 90, "last": 105}
    assert [change.stops for change in found] == [kind != "signal_rates" and not ends_early for kind in kinds]
