"""The simulated world: reproducible, with the structure it promises, and a truth that fits the log."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.sources import SimulatedSource
from features.sources.simulated.behaviour import (
    draw_feedback,
    expected_value,
    item_utility,
    new_users,
    subtopic_utility,
    tire,
    watched,
)
from features.sources.simulated.catalogue import FIRST_ITEM_ID, item_table, make_items
from features.sources.simulated.feed import plan_exploration, plan_request, show
from features.sources.simulated.visits import FIRST_USER_ID, START_US
from features.sources.simulated.world import SimulatedWorld

SMALL = SimulatedSource(users=300, items=200, events=15_000, topics=6)


@pytest.fixture(scope="module")
def simulated() -> tuple[SimulatedWorld, pl.DataFrame]:
    return SMALL.simulate(7)


def test_the_seed_decides_everything(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    assert SMALL.simulate(7, keep_state=False)[1].equals(simulated[1])
    assert not SMALL.simulate(8, keep_state=False)[1].equals(simulated[1])
    assert SMALL.fingerprint() != SimulatedSource(users=301, items=200, events=15_000, topics=6).fingerprint()


def test_the_log_has_the_promised_size_and_order(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    world, log = simulated
    assert len(log) == pytest.approx(15_000, rel=0.1)
    assert log["user_id"].n_unique() == 300
    within = log.filter(pl.col("user_id") == pl.col("user_id").shift(1))
    assert (log["timestamp"].diff().fill_null(0).filter(log["user_id"] == log["user_id"].shift(1)) > 0).all()
    assert len(within) == len(log) - 300
    # sessions are runs, and lie at least an hour less the last view apart
    assert log.select(pl.col("session_id").rle_id().n_unique()).item() == log["session_id"].n_unique()
    day = (log["timestamp"].to_numpy() - START_US) / 86_400e6
    unreleased = world.items.release_day[log["item_id"].to_numpy() - FIRST_ITEM_ID] > day + 1e-6
    assert unreleased.mean() < 0.001
    ratio = log["watch_time_ms"] / log["duration_ms"]
    sure = (ratio - 0.7).abs() > 0.001  # watch time is rounded to a millisecond
    assert ((ratio >= 0.7) == log["long_view"]).filter(sure).all()
    assert 0.2 < log["long_view"].mean() < 0.6


def test_a_like_makes_hungry_and_a_mere_view_sates(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    """Within the user's next five exposures the sub-topic comes back far more often after a like than after a view.

    This is what a model can see in the behaviour of the history and a chain over item ids cannot.
    """
    world, log = simulated
    subtopic = world.items.subtopic[log["item_id"].to_numpy() - FIRST_ITEM_ID]
    user = log["user_id"].to_numpy()
    back = np.zeros(len(log), bool)
    for step in range(1, 6):
        back[:-step] |= (subtopic[step:] == subtopic[:-step]) & (user[step:] == user[:-step])
    liked = log["like"].to_numpy()
    viewed = log["long_view"].to_numpy() & ~liked
    assert back[liked].mean() > 2 * back[viewed].mean()


def test_long_view_probability_is_the_logistic_of_the_utility() -> None:
    """At utility 2.8 a view is a coin toss: 2.8 is the bias, and sigmoid(0) = 0.5; at 4.0 so is a like."""
    rng = np.random.default_rng(0)
    assert draw_feedback(np.full(40_000, 2.8, np.float32), rng).long_view.mean() == pytest.approx(0.5, abs=0.01)
    assert draw_feedback(np.full(40_000, 4.0, np.float32), rng).like.mean() == pytest.approx(0.5, abs=0.01)


def test_expected_value_is_the_mean_of_what_users_do() -> None:
    """1 a view, 1 a like, 3 a follow, 3 a share, averaged over draws, equals the closed form."""
    rng = np.random.default_rng(1)
    for utility in (1.0, 3.0, 6.0):
        value = np.full(100_000, utility, np.float32)
        done = draw_feedback(value, rng)
        mean = (done.long_view + 1.0 * done.like + 3.0 * done.follow + 3.0 * done.share).mean()
        assert mean == pytest.approx(float(expected_value(value[:1])[0]), abs=0.03)


def test_true_utility_counts_fatigue_step_by_step(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    """Two unseen items a, b: worth v(a) + v(b after a), where b lost exactly 1.0 * fatigue 1 if it shares a's topic."""
    world, _ = simulated
    state = world._final[0].take(np.array([4]))
    state.fatigue[:] = 0.0
    rows = np.array([0])
    unseen = np.flatnonzero(~state.seen[0])
    topic = world.items.subtopic // 4
    first = int(unseen[0])
    # not of the same series, so that no continuation is in play
    same = int(
        next(i for i in unseen if topic[i] == topic[first] and world.items.subtopic[i] != world.items.subtopic[first])
    )
    other = int(next(i for i in unseen if topic[i] != topic[first]))
    alone = item_utility(
        state, world.items, rows, np.array([[first, same, other]]), subtopic_utility(state, world.items, rows)
    )[0]
    both = world.true_utility(np.array([4, 4]), np.array([[first, same], [first, other]]))
    expected_same = expected_value(alone[:1])[0] + expected_value(alone[1:2] - 1.0)[0]
    expected_other = expected_value(alone[:1])[0] + expected_value(alone[2:])[0]
    np.testing.assert_allclose(both, [expected_same, expected_other], rtol=1e-4)


