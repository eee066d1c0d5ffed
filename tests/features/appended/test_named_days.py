"""Days that an earlier data set might be thought to make needless to look at: each gives what preparing everything gives."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.appended.dataset import why_all_at_once
from features.build import FeaturesConfig
from recsys import native
from tests.features.appended.test_by_users import CONFIGS, both_ways
from tests.features.log.test_append import DAY_US, START_US, tables

NEW = "day=4"
EARLIER = [
    (day, user, item, 4 * day + place, True)
    for day in range(3)
    for user in "mp"
    for place, item in enumerate([10, 20, 30])
]
"""File, user, item, quarter of a day, liked."""

DAYS: dict[str, list[tuple[int, str | None, int, int, bool]]] = {
    "of one user, the other untouched": [(3, "p", 10, 40, True), (3, "p", 20, 41, True)],
    "with a new user in front of all": [(3, "a", 10, 40, True), (3, "a", 20, 41, True), (3, "a", 30, 42, True)],
    "with items in front and between": [(3, user, item, 40 + item, True) for user in "mp" for item in (5, 15)],
    "that takes an item over the k-core": [(1, "m", 40, 5, True), (3, "p", 40, 40, True), (3, "m", 40, 41, True)],
    "that takes a user over the k-core": [(1, "z", 10, 5, True), (3, "z", 20, 40, True), (3, "z", 30, 41, True)],
    "that repeats events of earlier days": [(1, "m", 10, 6, False), (3, "m", 10, 6, True), (3, "p", 30, 10, False)],
    "with rows that are refused": [(0, None, 10, 1, True), (3, None, 20, 40, True), (3, "m", 10, 41, True)],
    "of no usable row": [(3, None, 20, 40, True)],
    "before all others": [(3, "m", 30, -9, True), (3, "p", 30, -9, True)],
}


def rows_of(day: str) -> pl.DataFrame:
    file, user, item, quarter, like = zip(*EARLIER, *DAYS[day], strict=True)
    return pl.DataFrame(
        {
            "file": pl.Series(file, dtype=pl.Int32),
            "user_id": pl.Series(user, dtype=pl.String),
            "item_id": pl.Series(item, dtype=pl.Int64),
            "timestamp": [START_US + each * DAY_US // 4 for each in quarter],
            "like": like,
        }
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: "-".join(values))
@pytest.mark.parametrize("day", DAYS)
def test_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: str, values: dict[str, Any], compiled: bool
) -> None:
    if compiled and not native.available():
        pytest.skip("kernels are not compiled")
    monkeypatch.setattr("recsys.native.columns.available", lambda: compiled)
    at_once, by_users = both_ways(tmp_path, rows_of(day), [NEW], values)
    assert by_users == at_once
    assert isinstance(at_once, dict)  # and no refusal


def test_what_the_days_are_meant_to_do(tmp_path: Path) -> None:
    """The item and the user below the k-core come in with the day; numbers of items move; repeats are merged."""
    folders = {day: both_ways(tmp_path / str(at), rows_of(day), [NEW], CONFIGS[0])[1] for at, day in enumerate(DAYS)}
    ids = {day: pl.read_parquet(BytesIO(tree["items.parquet"]))["item_id"].to_list() for day, tree in folders.items()}
    assert ids["with items in front and between"] == [5, 10, 15, 20, 30]
    assert ids["that takes an item over the k-core"] == [10, 20, 30, 40]
    users = {day: pl.read_parquet(BytesIO(tree["users.parquet"]))["user_id"].to_list() for day, tree in folders.items()}
    assert users["with a new user in front of all"] == ["a", "m", "p"]
    assert users["that takes a user over the k-core"] == ["m", "p", "z"]
    merged = pl.read_parquet(BytesIO(folders["that repeats events of earlier days"]["merged.parquet"]))
    assert merged.height > 0
    refused = pl.read_parquet(BytesIO(folders["with rows that are refused"]["quarantine.parquet"]))
    assert refused.height == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"split": {"kind": "given"}}, "a given split"),
        ({"task": "session", "session_length": 2, "sessions": {"high_quality": {}}}, "features.sessions.high_quality"),
        ({"derived_signals": [{"name": "long"}]}, "features.derived_signals"),
    ],
)
def test_what_looks_at_all_events_says_so(values: dict[str, Any], reason: str) -> None:
    raw = tables(rows_of("before all others"))
    assert str(why_all_at_once(raw, FeaturesConfig.model_validate(values))).startswith(reason)
    assert why_all_at_once(raw, FeaturesConfig()) is None
    assert str(why_all_at_once(replace(raw, has_timestamps=False), FeaturesConfig())).startswith("a split by time")
