"""The borders of the two stretches that the drift is measured between, to the microsecond."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from features.audit.drift import DAY, drift_at_the_end, window_length
from features.audit.event_columns import EventColumns


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (21 * DAY, 7 * DAY),
        (21 * DAY - 1, DAY),
        (3 * DAY, DAY),
        (3 * DAY - 1, (3 * DAY - 1) // 2),
        (2, 1),
        (1, 1),
        (0, None),
    ],
)
def test_the_length_follows_the_span(span: int, expected: int | None) -> None:
    assert window_length(5, 5 + span) == expected


def events_of(rows: list[tuple[int, int, int]]) -> EventColumns:
    """Events of user, item and time, in the order of users."""
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int8)
    return EventColumns(
        total=len(rows),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=time,
        split=zeros,
        positive=zeros == 0,
        signals={},
        num_items=3,
    )


def test_events_on_the_borders_by_hand() -> None:
    """Ten days, so stretches of a day: (border - day) up to border - 1, and border up to the last event.

    User 3 is new, and so is item 2; item 0 was there on the first day.
    """
    last = 10 * DAY
    border = last + 1 - DAY
    rows = [(0, 0, 0), (0, 0, border - DAY - 1), (1, 1, border - DAY), (2, 1, border - 1), (2, 2, last), (3, 0, border)]
    found = drift_at_the_end(events_of(rows), cast(Any, SimpleNamespace(num_items=3)))
    assert found["days"] == 1
    assert found["before"] == {"events": 2, "users": 2, "items": 1}
    assert found["now"] == {"events": 2, "users": 2, "items": 2}
    assert (found["new_users"], found["new_items"], found["events_on_new_items"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("times", [[0, 10 * DAY], [0, 0], [0, 1, 10 * DAY]])
def test_a_stretch_without_events_is_compared_with_nothing(times: list[int]) -> None:
    rows = [(user, 0, time) for user, time in enumerate(times)]
    assert drift_at_the_end(events_of(rows), cast(Any, SimpleNamespace(num_items=3))) == {}