def test_a_repeated_item_is_worth_less_than_the_first_time(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    world, _ = simulated
    users = np.arange(300)
    item = np.where(world._final[0].seen[:, 0], 1, 0)[:, None]
    once = world.true_utility(users, item)
    twice = world.true_utility(users, np.repeat(item, 2, axis=1))
    assert (twice < 2 * once).all()


def test_a_batch_of_sessions_is_worth_what_each_is_alone_and_asking_changes_nothing(
    simulated: tuple[SimulatedWorld, pl.DataFrame],
) -> None:
    world, _ = simulated
    rng = np.random.default_rng(2)
    users, sessions = rng.integers(0, 300, 20), rng.integers(0, 200, (20, 5))
    batch = world.true_utility(users, sessions)
    alone = [world.true_utility(users[n : n + 1], sessions[n : n + 1])[0] for n in range(20)]
    np.testing.assert_allclose(batch, alone, rtol=1e-5)
    assert np.array_equal(batch, world.true_utility(users, sessions))


def test_the_feed_shows_what_the_truth_prefers_over_chance(simulated: tuple[SimulatedWorld, pl.DataFrame]) -> None:
    """Sessions the user chose to like are worth more than random ones: the held-out reward model and the log speak of
    one world."""
    world, log = simulated
    rng = np.random.default_rng(3)
    rows = np.arange(300)
    state = world._final[0].take(rows)
    day = np.full(300, world.days, np.float32)
    shown = np.stack([show(state, world.items, rows, day, rng)[0] for _ in range(5)], axis=1)
    random = rng.integers(0, 200, (300, 5))
    assert world.true_utility(rows, shown).mean() > 2 * world.true_utility(rows, random).mean()
    assert set(log["user_id"].to_list()) == set(range(FIRST_USER_ID, FIRST_USER_ID + 300))


def test_a_next_part_is_worth_more_than_the_same_item_out_of_order() -> None:
    """After part 1, part 2 gains exactly the continuation bonus of 0.3."""
    items = make_items(200, 6, 6, 8, 30.0, seed=0)
    state = new_users(1, items, np.random.default_rng(0))
    rows, second = np.array([0]), np.array([[1]])
    assert items.part[:2].tolist() == [0, 1]
    before = item_utility(state, items, rows, second, subtopic_utility(state, items, rows))[0, 0]
    watched(state, items, rows, np.array([0]))
    after = item_utility(state, items, rows, second, subtopic_utility(state, items, rows))[0, 0]
    assert after - before == pytest.approx(0.3, abs=1e-5)
    tire(state, items, rows, np.array([0]))
    assert state.fatigue[0, 0] == 1.0


def test_titles_carry_the_topic_and_popularity_is_steep() -> None:
    """Items of a sub-topic share its words; the sub-topic's first item draws 1 / (1 + 1/2 + … + 1/8) = 37 % of its views."""
    items = make_items(192, 6, 6, 8, 30.0, seed=0)
    table = item_table(items)
    assert table["title"][0].endswith(f"#1 by {table['author_id'][0]}")
    assert table["categories"].list.first().n_unique() == 6
    assert table["categories"].list.last().n_unique() == 24
    topic = table["categories"].list.first()
    assert all(name in title for name, title in zip(topic, table["title"], strict=True))
    weight = np.exp(items.pull[:8])
    assert weight.max() / weight.sum() == pytest.approx(1 / sum(1 / r for r in range(1, 9)), rel=1e-5)


def test_asking_for_the_truth_before_the_log_is_refused() -> None:
    world = SimulatedWorld(10, 40, 2, 6, 1.0, seed=0)
    with pytest.raises(ValueError, match=r"call SimulatedSource.simulate\(\)"):
        world.true_utility(np.array([0]), np.array([[0]]))


def test_too_small_a_catalogue_is_refused() -> None:
    with pytest.raises(ValidationError, match="40 items are too few for 16 topics, at least 128"):
        SimulatedSource(items=40)


def test_a_request_is_fixed_before_its_feedback_and_is_what_session_id_names() -> None:
    """Every session_id stands for exactly five exposures, and planning them leaves the users as they were."""
    source = SMALL.model_copy(update={"session_length": 10.0, "request_length": 5})
    world, log = source.simulate(7)
    requests = log.group_by("session_id", maintain_order=True).agg(pl.len(), pl.col("user_id").n_unique())
    assert requests["len"].unique().to_list() == [5]
    assert requests["user_id"].unique().to_list() == [1]
    assert len(log) == pytest.approx(15_000, rel=0.1)
    state = world._final[0].take(np.arange(50))
    before = state.take(np.arange(50))
    plan_request(state.take(np.arange(50)), world.items, 5, np.full(50, 30.0, np.float32), np.random.default_rng(0))
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(state, field.name))


