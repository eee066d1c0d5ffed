"""Rewards by hand, ReRe's numbers for a group of 16 among them. The suite over all rewards is in tests/contracts."""

import math

import pytest
import torch

from recsys.alignment.losses.advantages import group_advantages
from recsys.alignment.rewards.functions import (
    Collaborative,
    FirstDifference,
    Learned,
    PrefixMatch,
    Ranking,
    RolloutGroup,
    Rule,
    Semantic,
    build_reward,
    first_difference_mask,
    target_share,
)
from recsys.contracts.errors import ConfigError, DataError

PENALTIES = [0.1638, 0.1033, 0.0819, 0.0705, 0.0634, 0.0583, 0.0546, 0.0517]
PENALTIES += [0.0493, 0.0473, 0.0457, 0.0443, 0.0430, 0.0419, 0.0409, 0.0401]
"""1 / (6.106 log2(k + 1)) for k = 1..16, where 6.106 is the sum of 1 / log2(k + 1)."""


def group_of(items: list[list[int]], targets: list[int]) -> RolloutGroup:
    """Single items of a catalogue in which item ``i`` has the codes ``(i // 9, i // 3 % 3, i % 3)``."""
    return session_group([[[item] for item in row] for row in items], [[target] for target in targets])


def session_group(items: list[list[list[int]]], targets: list[list[int]]) -> RolloutGroup:
    item, target = torch.tensor(items), torch.tensor(targets)
    return RolloutGroup(item, target, codes_of(item), codes_of(target), torch.zeros(item.shape[:2]))


