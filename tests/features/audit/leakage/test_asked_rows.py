"""Places of the history arrays whose time is before that of the event in front of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from features.audit.leakage.asked_rows import Arrays
from recsys.contracts.event_times import Times, WholeSeconds


def arrays_of(times: Times, offsets: list[int]) -> Arrays:
    ends = np.array(offsets)
    return Arrays(
        np.zeros(len(times), np.int32), times, ends, ends[1:], ends[1:], 1, pl.Series(range(len(offsets) - 1))
    )


@pytest.mark.parametrize("in_seconds", [False, True])
@pytest.mark.parametrize(
    ("times", "offsets", "places"),
    [
        ([5, 4, 4, 9, 8], [0, 3, 5], [1, 4]),  # within both users, the last event of all among them
        ([5, 6, 1, 2], [0, 2, 4], []),  # another user's event is in front
        ([5, 6, 1, 0], [0, 0, 2, 2, 4, 4], [3]),  # users without events, first, in between and last
        ([3, 2, 1], [0, 3], [1, 2]),
        ([], [0, 0], []),
    ],
)
def test_times_that_fall(times: list[int], offsets: list[int], places: list[int], in_seconds: bool) -> None:
    kept = WholeSeconds(np.array(times, np.uint32)) if in_seconds else np.array(times, np.int64) * 1_000_000
    assert arrays_of(kept, offsets).backwards.tolist() == places


def test_a_time_that_is_not_known_does_not_fall() -> None:
    arrays = arrays_of(np.array([5, -1, 3, 2]), [0, 4])
    assert arrays.backwards.tolist() == [3]
    assert replace(arrays, timestamp=np.array([-1, 7, 6, -1])).backwards.tolist() == [2]
