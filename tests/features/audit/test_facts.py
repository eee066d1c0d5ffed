"""What is said about prepared data, against numbers counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.audit.drift import jensen_shannon, psi, window_length
from features.audit.event_columns import EventColumns
from features.audit.facts import ODD_IDS, odd_ids, over_time, tail, write_facts
from features.build import FeaturesConfig, prepare
from features.data_report import doubling_labels
from features.passes.events import doubling_counts
from features.sources import TableSource
from recsys.contracts.dataset import Dataset

DAY = 86_400
START = 1_650_067_200  # 2022-04-16 00:00 UTC


def facts_of(folder: Path, rows: list[tuple[Any, ...]], **options: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["user_id", "item_id", "timestamp", *(["like"] if rows and len(rows[0]) > 3 else [])]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("timestamp") + START)
    table.write_parquet(folder / "interactions.parquet")
    source = TableSource(path=folder, timestamp_unit="s", **options)
    report = prepare(source, FeaturesConfig(split={"kind": "leave_last_out"}), folder / "out", seed=0)
    found = write_facts(folder / "out", report)
    assert json.loads((folder / "out" / "data_facts.json").read_text()) == json.loads(json.dumps(found))
    return found


LIKE = {"signals": [{"name": "like", "column": "like"}]}


def four_days() -> list[tuple[int, int, int, bool | None]]:
    """User 1: items 10, 11, 12, 13 on days 0-3; user 2: 10, 11, 10 on days 0, 1, 3; user 3 comes on day 3 for item 14."""
    days = {1: [(0, 10), (1, 11), (2, 12), (3, 13)], 2: [(0, 10), (1, 11), (3, 10)], 3: [(3, 14)]}
    return [(user, item, day * DAY + user, item == 10) for user, events in days.items() for day, item in events]


def test_four_days_by_hand(tmp_path: Path) -> None:
    found = facts_of(tmp_path, four_days(), **LIKE)
    assert found["size"] == {
        "events": 8, "users": 3, "items": 5, "events_per_user": pytest.approx(2.66667), "events_per_item": 1.6,
        "filled": pytest.approx(8 / 15, abs=1e-6),
    }  # fmt: skip
    time = found["over_time"]
    assert (time["step"], time["from"]) == ("day", ["2022-04-16", "2022-04-17", "2022-04-18", "2022-04-19"])
    assert (time["events"], time["users"]) == ([2, 2, 1, 3], [2, 2, 1, 3])
    assert time["signals"] == {"like": [1.0, 0.0, 0.0, pytest.approx(1 / 3, abs=1e-6)]}
    assert found["history_lengths"] == [["0", 0], ["1", 1], ["2–3", 1], ["4–7", 1]]
    assert {name: part["events"] for name, part in found["splits"].items()} == {"train": 4, "valid": 2, "test": 2}
    assert found["splits"]["test"]["first"] == "2022-04-19 00:00"
    assert found["items"]["largest"] == 3
    assert found["items"]["once"] == 3


def test_the_last_day_against_the_one_before(tmp_path: Path) -> None:
    """The log ends on day 3 at 00:00:03, so the last day begins on day 2 at 00:00:04: of items 10, 13, 14 two are new."""
    drift = facts_of(tmp_path, four_days(), **LIKE)["drift"]
    assert drift["days"] == 1
    assert drift["now"] == {"events": 3, "users": 3, "items": 3}
    assert drift["before"] == {"events": 1, "users": 1, "items": 1}  # user 1 takes 12 on day 2 at 00:00:01
    assert (drift["new_users"], drift["new_items"]) == (pytest.approx(1 / 3, abs=1e-6), pytest.approx(2 / 3, abs=1e-6))
    assert drift["events_on_new_items"] == pytest.approx(2 / 3, abs=1e-6)
    assert drift["jensen_shannon"] == 1.0
    like = drift["signals"]["like"]
    assert (like["before"], like["now"]) == (0.0, pytest.approx(1 / 3, abs=1e-6))
    # normal interval: 1/3 +- 1.96 sqrt(1/3 * 2/3 / 3)
    assert like["high"] - like["difference"] == pytest.approx(1.959964 * (2 / 27) ** 0.5, abs=1e-5)


def test_of_a_large_log_an_even_sample_is_counted(tmp_path: Path) -> None:
    """960 events, of which 240 are read: 24 runs of 10, the first and the last events among them."""
    rows = [(user, (user + step) % 50, step * DAY + user) for user in range(96) for step in range(10)]
    whole = facts_of(tmp_path, rows)
    spec = Dataset.open(tmp_path / "out").spec
    events = EventColumns.read(tmp_path / "out", spec, most=240)
    assert (events.total, len(events), events.share, whole["counted_share"]) == (960, 240, 0.25, 1.0)
    assert (events.user[0], events.user[-1]) == (0, 95)
    assert (np.diff(events.user) >= 0).all()
    assert over_time(events)["events"] == pytest.approx([24] * 10, abs=3)


def test_a_log_without_times_has_no_activity_and_no_drift(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "position": [0, 1, 2, 3]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    source = TableSource(path=tmp_path, timestamp_unit="none", columns={"position": "position"})
    report = prepare(source, FeaturesConfig(split={"kind": "leave_last_out"}), tmp_path / "out", seed=0)
    found = write_facts(tmp_path / "out", report)
    assert "over_time" not in found
    assert "drift" not in found
    assert found["splits"]["train"] == {"events": 2, "users": 1, "first": None, "last": None}


def test_a_long_log_is_shown_in_longer_steps(tmp_path: Path) -> None:
    found = facts_of(tmp_path, [(user, step, step * 100 * DAY + user) for user in range(3) for step in range(4)])
    assert found["over_time"]["step"] == "week"
    assert sum(found["over_time"]["events"]) == 12


@pytest.mark.parametrize(("days", "step", "steps"), [(119, "day", 120), (120, "week", 18)])
def test_120_days_are_shown_by_day_and_one_more_by_week(tmp_path: Path, days: int, step: str, steps: int) -> None:
    found = facts_of(tmp_path, [(1, 1, 0), (1, 2, DAY), (1, 3, days * DAY)])["over_time"]
    assert (found["step"], len(found["events"]), sum(found["events"])) == (step, steps, 3)
    assert found["from"][0] == "2022-04-16"


@pytest.mark.parametrize(
    ("ids", "odd"),
    [
        (["007", "8"], {"leading zeros": 1}),
        (["1.0", "2.0", "3"], {"a decimal point": 2}),
        (["9e12", "1.5E+3", "e9"], {"an exponent": 2}),
        (["a b", "ab"], {"blanks inside": 1}),
        (['"a"', "b'"], {"quotes": 2}),
        (["Anna", "anna", "ANNA"], {"capitals alone apart from another id": 2}),
        (["\u212a1", "K1"], {"capitals alone apart from another id": 1}),  # the sign of Kelvin: small, it is a k
        (
            ["007", "1.0", "A", "a"],
            {"leading zeros": 1, "a decimal point": 1, "capitals alone apart from another id": 1},
        ),
        (["u1", "u2", "-1"], {}),
    ],
)
def test_ids_of_odd_forms_are_counted(tmp_path: Path, ids: list[str], odd: dict[str, int]) -> None:
    rows = [(user, f"i{step}", step * DAY + place) for place, user in enumerate(ids) for step in range(3)]
    found = facts_of(tmp_path, rows)["ids"]["user"]
    assert found["type"] == "text"
    assert {name: one["count"] for name, one in found["odd"].items()} == odd


@given(
    ids=st.lists(st.text(st.sampled_from("aAzZ09.e+E '\"\t_é\u200b\u212a\u00a0"), max_size=5), max_size=6, unique=True)
)
@example(ids=["x0", "x01"])
@example(ids=["9.0"])
@example(ids=["01"])
@settings(max_examples=300, deadline=None)
def test_odd_ids_are_those_that_the_patterns_match(ids: list[str]) -> None:
    """Whatever is decided by bytes beforehand."""
    series = pl.Series(ids, dtype=pl.String)
    expected = {name: int(series.str.contains(pattern).sum()) for name, pattern in ODD_IDS.items()}
    expected["capitals alone apart from another id"] = len(ids) - series.str.to_lowercase().n_unique()
    found = {name: one["count"] for name, one in odd_ids(series)["odd"].items()}
    assert found == {name: count for name, count in expected.items() if count}


def test_the_long_tail_by_hand() -> None:
    """6, 2, 2, 0 of 10: the area under the curve of shares .6, .8, 1, 1 gives (2 * 3.4 - 1) / 4 - 1 = .45."""
    found = tail(np.array([2, 0, 6, 2]))
    assert found["gini"] == 0.45
    assert found["curve"][0] == 0.0
    assert found["curve"][-1] == 1.0
    assert tail(np.array([3, 3, 3]))["gini"] == pytest.approx(0.0, abs=1e-9)
    assert tail(np.zeros(4, np.int64))["gini"] == 0.0


def test_doubling_histogram_counts_everything() -> None:
    values = np.arange(1000)
    found = doubling_labels(doubling_counts(values))
    assert sum(count for _, count in found) == 1000
    assert found[-1] == ["512–1023", 488]
    assert doubling_labels(doubling_counts(np.empty(0, np.int64))) == []
    halves = doubling_counts(values[:300]) + doubling_counts(values[300:])
    assert doubling_labels(halves) == found


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([1, 1], [1, 1], 0.0),
        ([1, 0], [0, 1], 1.0),
        # middle (.75, .25): (log2(4/3) + .5 log2(2/3) + .5 log2 2) / 2
        ([2, 0], [1, 1], (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5) / 2),
    ],
)
def test_jensen_shannon_by_hand(before: list[int], now: list[int], expected: float) -> None:
    assert jensen_shannon(np.array(before), np.array(now)) == pytest.approx(expected)


def test_psi_of_items_that_were_not_there() -> None:
    """All events move to an item that had none: groups (1, floor) and (floor, 1) of 1e-4."""
    assert psi(np.array([5, 0]), np.array([0, 5])) == pytest.approx(2 * (1 - 1e-4) * np.log(1e4))


def test_stretches_of_short_and_long_logs() -> None:
    day = 86_400_000_000
    assert window_length(0, 21 * day) == 7 * day
    assert window_length(0, 3 * day) == day
    assert window_length(0, day) == day // 2
    assert window_length(5, 5) is None