def codes_of(items: torch.Tensor) -> torch.Tensor:
    return torch.stack([items // 9, items // 3 % 3, items % 3], -1)


def sixteen(hit_rank: int | None) -> RolloutGroup:
    """Items 0 to 15 in rank order; the target is the one at ``hit_rank``, or item 99."""
    return group_of([list(range(16))], [99 if hit_rank is None else hit_rank - 1])


def rounded(values: torch.Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.flatten().tolist()]


@pytest.mark.parametrize("hit_rank", [1, 8, 16])
def test_ranking_reward_of_sixteen(hit_rank: int) -> None:
    """ReRe's released code: the hit 0, the others minus their share of the rank weights, the hit's own included."""
    expected = [-penalty for penalty in PENALTIES]
    expected[hit_rank - 1] = 0.0
    assert rounded(Ranking()(sixteen(hit_rank)), 4) == expected


def test_ranking_reward_without_a_hit_is_zero() -> None:
    assert Ranking()(sixteen(None)).abs().max().item() == 0


def test_paper_form_leaves_the_hit_out_of_the_sum_and_penalises_groups_without_one() -> None:
    """Hit at rank 1: 0.6309 / (6.106 - 1) = 0.1236 at rank 2, where the code has 0.1033. No hit: the code's penalties."""
    reward = Ranking("paper")(sixteen(1))[0]
    assert reward[0].item() == 0
    assert round(reward[1].item(), 4) == -0.1236
    assert reward.sum().item() == pytest.approx(-1)
    assert rounded(Ranking("paper")(sixteen(None)), 4) == [-penalty for penalty in PENALTIES]


RULE_ONLY = [3.749] + [-0.25] * 15
HIT_FIRST = [3.741, -0.429, -0.348, -0.305, -0.278, -0.259, -0.245, -0.234]
HIT_FIRST += [-0.225, -0.218, -0.211, -0.206, -0.201, -0.197, -0.193, -0.190]
HIT_EIGHTH = [-0.624, -0.398, -0.318, -0.275, -0.249, -0.230, -0.216, 3.722]
HIT_EIGHTH += [-0.196, -0.189, -0.183, -0.177, -0.173, -0.169, -0.165, -0.162]


@pytest.mark.parametrize(
    ("weights", "hit_rank", "expected"),
    [
        ({"rule": 1.0}, 1, RULE_ONLY),
        ({"rule": 1.0, "ranking": 1.0}, 1, HIT_FIRST),
        ({"rule": 1.0, "ranking": 1.0}, 8, HIT_EIGHTH),
        ({"rule": 1.0, "ranking": 1.0}, None, [0.0] * 16),
    ],
)
def test_advantages_of_sixteen(weights: dict[str, float], hit_rank: int | None, expected: list[float]) -> None:
    """Rule only: mean 1/16, unbiased deviation sqrt(1/16) = 0.25, hit (15/16) / 0.2501 = 3.749, others -0.25.

    With ranks, hit first: penalties sum to -0.8362, mean (1 - 0.8362) / 16 = 0.0102, deviation 0.2645, hit 0.9898 / 0.2646.
    """
    group = sixteen(hit_rank)
    assert rounded(group_advantages(build_reward(weights)(group), group.valid), 3) == expected


def test_rows_that_do_not_exist_take_no_rank_weight() -> None:
    """Three rows of five: weights 1, 0.6309, 0.5, sum 2.1309; hit at rank 2: -0.4693, 0, -0.2346."""
    group = group_of([[4, 7, 2, -1, -1]], [7])
    assert rounded(Ranking()(group), 4) == [-0.4693, 0.0, -0.2346, 0.0, 0.0]
    assert group.valid.tolist() == [[True, True, True, False, False]]
    assert group.code_mask.sum().item() == 9


def test_prefix_match_and_first_difference_by_hand() -> None:
    """Target 14 = (1, 1, 2). 14: all right. 13 = (1, 1, 1): two. 11 = (1, 0, 2): one; its last code agrees, but comes after
    a wrong one. 5 = (0, 1, 2): none, though two codes agree."""
    group = group_of([[14, 13, 11, 5, -1]], [14])
    assert rounded(PrefixMatch()(group), 4) == [1.0, 0.6667, 0.3333, 0.0, 0.0]
    assert FirstDifference()(group)[0].tolist() == [[1, 1, 1], [1, 1, -1], [1, -1, 0], [-1, 0, 0], [0, 0, 0]]
    mask = first_difference_mask(group)[0]
    assert mask.int().tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_first_difference_advantages_compare_a_code_with_its_rivals() -> None:
    """The third codes of 14 (+1) and 13 (-1) are the only ones left: mean 0, deviation sqrt(2), advantages +-1 / sqrt(2)."""
    group = group_of([[14, 13, 11, 5, -1]], [14])
    advantages = group_advantages(FirstDifference()(group), first_difference_mask(group), eps=0.0)
    assert advantages[0, :, 2].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0, 0, 0])
    assert advantages[0, :, 0].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5, 0])


def test_semantic_by_hand() -> None:
    """Vectors (1, 0), (3, 4), (0, 0): cosines with item 0 are 1, 0.6 and, for the empty one, 0."""
    vectors = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert Semantic(vectors)(group_of([[1, 0, 2, -1]], [0])).tolist() == [pytest.approx([0.6, 1.0, 0.0, 0.0])]


def test_collaborative_by_hand() -> None:
    """Logits 1, 2, 3, 6: mean 3, deviation sqrt((4 + 1 + 0 + 9) / 4) = 1.8708; item 3 gets 1.6036, item 0 -1.0690.

    The second user's logits are ten times as large, their z-scores the same. The third's are equal.
    """
    logits = torch.tensor([[1.0, 2, 3, 6], [10, 20, 30, 60], [5, 5, 5, 5]])
    reward = Collaborative(lambda group: logits)(group_of([[3, 0, -1]] * 3, [0] * 3))
    assert rounded(reward[0], 4) == rounded(reward[1], 4) == [1.6036, -1.069, 0.0]
    assert reward[2].tolist() == [0.0, 0.0, 0.0]