def test_a_feed_that_knows_less_shows_less_that_is_liked() -> None:
    well, hardly = (SMALL.model_copy(update={"feed_noise": noise}).simulate(7)[1] for noise in (1.0, 20.0))
    assert well.equals(SMALL.simulate(7)[1])
    assert hardly["like"].mean() < 0.7 * well["like"].mean()


def test_a_request_longer_than_a_session_is_refused() -> None:
    with pytest.raises(ValidationError, match="request_length 12 exceeds session_length 10"):
        SimulatedSource(request_length=12)


def test_exploration_shows_new_items_of_few_warm_subtopics_and_knows_no_preference() -> None:
    """Users who differ in hidden interest and taste alone are shown the same; a sub-topic that was liked comes first."""
    items = make_items(200, 6, 6, 8, 30.0, seed=7)
    state = new_users(400, items, np.random.default_rng(0))
    state.appetite[:] = -4.0
    state.appetite[:, 3] = 40.0
    state.seen[:, items.first_item[3]] = True
    day = np.full(400, 30.0, np.float32)
    shown = plan_exploration(state, items, 4, day, np.random.default_rng(1))
    other = dataclasses.replace(state, home=-state.home, interest=-state.interest, taste=-state.taste)
    np.testing.assert_array_equal(plan_exploration(other, items, 4, day, np.random.default_rng(1)), shown)
    subtopics = items.subtopic[shown]
    assert max(len(np.unique(row)) for row in subtopics) == 3
    assert (subtopics == 3).any(axis=1).mean() > 0.7  # of up to three it need not be the one that is drawn from most
    assert not (shown == items.first_item[3]).any()
    assert all(len(np.unique(row)) == 4 for row in shown)


def test_exploration_makes_its_share_of_the_requests() -> None:
    source = SMALL.model_copy(update={"request_length": 5})
    with_it = source.model_copy(update={"exploration": 0.5})
    subtopic = source.simulate(7)[0].items.subtopic

    def narrow(log: pl.DataFrame) -> float:
        """Share of requests of one sub-topic, which the feed hardly ever makes."""
        groups = pl.Series("group", subtopic[log["item_id"].to_numpy() - FIRST_ITEM_ID])
        return float(
            (log.with_columns(groups).group_by("session_id").agg(pl.col("group").n_unique())["group"] == 1).mean()
        )

    assert narrow(source.simulate(7)[1]) < 0.05
    assert 0.12 < narrow(with_it.simulate(7)[1]) < 0.3  # a third of the explored half, and more by chance
    with pytest.raises(ValidationError, match=r"exploration 0\.5 is a share of requests of several items"):
        SimulatedSource(exploration=0.5)
