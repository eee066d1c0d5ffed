"""Null values that a recipe declares: they stand for nothing also where they read as a number, a time or a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.sources.base import Source
from tests.features.test_misread_inputs import EVENTS, START, USERS, cells, csv, every_text_file, prepared


@every_text_file
@pytest.mark.parametrize(
    ("nothing", "column", "declared", "refused"),
    [
        ("946684800", "timestamp", {}, {"null timestamp": 3}),  # the year 2000, where no time is known
        ("2000-01-01", "timestamp", {"timestamp_unit": "datetime"}, {"null timestamp": 3}),
        ("-1", "place", {"timestamp_unit": "none", "columns": {"position": "place"}}, {"null position": 3}),
        ("-1", "seen", {"columns": {"watch_time": "seen"}}, {}),
        ("-1", "stars", {"signals": [{"name": "liked", "column": "stars", "at_most": 4}]}, {}),
        ("-1", "stars", {"signals": [{"name": "liked", "column": "stars"}]}, {}),
        ("-", "stars", {"signals": [{"name": "liked", "column": "stars", "equals": "4"}]}, {}),
        ("0", "stars", {"signals": [{"name": "liked", "column": "stars", "equals": True}]}, {}),
    ],
)
def test_a_declared_null_value_is_none_where_it_reads_as_one(
    write: Callable[..., Source], nothing: str, column: str, declared: dict, refused: dict[str, int], tmp_path: Path
) -> None:
    """User 0's three values stand for nothing, though they read as a number, a time or a text; user 0 is no marker."""
    values: list[Any] = [START + place for place in range(EVENTS)] if column == "timestamp" else ["4"] * EVENTS
    if declared.get("timestamp_unit") == "datetime":
        values = [f"2023-11-14 {place // 60:02}:{place % 60:02}:00" for place in range(EVENTS)]
    if column == "place":
        values = list(range(EVENTS))
    if nothing == "0":
        values = ["1"] * EVENTS
    named = [f"u{user}" for user in cells()["user_id"]]
    columns = cells(user_id=named, item_id=[f"i{item}" for item in cells()["item_id"]], **{column: values})
    columns[column] = [nothing] * 3 + list(values[3:])
    report, users, quarantine = prepared(write(tmp_path, columns, null_values=[nothing], **declared), tmp_path)
    assert report["quarantined"] == refused
    assert report["null_markers"] == {column: {nothing: 3}}
    assert len(users) == USERS - bool(refused)
    assert len(quarantine) == sum(refused.values())
    if "signals" in declared:
        assert report["signals"]["liked"] == {"true": EVENTS - 3, "false": 0, "not_known": 3}


def test_a_declared_null_value_is_no_title_and_no_category(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,genre\n0,A,-\n1, - ,b\n")
    declared = {"items": "items.csv", "item_columns": {"title": ["title"], "categories": ["genre"]}}
    for null_values, titles, genres in ((["-"], ["A", None], [None, ["b"]]), (None, ["A", "-"], [["-"], ["b"]])):
        items = csv(tmp_path, cells(), null_values=null_values, **declared).read(0).items
        assert items is not None
        assert items["title"].to_list() == titles
        assert items["categories"].to_list() == genres