def test_sessions_by_hand() -> None:
    """Targets 14 and 4 of a session. Rule: both in other order 1; one of two 0.5; none 0. Any hit escapes the penalty.

    Prefixes, each item against its closest target, 14 = (1, 1, 2) or 4 = (0, 1, 1): (4, 14) 1; (14, 10) 1 and 1/3; (10, 5)
    1/3 and, with 4, 2/3; a session cut to (13) 2/3.
    """
    group = session_group([[[4, 14], [14, 10], [10, 5], [13, -1], [-1, -1]]], [[14, 4]])
    assert Rule()(group).tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0]]
    assert (Ranking()(group) < 0).tolist() == [[False, False, True, True, False]]
    assert rounded(PrefixMatch()(group), 4) == [1.0, 0.6667, 0.5, 0.6667, 0.0]
    assert FirstDifference()(group).shape == (1, 5, 6)
    assert FirstDifference()(group)[0, 3].tolist() == [1, 1, -1, 0, 0, 0]


def test_a_target_shorter_than_the_session_counts_what_is_there() -> None:
    assert target_share(session_group([[[14, 4], [3, 5]]], [[4, -1]])).tolist() == [[1.0, 0.0]]


def test_repeats_of_the_target_are_hits_each() -> None:
    """Sampling may draw an item twice: weights 1, 0.6309, 0.5; only the third row is wrong, -0.5 / 2.1309."""
    assert rounded(Ranking()(group_of([[7, 7, 2]], [7])), 4) == [0.0, 0.0, -0.2346]
    assert Ranking("paper")(group_of([[7, 7]], [7])).tolist() == [[0.0, 0.0]]


def test_weighted_sum_by_hand() -> None:
    """2 * rule + 0.5 * prefix of target 14: 2.5, then 0.5 * 2/3. A reward for codes takes the row's reward at each code."""
    group = group_of([[14, 13, -1]], [14])
    both = build_reward({"rule": 2.0, "prefix_match": 0.5})
    assert rounded(both(group), 4) == [2.5, 0.3333, 0.0]
    assert {name: part.shape for name, part in both.components(group).items()} == {
        "rule": (1, 3),
        "prefix_match": (1, 3),
    }
    coded = build_reward({"rule": 2.0, "first_difference": 0.5})(group)
    assert coded[0].tolist() == [[2.5, 2.5, 2.5], [0.5, 0.5, -0.5], [0.0, 0.0, 0.0]]


def test_targets_belong_to_their_rows() -> None:
    """Two requests with one and the same group of items and different targets get different rewards."""
    group = group_of([[1, 2, 3], [1, 2, 3]], [1, 3])
    assert Rule()(group).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_refusals() -> None:
    group = group_of([[1, 2]], [1])
    with pytest.raises(ConfigError, match="unknown reward 'rank'; expected one of rule, ranking"):
        build_reward({"rank": 1.0})
    with pytest.raises(ConfigError, match="none is given"):
        build_reward({})
    with pytest.raises(ConfigError, match="weight nan"):
        build_reward({"rule": math.nan})
    for name in ("semantic", "collaborative", "learned"):
        with pytest.raises(ConfigError, match=f"reward '{name}' .* got none"):
            build_reward({name: 1.0})
    with pytest.raises(DataError, match=r"learned reward: the model returned shape \(1, 3\), expected \(1, 2\)"):
        Learned(lambda group: torch.zeros(1, 3))(group)
    with pytest.raises(DataError, match="2 of 2 candidates got NaN or infinity, expected finite rewards"):
        build_reward({"learned": 1.0}, learned=lambda group: torch.full((1, 2), torch.nan))(group)
    with pytest.raises(DataError, match=r"expected finite logits \[1, items\]"):
        Collaborative(lambda group: torch.full((1, 9), -torch.inf))(group)
    with pytest.raises(DataError, match=r"codes has shape \(1, 3, 1, 3\), expected \(1, 2, 1, 3\)"):
        RolloutGroup(group.items, group.target, torch.zeros(1, 3, 1, 3), group.target_codes, group.scores)
