"""A user's own weights: factors by hand, nobody new is treated differently, and who asks for weights gets those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import validate
from recsys.contracts.columns import TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.contracts.event_features import behaviour_codes, watch_buckets
from recsys.data.histories import Histories
from recsys.reward.checkpoint import load_reward_model, save_reward_model
from recsys.reward.combining.combination import combine_rewards
from recsys.reward.combining.personal import personal_weights, reactions
from recsys.reward.config import CombinationConfig, FeedbackConfig
from recsys.reward.feedback.dataset import session_feedback
from recsys.reward.model import SessionRewardModel
from recsys.reward.scoring import ModelScorer, fit_average_reactions, score_sessions, weights_of_users
from recsys.reward.training import fit_combination
from tests.reward.test_reward_model import random_model
from tests.toy.reward import colour_prepared

ITEMS = 24
SIGNALS = ("long_view", "like")


def histories(*liked: list[bool | None], watched: float = np.nan) -> Histories:
    """One user per list: events that were all viewed, and liked or not; ``None``: nothing is known of it."""
    flat = [one for user in liked for one in user]
    codes = behaviour_codes(np.array([[True, bool(one)] for one in flat]).reshape(-1, 2))
    codes[[one is None for one in flat]] = 0
    end = np.cumsum([len(user) for user in liked])
    zeros = np.zeros(len(flat), np.uint8)
    return Histories(
        user_index=np.arange(len(liked), dtype=np.int32),
        start=end - [len(user) for user in liked],
        end=end,
        item=np.zeros(len(flat), np.int32),
        behaviour=codes,
        gap=zeros,
        watch=watch_buckets(np.full(len(flat), watched)),
    )


def test_reactions_by_hand() -> None:
    """User 0 liked 2 of 3 events whose reaction is known, user 1 has none; views of all; watched to .5: bucket .5 to .7."""
    asked = histories([True, None, False, True], [], watched=0.5)
    sums, counts = reactions(asked, ["like", "watch_time_ms", "long_view", "share"], SIGNALS, 50)
    np.testing.assert_allclose(sums, [[2, 4 * 0.6, 3, 0], [0, 0, 0, 0]], rtol=1e-6)
    assert counts.tolist() == [[3, 4, 3, 0], [0, 0, 0, 0]]


def test_only_the_last_events_are_read() -> None:
    sums, counts = reactions(histories([True, True, False, False, True]), ["like"], SIGNALS, 3)
    assert (sums.item(), counts.item()) == (1.0, 3.0)


def weights_of(sums: Any, counts: Any, average: Any, weights: Any = (1.0, 1.0), **settings: float) -> list[list[float]]:
    given = {"shrinkage": 10.0, "largest": 4.0} | settings
    found = personal_weights(torch.tensor(weights), np.array(sums), np.array(counts), torch.tensor(average), **given)
    return found.tolist()


def test_weights_by_hand() -> None:
    """Likes 6 of 10 where an average event brings .2: (6 / .2 + 10) / (10 + 10) = 2; views 5 of 10, average .5: 1.

    Weights 1 and -2 become 2 and -2, which are scaled from 4 back to 3: 1.5 and -1.5.
    """
    found = weights_of([[6.0, 5.0]], [[10.0, 10.0]], [0.2, 0.5], (1.0, -2.0))
    assert found == [pytest.approx([1.5, -1.5])]


def test_the_factor_is_bounded_on_both_sides() -> None:
    """1000 likes of 1000 at .01: a factor of 99 becomes 4; never a view where others have them: 1/101 becomes 1/4."""
    (found,) = weights_of([[1000.0, 0.0]], [[1000.0, 1000.0]], [0.01, 0.5])
    assert found[0] / found[1] == pytest.approx(16.0)


def test_a_new_user_and_a_reaction_that_nobody_has_change_nothing() -> None:
    assert weights_of([[0.0, 0.0]], [[0.0, 0.0]], [0.2, 0.5], (0.5, 2.0)) == [pytest.approx([0.5, 2.0])]
    assert weights_of([[0.0, 0.0]], [[9.0, 0.0]], [0.0, 0.5], (0.5, 2.0)) == [pytest.approx([0.5, 2.0])]


@given(likes=st.integers(0, 30), more=st.integers(1, 30), shrinkage=st.floats(0.5, 1e4))
def test_more_shrinkage_is_closer_to_everybody_and_more_likes_weigh_more(
    likes: int, more: int, shrinkage: float
) -> None:
    counts = [[60.0, 60.0]]
    (few,) = weights_of([[likes, 30.0]], counts, [0.3, 0.5], shrinkage=shrinkage)
    (many,) = weights_of([[likes + more, 30.0]], counts, [0.3, 0.5], shrinkage=shrinkage)
    (pulled,) = weights_of([[likes, 30.0]], counts, [0.3, 0.5], shrinkage=10 * shrinkage)
    assert many[0] >= few[0]
    assert abs(pulled[0] - 1.0) <= abs(few[0] - 1.0) + 1e-6
    assert sum(map(abs, few)) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return colour_prepared(tmp_path_factory.mktemp("colours"), users=40, items=ITEMS)


@pytest.fixture(scope="module")
def model(prepared: Dataset) -> SessionRewardModel:
    personal = random_model(prepared, combination={"personal": {"shrinkage": 2.0}})
    fit_combination(personal, session_feedback(prepared, FeedbackConfig(max_items=4)).of(TRAIN))
    return personal


def test_the_average_is_that_of_train_histories_each_user_once(prepared: Dataset, model: SessionRewardModel) -> None:
    """By hand over the longest train history of every user, cut to what the model reads."""
    train = session_feedback(prepared, FeedbackConfig(max_items=4)).of(TRAIN).histories
    liked, number = 0, 0
    for user in np.unique(train.user_index):
        rows = np.flatnonzero(train.user_index == user)
        row = rows[np.argmax(train.lengths[rows])]
        seen = train.behaviour[max(train.start[row], train.end[row] - 6) : train.end[row]]
        liked += sum((int(code) - 1) >> 1 & 1 for code in seen)
        number += len(seen)
    assert model.spec.names[-1] == "ltr"
    assert 0 < liked < number
    assert model.average_reactions_T[-1].item() == pytest.approx(liked / number)


def test_the_reward_is_by_each_users_weights_and_values_are_not(
    prepared: Dataset, model: SessionRewardModel, tmp_path: Path
) -> None:
    save_reward_model(tmp_path / "m", model)
    scorer = ModelScorer(load_reward_model(tmp_path / "m", None))
    asked = Histories.from_targets(prepared.history, prepared.all_users()).take(np.arange(6))
    items = torch.randint(0, ITEMS, (6, 5, 3), generator=torch.Generator().manual_seed(0))
    own = weights_of_users(model, asked)
    assert own.std(0).max() > 0.01
    p = torch.from_numpy(score_sessions(model, asked, items.numpy()).probabilities)
    torch.testing.assert_close(scorer.reward(asked, items), combine_rewards(p, own))
    torch.testing.assert_close(scorer.values(asked, items), p)
    assert torch.equal(scorer.weights, model.default_weights())
    # a request's own weights stand
    wanted = np.array([0.2, 0.5, 0.3])[: len(model.spec.names)]
    found = scorer.reward(asked.with_objective(wanted), items)
    torch.testing.assert_close(found, combine_rewards(p, torch.from_numpy(wanted).float()))


def test_a_tower_that_lowers_the_reward_lowers_it_by_what_a_request_weighs_it_with(prepared: Dataset) -> None:
    """Weights (1, -1, 1) of the model and (.2, .5, .3) of the request: the towers are summed with (.2, -.5, .3)."""
    against = random_model(prepared, combination={"weights": {random_model(prepared).spec.names[1]: -1.0}})
    assert against.default_weights().tolist()[:2] == [1.0, -1.0]
    asked = Histories.from_targets(prepared.history, prepared.all_users()).take(np.arange(6))
    items = torch.randint(0, ITEMS, (6, 5, 3), generator=torch.Generator().manual_seed(0))
    wanted = np.array([0.2, 0.5, 0.3])[: len(against.spec.names)]
    meant = torch.from_numpy(wanted).float() * against.default_weights().sign()
    p = torch.from_numpy(score_sessions(against, asked, items.numpy()).probabilities)
    found = ModelScorer(against).reward(asked.with_objective(wanted), items)
    torch.testing.assert_close(found, combine_rewards(p, meant))


def test_one_users_reactions_change_nobody_elses_reward(model: SessionRewardModel) -> None:
    items = torch.randint(0, ITEMS, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    scorer = ModelScorer(model)
    first = scorer.reward(histories([True, False, True], [False] * 4), items)
    second = scorer.reward(histories([True, False, True], [True] * 4), items)
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


def test_refusals(prepared: Dataset) -> None:
    with pytest.raises(ConfigError, match="personal changes weights, and mode 'fused' has none"):
        validate(CombinationConfig, {"mode": "fused", "personal": {}}, "test")
    with pytest.raises(ConfigError, match=r"personal.largest"):
        validate(CombinationConfig, {"personal": {"largest": 1.0}}, "test")
    with pytest.raises(ConfigError, match=r"personal.shrinkage"):
        validate(CombinationConfig, {"personal": {"shrinkage": 0.0}}, "test")
    plain = random_model(prepared)
    assert "average_reactions_T" not in plain.state_dict()
    one = histories([True])
    assert torch.equal(weights_of_users(plain, one), plain.default_weights()[None])
    fit_average_reactions(plain, one)
