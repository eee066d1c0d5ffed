"""The simulated A/B test: the truth belongs to the moment that the policy sees, users respond, and arms are paired."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import SimulatedSource, TableSource
from features.sources.simulated.behaviour import (
    Feedback,
    after_exposure,
    expected_value,
    expected_watch_ratio,
    feedback_of,
    item_utility,
    new_users,
    sigmoid,
    subtopic_utility,
)
from features.sources.simulated.catalogue import FIRST_ITEM_ID
from features.sources.simulated.visits import FIRST_USER_ID
from pipelines.simulation.ab_test import OUTCOMES, run_test
from pipelines.simulation.reward_agreement import Gaming, is_gamed, reward_agreement
from pipelines.simulation.users import SimulatedUsers, best_by
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.metrics.bootstrap import Estimate

SOURCE = SimulatedSource(users=120, items=200, events=6_000, topics=6)
FEATURES = FeaturesConfig(task="session", session_length=3)
SEED = 7


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("simulated") / "prepared"
    prepare(SOURCE, FEATURES, folder, SEED)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def users(prepared: Dataset) -> SimulatedUsers:
    return SimulatedUsers.open(SOURCE, prepared, SEED)


def test_the_truth_is_the_state_that_exactly_the_policys_history_has_left(users: SimulatedUsers) -> None:
    """Play the log again, user by user: appetites, watched items and last items come out as the truth uses them.

    What a policy sees is the positive part of the same events, to the last one: it knows nothing that is still to happen,
    and the truth knows of nothing that has not happened yet.
    """
    world, log = SOURCE.simulate(SEED)
    items = world.items
    for user in (0, 17, 101):
        state = new_users(1, items, np.random.default_rng(0))
        mine = log.filter(pl.col("user_id") == FIRST_USER_ID + user)
        for event in mine.iter_rows(named=True):
            done = Feedback(
                np.array([event["watch_time_ms"] / event["duration_ms"]], np.float32),
                *(np.array([event[name]]) for name in ("long_view", "like", "follow", "share")),
            )
            after_exposure(state, items, np.array([0]), np.array([event["item_id"] - FIRST_ITEM_ID]), done)
        ((truth, _),) = users.world._states(np.array([user]))
        np.testing.assert_array_equal(truth.appetite, state.appetite)
        np.testing.assert_array_equal(truth.last_item, state.last_item)
        np.testing.assert_array_equal(truth.seen, state.seen)
        assert not truth.fatigue.any()  # users come back rested
        row = int(np.flatnonzero(users.user_place == user)[0])
        history = users.item_place[users.histories.seen_items()[row]]
        assert set(history.tolist()) == set(np.flatnonzero(truth.seen[0]).tolist())
        liked = mine.filter(pl.col("long_view") | pl.col("like"))
        assert history.tolist() == (liked["item_id"] - FIRST_ITEM_ID).to_list()


def test_another_worlds_data_are_refused(users: SimulatedUsers, prepared: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="positive events"):
        SimulatedUsers.open(SOURCE, prepared, SEED + 1)
    thinner = FeaturesConfig.model_validate({"task": "session", "session_length": 3, "k_core": {"item": 20}})
    prepare(SOURCE, thinner, tmp_path / "thin", SEED)
    with pytest.raises(ArtifactError, match="without k-core"):
        SimulatedUsers.open(SOURCE, Dataset.open(tmp_path / "thin"), SEED)
    table = TableSource.model_construct()
    with pytest.raises(ConfigError, match="only the simulator knows the truth"):
        SimulatedUsers.open(table, prepared, SEED)


def test_one_item_is_worth_the_closed_form_and_its_watch_time(users: SimulatedUsers) -> None:
    """With one place no response can matter: rolled out and closed form agree; -1 brings nothing and delays nobody."""
    rng = np.random.default_rng(0)
    sessions = rng.integers(0, len(users.item_place), (len(users), 2, 1))
    truth = users.truth(sessions, draws=2)
    np.testing.assert_allclose(truth.utility, users.frozen_utility(sessions), rtol=1e-5)
    weighted = truth.long_views + truth.likes + 3 * truth.follows + 3 * truth.shares
    np.testing.assert_allclose(truth.utility, weighted, rtol=1e-5)
    assert (truth.watch_ms <= 2 * users.world.items.duration_ms[users.item_place[sessions[..., 0]]]).all()
    late = np.concatenate([np.full_like(sessions, -1), sessions], axis=2)
    np.testing.assert_allclose(users.frozen_utility(late), users.frozen_utility(sessions), rtol=1e-5)
    assert users.truth(np.full((len(users), 1, 3), -1)).utility.max() == 0


def test_expected_watch_time_is_the_mean_of_what_users_watch() -> None:
    rng = np.random.default_rng(1)
    for utility in (0.0, 2.8, 6.0):
        value = np.full(100_000, utility, np.float32)
        mean = feedback_of(value, rng.random((4, len(value)), np.float32)).watch_ratio.mean()
        assert mean == pytest.approx(float(expected_watch_ratio(value[:1])[0]), abs=0.01)


def test_users_respond_to_the_first_place_before_they_see_the_second(users: SimulatedUsers) -> None:
    """Two items a, b of one sub-topic, not of one series.

    The appetite after a is 4 with a follow, 3 with a like alone, -4 with a mere view, -0.5 with a skip. By hand:
    E[b] = P(follow) w(4) + (1 - P(follow)) (P(like) w(3) + (1 - P(like)) (P(view) w(-4) + (1 - P(view)) w(-0.5))), where
    w is the worth of b with this appetite and fatigue 1; the draws must come to the same.
    """
    world, user = users.world, 4
    items, zero = world.items, np.array([0])
    ((state, _),) = world._states(np.array([user]))
    group = next(
        g
        for g in range(items.num_subtopics)
        if (~state.seen[0, items.first_item[g] : items.first_item[g + 1]]).sum() > 6 and state.interest[0, g // 4] > 0.5
    )
    free = np.flatnonzero(~state.seen[0] & (items.subtopic == group))
    first, second = int(free[0]), int(free[-1])
    assert items.series[first] != items.series[second] or second != first + 1

    value = item_utility(state, items, zero, np.array([[first]]), subtopic_utility(state, items, zero))[:, 0]
    view, like, follow = (float(sigmoid(value - bias)[0]) for bias in (2.8, 4.0, 6.5))
    base = item_utility(state, items, zero, np.array([[second]]), subtopic_utility(state, items, zero))[:, 0]
    base = base - state.appetite[0, group] - 1.0

    def worth(appetite: float) -> float:
        return float(expected_value(base + appetite)[0])

    rest = like * worth(3.0) + (1 - like) * (view * worth(-4.0) + (1 - view) * worth(-0.5))
    by_hand = float(expected_value(value)[0]) + follow * worth(4.0) + (1 - follow) * rest
    drawn = world.true_outcomes(np.array([user]), np.array([[first, second]]), draws=3000, seed=0).utility[0]
    assert drawn == pytest.approx(by_hand, rel=0.06)


def test_luck_belongs_to_user_and_place_whatever_else_is_shown(users: SimulatedUsers) -> None:
    rng = np.random.default_rng(2)
    sessions = rng.integers(0, len(users.item_place), (len(users), 4, 3))
    together = users.truth(sessions, draws=3)
    few = np.array([5, 60])
    alone = users.take(few).truth(sessions[few][:, 2:3], draws=3)
    for field in fields(together):
        np.testing.assert_allclose(getattr(together, field.name)[few, 2:3], getattr(alone, field.name), rtol=1e-5)


def test_the_marks_stand_in_the_order_they_must(users: SimulatedUsers) -> None:
    """Greedy on the truth > logging policy > popularity and random; the order within sessions and seen items are kept."""
    arms = {
        "greedy": users.greedy_sessions(),
        "logging": users.logging_sessions(4, 0),
        "popular": users.popular_sessions(0),
        "random": users.random_sessions(4, 0),
    }
    result = run_test(users, arms, "popular", draws=4, resamples=200)
    utility = {name: cells["utility"].value.mean for name, cells in result.arms.items()}
    assert utility["greedy"] > utility["logging"] > utility["popular"]
    assert utility["logging"] > utility["random"]
    seen = users.histories.seen_items()
    for name in ("greedy", "popular", "random"):
        assert all(len(set(session)) == 3 for sessions in arms[name].tolist() for session in sessions)
    assert all(not set(sessions.ravel()) & set(old) for sessions, old in zip(arms["random"], seen, strict=True))
    assert result.arms["greedy"]["utility"].difference.sign == 1
    table = result.table()
    assert table.splitlines()[2].startswith("greedy")
    assert "reference" in table
    assert result.per_user.height == 4 * len(users)


def test_an_arm_against_itself_differs_by_exactly_nothing(users: SimulatedUsers, tmp_path: Path) -> None:
    sessions = users.random_sessions(2, 3)
    result = run_test(users, {"a": sessions, "b": sessions.copy()}, "a", draws=2, resamples=50)
    for metric in OUTCOMES:
        cell = result.arms["b"][metric]
        assert (cell.difference, cell.lift, cell.p_value) == (Estimate(0, 0, 0), Estimate(0, 0, 0), 1.0)
    result.write(tmp_path)
    assert pl.read_parquet(tmp_path / "simulated_ab.parquet").height == 2 * len(users)
    assert (tmp_path / "simulated_ab.json").exists()


def test_the_lift_is_the_ratio_of_means(users: SimulatedUsers) -> None:
    """An arm shown to half of the users only has half of the utility: lift exactly -(the other half's share)."""
    sessions = users.random_sessions(1, 4)
    half = sessions.copy()
    half[::2] = -1
    result = run_test(users, {"all": sessions, "half": half}, "all", draws=2, resamples=100)
    utility = users.truth(sessions, draws=2).utility[:, 0].astype(np.float64)
    lost = utility[::2].sum() / utility.sum()
    lift = result.arms["half"]["utility"].lift
    assert lift.mean == pytest.approx(-lost, rel=1e-5)
    assert lift.low <= lift.mean <= lift.high < 0


def test_an_unknown_reference_is_refused(users: SimulatedUsers) -> None:
    with pytest.raises(ConfigError, match="the reference 'b' is no arm of this test; arms are a"):
        run_test(users, {"a": users.random_sessions(1, 0)}, "b")
    with pytest.raises(ValueError, match="expected \\[120 users, sessions, items\\]"):
        users.truth(np.zeros((3, 1, 3), np.int64))


def test_agreement_by_hand() -> None:
    """Rewards 1 2 3 4 against truths 1 3 2 6: ranks 1 2 3 4 and 1 3 2 4, so rho = 1 - 6 * 2 / (4 * 15) = 0.8.

    Mean truth 3: the reward's best has 6, a gain of 3, which is also the truly best; its worst has 1, a loss of 2. A second
    user whose rewards are all alike cannot be evaluated, and the missing candidate of -5 does not count.
    """
    reward = np.array([[1.0, 2.0, 3.0, 4.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    truth = np.array([[1.0, 3.0, 2.0, 6.0, -5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    exists = np.array([[True, True, True, True, False], [True] * 5])
    result = reward_agreement(reward, truth, exists, resamples=20)
    assert result.users == 1
    assert result.spearman.mean == pytest.approx(0.8)
    means = (result.picked_by_reward.mean, result.picked_by_truth.mean, result.worst_by_reward.mean)
    assert means == pytest.approx((3.0, 3.0, -2.0))
    with pytest.raises(DataError, match="roll out more sessions"):
        reward_agreement(reward[1:], truth[1:], exists[1:])


@pytest.mark.parametrize(
    ("reward_gain", "truth_gain", "agreement"),
    [(1.0, 1.0, "agrees"), (1.0, -1.0, "gamed"), (1.0, 0.0, "undecided"), (-1.0, 1.0, "no gain")],
)
def test_a_reward_that_rises_while_the_truth_falls_is_gamed(
    reward_gain: float, truth_gain: float, agreement: str
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 400)) * 0.1
    noise[3] -= noise[3].mean() - noise[2].mean()
    result = is_gamed(noise[0], noise[1] + reward_gain, noise[2], noise[3] + truth_gain, resamples=200)
    assert result.agreement == agreement
    assert result.reward.mean == pytest.approx(reward_gain, abs=0.05)


def test_gaming_needs_numbers_of_the_same_users() -> None:
    with pytest.raises(ValueError, match="four arrays"):
        is_gamed(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(2))
    assert Gaming(Estimate(1, 0.5, 1.5), Estimate(0.1, -0.1, 0.3)).agreement == "undecided"


def test_best_by_keeps_one_session_per_user() -> None:
    sessions = np.arange(12).reshape(2, 3, 2)
    assert best_by(np.array([[0, 2, 1], [5, 5, 1]]), sessions).tolist() == [[[2, 3]], [[6, 7]]]
