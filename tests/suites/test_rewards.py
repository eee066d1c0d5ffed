"""One suite for every reward: what advantages and loops may rely on, whichever is configured."""

from dataclasses import replace

import pytest
import torch

from recsys.alignment.rewards.functions import Reward, RolloutGroup, build_reward
from recsys.alignment.rewards.names import REWARD_NAMES
from recsys.contracts.errors import DataError

NUM_ITEMS, LEVELS = 30, 3
WITH_TARGET = sorted(set(REWARD_NAMES) - {"learned", "collaborative"})
PER_CODE = {"first_difference"}


def group_of(rows: int = 4, size: int = 6, items: int = 1, seed: int = 0, missing: int = 2) -> RolloutGroup:
    """Random groups whose last ``missing`` rows do not exist; the first row of every group is the target."""
    generator = torch.Generator().manual_seed(seed)
    catalogue = torch.stack(
        [torch.arange(NUM_ITEMS) // 9, torch.arange(NUM_ITEMS) // 3 % 3, torch.arange(NUM_ITEMS) % 3], 1
    )
    drawn = torch.rand(rows, size, NUM_ITEMS, generator=generator).argsort(-1)[..., :items]
    target = drawn[:, 0]
    drawn[:, size - missing :] = -1
    scores = -torch.rand(rows, size, generator=generator).sort(1).values
    return RolloutGroup(
        drawn, target, catalogue[drawn], catalogue[target], scores.masked_fill(drawn[..., 0] < 0, -torch.inf)
    )


def reward_of(name: str) -> Reward:
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(NUM_ITEMS, generator=generator, requires_grad=True)
    return build_reward(
        {name: 1.0},
        item_vectors=torch.randn(NUM_ITEMS, 4, generator=generator, requires_grad=True),
        scorer=lambda group: weights * torch.ones(len(group.items), 1),
        learned=lambda group: weights[group.items].sum(-1).masked_fill(group.items[..., 0] < 0, torch.nan),
    )


def rows_of(group: RolloutGroup, rows: torch.Tensor) -> RolloutGroup:
    return RolloutGroup(
        group.items[rows], group.target[rows], group.codes[rows], group.target_codes[rows], group.scores[rows]
    )


@pytest.mark.parametrize("name", REWARD_NAMES)
@pytest.mark.parametrize("items", [1, 3])
class TestEveryReward:
    def test_shape_type_and_no_gradient(self, name: str, items: int) -> None:
        group = group_of(items=items)
        reward = reward_of(name)(group)
        assert reward.shape == ((4, 6, items * LEVELS) if name in PER_CODE else (4, 6))
        assert reward.dtype == torch.float32
        assert not reward.requires_grad
        assert torch.isfinite(reward).all()

    def test_rows_that_do_not_exist_get_nothing(self, name: str, items: int) -> None:
        group = group_of(items=items)
        assert (reward_of(name)(group)[:, 4:] == 0).all()
        longer = reward_of(name)(group)[:, :4]
        shorter = RolloutGroup(
            group.items[:, :4], group.target, group.codes[:, :4], group.target_codes, group.scores[:, :4]
        )
        torch.testing.assert_close(longer, reward_of(name)(shorter))

    def test_codes_of_rows_that_do_not_exist_are_not_read(self, name: str, items: int) -> None:
        group = group_of(items=items)
        codes = group.codes.masked_fill(group.items[..., None] < 0, -7)
        assert torch.equal(reward_of(name)(group), reward_of(name)(replace(group, codes=codes)))

    def test_many_requests_equal_one_request(self, name: str, items: int) -> None:
        group = group_of(items=items)
        together = reward_of(name)(group)
        alone = torch.cat([reward_of(name)(rows_of(group, torch.tensor([row]))) for row in range(4)])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("name", WITH_TARGET)
def test_the_target_is_never_worth_less_than_the_rest(name: str, items: int) -> None:
    reward = reward_of(name)(group_of(items=items, seed=1))
    per_row = reward.sum(-1) if name in PER_CODE else reward
    assert (per_row[:, :1] >= per_row[:, :4] - 1e-6).all()


@pytest.mark.parametrize("name", REWARD_NAMES)
def test_a_request_without_a_target_is_refused_by_those_that_read_it(name: str) -> None:
    group = group_of()
    nobody = group.target.clone()
    nobody[2] = -1
    group = replace(group, target=nobody)
    if name not in WITH_TARGET:
        assert torch.isfinite(reward_of(name)(group)).all()
        return
    with pytest.raises(DataError, match="request 2 has no target item"):
        reward_of(name)(group)
