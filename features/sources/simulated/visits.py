"""A visit: what users are shown from its first exposure to its last, and the log of it.

Both forms of the simulator's log are made of visits: the source that simulates everything at once, and the days of a world
that goes on from night to night.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sources.simulated.behaviour import Feedback, UserState, after_exposure, draw_feedback, utility_now
from features.sources.simulated.catalogue import FIRST_ITEM_ID, IndexArray
from features.sources.simulated.feed import show
from features.sources.simulated.world import SimulatedWorld
from recsys.contracts.columns import Columns

FIRST_USER_ID: Final = 1_000_000
"""user_id = FIRST_USER_ID + place in the world."""

START_US: Final = 1_704_067_200_000_000  # 2024-01-01 00:00 UTC
DAY_US: Final = 86_400_000_000
HOUR_US: Final = 3_600_000_000
SIGNALS: Final = ("long_view", "like", "follow", "share")

Step = dict[str, npt.NDArray[Any]]
"""One exposure of several users: columns of the log."""


def visit(
    world: SimulatedWorld,
    state: UserState,
    rows: IndexArray,
    clock: npt.NDArray[np.float64],
    left: IndexArray,
    number: npt.NDArray[np.int32],
    rng: np.random.Generator,
    request_length: int = 1,
) -> list[Step]:
    """Let some users meet the world's feed side by side, each for as many exposures as it stays.

    Args:
        state: Of all U users; changed in place.
        rows: Places of those who visit.
        clock: ``[U]`` microseconds since the start of the log; goes on to the end of the visit.
        left: ``[U]`` exposures of the visit.
        number: ``[U]`` which visit of the user it is.
        request_length: Exposures that the feed fixes at once.

    Returns:
        Exposures in order.
    """
    count = len(clock)
    request = np.empty((count, request_length), np.int64)
    steps: list[Step] = []
    for place in range(int(left[rows].max(initial=0))):
        now = rows[left[rows] > place]
        day = (clock[now] / DAY_US).astype(np.float32)
        if request_length == 1:
            item, value = show(state, world.items, now, day, rng, world.feed_noise)
        else:
            turn = place % request_length
            if turn == 0:
                request[now] = world.plan(state.take(now), request_length, day, rng)
            item = request[now, turn]
            value = utility_now(state, world.items, now, item)
        seen = draw_feedback(value, rng)
        steps.append(
            {
                "user": now.astype(np.int32),
                "item": item.astype(np.int32),
                "clock": clock[now].astype(np.int64),
                "session": number[now],
                "request": np.full(len(now), place // request_length, np.int32),
                "feedback": _packed(seen),
                "watch_ratio": seen.watch_ratio,
            }
        )
        after_exposure(state, world.items, now, item, seen)
        watched_us = seen.watch_ratio * world.items.duration_ms[item] * 1e3
        clock[now] += watched_us + rng.uniform(0.5e6, 3e6, len(now))
    return steps


def _packed(seen: Feedback) -> npt.NDArray[np.uint8]:
    flags = (getattr(seen, name) for name in SIGNALS)
    return np.sum([flag.astype(np.uint8) << bit for bit, flag in enumerate(flags)], axis=0, dtype=np.uint8)


def log_table(world: SimulatedWorld, first_user: int, steps: list[Step], *, by_request: bool) -> pl.DataFrame:
    """Sort exposures by user and time, and name the columns canonically.

    Args:
        first_user: Place of the first user in the world.
        steps: At least one.
        by_request: A request is a session of its own.
    """
    columns = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
    order = np.lexsort((columns["clock"], columns["user"]))
    sorted_columns = {name: values[order] for name, values in columns.items()}
    duration = world.items.duration_ms[sorted_columns["item"]]
    user_id = sorted_columns["user"].astype(np.int64) + first_user + FIRST_USER_ID
    session_id = user_id * 1_000_000 + sorted_columns["session"]
    if by_request:
        session_id = session_id * 1_000 + sorted_columns["request"]
    return pl.DataFrame(
        {
            Columns.USER_ID: user_id,
            Columns.ITEM_ID: sorted_columns["item"].astype(np.int64) + FIRST_ITEM_ID,
            Columns.TIMESTAMP: sorted_columns["clock"] + START_US,
            Columns.SESSION_ID: session_id,
            Columns.WATCH_TIME_MS: np.round(sorted_columns["watch_ratio"] * duration),
            Columns.DURATION_MS: duration,
            **{name: (sorted_columns["feedback"] >> bit & 1).astype(bool) for bit, name in enumerate(SIGNALS)},
        }
    )
