"""A world that grows day by day: its log, its newcomers, and what it knows of its users after each day."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from features.sources.simulated.catalogue import FIRST_ITEM_ID
from features.sources.simulated.days import DaysConfig, GrowingWorld
from features.sources.simulated.visits import DAY_US, FIRST_USER_ID, START_US

CONFIG = DaysConfig(users=120, items=120, topics=3, days=12, visits=1.0)


@pytest.fixture(scope="module")
def month() -> tuple[GrowingWorld, list[pl.DataFrame]]:
    world = GrowingWorld(CONFIG)
    return world, [world.next_day() for _ in range(12)]


def test_a_day_of_the_log_lies_within_its_day(month: tuple[GrowingWorld, list[pl.DataFrame]]) -> None:
    """2024-01-01 is day 0, so that after twelve days the last one is 2024-01-12."""
    world, days = month
    for number, log in enumerate(days):
        begin = START_US + number * DAY_US
        assert begin <= int(log["timestamp"].min())  # type: ignore[arg-type]
        assert int(log["timestamp"].max()) < begin + DAY_US  # type: ignore[arg-type]
    assert str(world.date) == "2024-01-12"


def test_the_same_seed_gives_the_same_days(month: tuple[GrowingWorld, list[pl.DataFrame]]) -> None:
    again = GrowingWorld(CONFIG)
    for log in month[1][:3]:
        assert again.next_day().equals(log)
    other = GrowingWorld(DaysConfig(**{**CONFIG.__dict__, "seed": 18}))
    assert not other.next_day().equals(month[1][0])


def test_items_and_users_come_on_the_way() -> None:
    """Whoever comes on a day visits on it; no item is shown before its release."""
    world = GrowingWorld(CONFIG)
    known = world.arrival < 0
    for number in range(12):
        before = world.released()
        log = world.next_day()
        users = log["user_id"].unique().to_numpy() - FIRST_USER_ID
        assert world.arrival[users].max() <= number
        assert set(np.flatnonzero(world.arrival == number)) <= set(users) or number == 0
        known[users] = True
        items = log["item_id"].to_numpy() - FIRST_ITEM_ID
        assert (world.items.release_day[items] <= number + 1).all()
        assert (world.released() | ~before).all()
        assert len(world.catalogue()) == world.released().sum()
    assert world.released().sum() == 120
    assert 0.2 < np.mean(world.arrival > 0) < 0.4


def test_sessions_are_visits(month: tuple[GrowingWorld, list[pl.DataFrame]]) -> None:
    """A session belongs to one user and one day, and a user's sessions are numbered as they come."""
    log = pl.concat(month[1])
    sessions = log.group_by("session_id").agg(
        pl.col("user_id").n_unique(),
        (pl.col("timestamp") // DAY_US).n_unique().alias("days"),
        pl.col("timestamp").min(),
    )
    assert sessions["user_id"].max() == 1
    assert sessions["days"].max() == 1
    times = log.sort("user_id", "timestamp").group_by("user_id", maintain_order=True).agg("session_id")
    assert all(numbers == sorted(numbers) for numbers in times["session_id"].to_list())


def test_interests_wander_and_homes_with_them() -> None:
    restless, calm = (
        GrowingWorld(DaysConfig(users=200, items=120, topics=3, days=12, wandering=step)) for step in (0.25, 0.0)
    )
    first = restless._state.home.copy()
    for _ in range(4):
        restless.next_day()
        calm.next_day()
    assert np.array_equal(calm._state.home, calm._first_home)
    # four steps of .25, each later one keeping .98 of the distance: .25 sqrt(1 + .96 + .92 + .89) = .485
    assert np.std(restless._state.home - first) == pytest.approx(0.485, rel=0.05)


def test_the_truth_is_that_of_the_day() -> None:
    """Nothing is better than what is attainable, and an item that a user watched meanwhile is worth less to them."""
    world = GrowingWorld(CONFIG)
    log = world.next_day()
    users = log["user_id"].unique().to_numpy() - FIRST_USER_ID
    rng = np.random.default_rng(0)
    there = np.flatnonzero(world.released())
    some = np.stack([rng.choice(there, 5, replace=False) for _ in users])
    assert (world.attainable(users, 5) >= world.true_utility(users, some) - 0.05).mean() > 0.99
    seen = world._state.seen[users]
    row, item = np.argwhere(seen)[0]
    one = users[row : row + 1]
    worth = world.true_utility(one, np.array([[item]]))
    world._state.seen[one, item] = False
    assert world.true_utility(one, np.array([[item]])) > worth


def test_a_world_without_visits_says_so() -> None:
    with pytest.raises(ValueError, match="nobody came on day 1"):
        GrowingWorld(DaysConfig(users=2, items=120, topics=3, days=12, visits=0.0)).next_day()
