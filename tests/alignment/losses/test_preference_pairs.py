"""Preference pairs: who is chosen, who rejected, and when there is no pair."""

from __future__ import annotations

import pytest
import torch

from recsys.alignment.losses.preference_pairs import NO_CANDIDATE, PreferencePairs, choose_pairs, gather_candidates
from recsys.alignment.rollouts.request_stream import seeded
from recsys.contracts.errors import ConfigError

REWARDS = torch.tensor([[0.1, 0.9, 0.5, 0.2, 0.7]])
EXIST = torch.ones(1, 5, dtype=torch.bool)


def places(**options: object) -> tuple[list[int], list[list[int]]]:
    pairs = choose_pairs(REWARDS, EXIST, **options)  # type: ignore[arg-type]
    return pairs.chosen_B.tolist(), pairs.rejected_BN.tolist()


def test_best_against_worst_by_hand() -> None:
    """Rewards .1 .9 .5 .2 .7: the best is place 1; from the lowest up come places 0, 3, 2, 4."""
    assert places() == ([1], [[0]])
    assert places(num_negatives=3) == ([1], [[0, 3, 2]])
    assert places(rule="best_all") == ([1], [[0, 3, 2, 4]])


def test_rank_spaced_by_hand() -> None:
    """Four others by falling reward: places 4, 2, 3, 0. N = 2 takes ranks ceil(2 * 4 / 2) = 4 and ceil(1 * 4 / 2) = 2."""
    assert places(rule="rank_spaced", num_negatives=1) == ([1], [[0]])
    assert places(rule="rank_spaced", num_negatives=2) == ([1], [[0, 2]])
    assert places(rule="rank_spaced", num_negatives=4) == ([1], [[0, 3, 2, 4]])


def test_fewer_distinguishable_candidates_than_negatives_are_never_repeated() -> None:
    """Rewards 1 1 .5 .2: the first tie wins, its twin is no negative, two are left."""
    rewards, exist = torch.tensor([[1.0, 1.0, 0.5, 0.2]]), torch.ones(1, 4, dtype=torch.bool)
    for rule in ("best_worst", "best_random", "rank_spaced", "best_all"):
        pairs = choose_pairs(rewards, exist, rule=rule, num_negatives=3, generator=seeded(0))  # type: ignore[arg-type]
        assert pairs.chosen_B.tolist() == [0]
        present = [place for place in pairs.rejected_BN[0].tolist() if place != NO_CANDIDATE]
        assert sorted(present) == [2, 3]


def test_random_negatives_are_all_others_in_the_long_run() -> None:
    generator, seen = seeded(4), set()
    for _ in range(60):
        pairs = choose_pairs(REWARDS, EXIST, rule="best_random", num_negatives=2, generator=generator)
        pair = pairs.rejected_BN[0].tolist()
        assert len(set(pair)) == 2
        seen |= set(pair)
    assert seen == {0, 2, 3, 4}
    with pytest.raises(ConfigError, match="needs a generator"):
        choose_pairs(REWARDS, EXIST, rule="best_random")


def test_indistinguishable_candidates_give_no_pair() -> None:
    rewards = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.4999, 0.4], [0.5, 0.4999, 0.1]])
    exist = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    pairs = choose_pairs(rewards, exist, epsilon=0.01)
    assert pairs.has_pair.tolist() == [False, False, True]
    assert pairs.rejected_BN.tolist() == [[NO_CANDIDATE], [NO_CANDIDATE], [2]]


def test_missing_candidates_are_neither_chosen_nor_rejected() -> None:
    """The lowest and the highest number belong to candidates that do not exist."""
    rewards = torch.tensor([[9.0, 0.2, 0.6, -9.0]])
    pairs = choose_pairs(rewards, torch.tensor([[False, True, True, False]]), num_negatives=2)
    assert pairs.chosen_B.tolist() == [2]
    assert pairs.rejected_BN.tolist() == [[1, NO_CANDIDATE]]


def test_the_target_against_the_rest_of_the_beam() -> None:
    """First row: the target is place 1. Second row: it is not in the beam; place 4 = G stands for it all the same."""
    exist = torch.tensor([[True] * 4, [True, True, False, False]])
    is_target = torch.tensor([[False, True, False, False], [False] * 4])
    pairs = choose_pairs(torch.zeros(2, 4), exist, rule="target_rest", num_negatives=3, is_target_BG=is_target)
    assert pairs.chosen_B.tolist() == [4, 4]
    assert pairs.rejected_BN.tolist() == [[0, 2, 3], [0, 1, NO_CANDIDATE]]


def test_gathered_candidates_and_the_gap_of_rewards() -> None:
    """Rewards .9 against .1 and nothing: gap .8; with both .1 and .5: .9 - .3 = .6."""
    items = torch.tensor([[[10], [11], [12]]])
    assert gather_candidates(items, torch.tensor([[2, NO_CANDIDATE]])).tolist() == [[[12], [-1]]]
    pairs = PreferencePairs(
        disliked_Q=torch.zeros(2, dtype=torch.bool),
        position_Q=torch.tensor([3, 8]),
        row_Q=torch.tensor([0, 1]),
        chosen_QM=torch.tensor([[10], [10]]),
        rejected_QNM=torch.tensor([[[11], [-1]], [[11], [12]]]),
        reward_chosen_Q=torch.tensor([0.9, 0.9]),
        reward_rejected_QN=torch.tensor([[0.1, 0.0], [0.1, 0.5]]),
        ref_chosen_Q=torch.zeros(2),
        ref_rejected_QN=torch.zeros(2, 2),
        objective_QO=torch.empty(2, 0),
    )
    torch.testing.assert_close(pairs.reward_gap_Q, torch.tensor([0.8, 0.6]))
    assert pairs.candidates_QGM.squeeze(-1).tolist() == [[10, 11, -1], [10, 11, 12]]
    assert pairs.take(torch.tensor([False, True])).position_Q.tolist() == [8]
