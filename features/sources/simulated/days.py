"""A world that goes on from day to day: new items and users every day, interests that wander, and the log of each day.

Where :class:`~features.sources.simulated.source.SimulatedSource` is a finished log, this is one that grows, as a nightly run
meets it. After each day the world can be asked for the truth about its users as they are then
(:meth:`~features.sources.simulated.world.SimulatedWorld.true_utility`). What is recommended does not change what is logged:
the feed of the simulator shows the items, so that several models can be followed over the same month.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sources.simulated.behaviour import BoolArray, UserState, new_users, start_session
from features.sources.simulated.catalogue import IndexArray, item_table
from features.sources.simulated.visits import DAY_US, HOUR_US, START_US, Step, log_table, visit
from features.sources.simulated.world import SimulatedWorld

FIRST_DAY: Final = datetime.fromtimestamp(START_US / 1e6, UTC).date()
_LAST_START: Final = 20.0
"""Hour by which visits have begun; with an hour between two visits all end within their day."""
_LATEST: Final = 22.5


@dataclass(frozen=True)
class DaysConfig:
    """Size and restlessness of the world.

    Attributes:
        users: Users by the end.
        items: Items by the end; three in ten appear during the days.
        topics: Topics.
        parts: Items per series.
        days: Days until all of them have come.
        visits: Mean visits per user and day.
        visit_length: Mean exposures per visit.
        late_users: Share of the users who come during the days, on a day drawn evenly.
        wandering: Standard deviation of the step that a user's home interest in each topic takes from day to day.
        homing: Share of a day's distance from the first home that is kept; 1 is a walk without end.
        feed_noise: As in the source.
        seed: Decides everything.
    """

    users: int = 800
    items: int = 480
    topics: int = 8
    parts: int = 6
    days: int = 50
    visits: float = 0.3
    visit_length: float = 8.0
    late_users: float = 0.3
    wandering: float = 0.25
    homing: float = 0.98
    feed_noise: float = 1.0
    seed: int = 17


class GrowingWorld(SimulatedWorld):
    """The world at the end of a day; :meth:`next_day` goes on to the next.

    Attributes:
        day: Days that have passed.
        arrival: ``[U]`` number of the day on which each user comes.
    """

    def __init__(self, config: DaysConfig) -> None:
        super().__init__(
            config.users, config.items, config.topics, config.parts, config.days, config.seed, config.feed_noise
        )
        self.config = config
        self.day = 0
        rng = np.random.default_rng([config.seed, 5])
        late = rng.random(config.users) < config.late_users
        self.arrival = np.where(late, rng.integers(1, max(config.days, 2), config.users), 0)
        activity = np.exp(rng.normal(0.0, 0.6, config.users))
        self._rate = config.visits * activity / activity.mean()
        self._state = new_users(config.users, self.items, rng)
        self._first_home = self._state.home.copy()
        self._visits = np.zeros(config.users, np.int32)
        self.keep(self._state, 0)

    @property
    def date(self) -> date:
        """The day that :meth:`next_day` simulated last."""
        return FIRST_DAY + timedelta(days=self.day - 1)

    def next_day(self) -> pl.DataFrame:
        """Simulate a day.

        Returns:
            Its log in canonical columns, sorted by user and time; all of it lies within the day.
        """
        config, state = self.config, self._state
        rng = np.random.default_rng([config.seed, 6, self.day])
        self._wander(state, rng)
        counts = np.where(self.arrival <= self.day, rng.poisson(self._rate), 0)
        counts[self.arrival == self.day] += self.day > 0  # whoever comes makes a visit
        clock = np.full(config.users, self.day * DAY_US, np.float64)
        hours = np.sort(rng.random((config.users, max(int(counts.max()), 1))) * _LAST_START, axis=1)
        steps: list[Step] = []
        for turn in range(int(counts.max())):
            start = np.maximum(self.day * DAY_US + hours[:, turn] * HOUR_US, clock + (turn > 0) * HOUR_US)
            rows = np.flatnonzero((counts > turn) & (start < self.day * DAY_US + _LATEST * HOUR_US))
            start_session(state, rows, rng)
            clock[rows] = start[rows]
            left = rng.geometric(1.0 / config.visit_length, config.users)
            steps += visit(self, state, rows, clock, left, self._visits, rng)
            self._visits[rows] += 1
        self.day += 1
        if not steps:
            raise ValueError(f"nobody came on day {self.day}; raise users or visits")
        return log_table(self, 0, steps, by_request=False)

    def catalogue(self) -> pl.DataFrame:
        """The items that exist at the end of the day, in canonical item columns."""
        return item_table(self.items).filter(pl.Series(self.released()))

    def released(self) -> BoolArray:
        """``[I]`` which items exist at the end of the day."""
        found: BoolArray = self.items.release_day < self.day
        return found

    def attainable(self, user: IndexArray, length: int) -> npt.NDArray[np.float32]:
        """The worth of the lists that nobody could better by much, knowing all, ``[N]``."""
        return self.true_utility(user, self.greedy_sessions(user, length, self.released()))

    def _wander(self, state: UserState, rng: np.random.Generator) -> None:
        """Move the homes of all users by a day's step."""
        noise = rng.normal(0.0, self.config.wandering, state.home.shape).astype(np.float32)
        moved = self._first_home + self.config.homing * (state.home - self._first_home) + noise
        state.interest[:] += moved - state.home
        state.home[:] = moved
