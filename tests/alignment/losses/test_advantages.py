"""Advantages by hand and their invariants; ReRe's numbers for a group of 16 are in test_rewards.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.alignment.losses.advantages import group_advantages, informative_groups, tawin_advantages
from recsys.contracts.errors import ConfigError, DataError


def test_a_group_by_hand() -> None:
    """Rewards 2, 0, 1: mean 1, unbiased deviation 1, with eps 0.25: 1 / 1.25 = 0.8. Centred only: 1, -1, 0."""
    rewards = torch.tensor([[2.0, 0.0, 1.0]])
    assert group_advantages(rewards, eps=0.25).tolist() == [pytest.approx([0.8, -0.8, 0.0])]
    assert group_advantages(rewards, scale="none").tolist() == [pytest.approx([1.0, -1.0, 0.0])]


def test_masked_rows_are_in_no_mean() -> None:
    rewards = torch.tensor([[2.0, 0.0, 1.0, torch.nan, 50.0]])
    mask = torch.tensor([[True, True, True, False, False]])
    assert group_advantages(rewards, mask, eps=0.25).tolist() == [pytest.approx([0.8, -0.8, 0.0, 0.0, 0.0])]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_equal_rewards_give_exactly_zero(value: float) -> None:
    """A mean of 16 times 0.1 is not 0.1 in float32; the remainder must not be blown up by a division by eps."""
    rewards = torch.full((2, 16), value)
    assert group_advantages(rewards, eps=0.0).abs().max().item() == 0
    assert group_advantages(rewards, scale="none").abs().max().item() == 0


def test_a_single_row_has_no_advantage() -> None:
    mask = torch.tensor([[False, True, False]])
    assert group_advantages(torch.tensor([[5.0, 3.0, 1.0]]), mask).tolist() == [[0.0, 0.0, 0.0]]


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=16),
    shift=st.floats(-5, 5, width=32),
    factor=st.floats(0.5, 4, width=32),
)
def test_advantages_sum_to_zero_and_know_no_scale(rewards: list[float], shift: float, factor: float) -> None:
    values = torch.tensor([rewards], dtype=torch.float64)
    advantages = group_advantages(values, eps=0.0)
    assert abs(advantages.sum().item()) < 1e-9
    if values.std() > 1e-3:
        assert advantages.std().item() == pytest.approx(1.0)
        torch.testing.assert_close(group_advantages(values * factor + shift, eps=0.0), advantages)


def test_codes_are_compared_position_by_position() -> None:
    """Each position of [B, G, C] equals a [B, G] call of its own, with its own mask."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(3, 5, 4, generator=generator)
    mask = torch.rand(3, 5, 4, generator=generator) < 0.7
    together = group_advantages(rewards, mask)
    for code in range(4):
        torch.testing.assert_close(together[..., code], group_advantages(rewards[..., code], mask[..., code]))
    rows = mask.any(-1)
    torch.testing.assert_close(
        group_advantages(rewards, rows), group_advantages(rewards, rows[..., None].expand_as(rewards))
    )


def test_groups_without_signal_are_found_counted_and_weighted() -> None:
    """The second group is constant; so is the third where it is not masked."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.2, 0.2, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, True], [True, True, False]])
    signal = informative_groups(rewards, mask)
    assert signal.informative.tolist() == [True, False, False]
    assert (signal.num_groups, signal.num_zero_signal) == (3, 2)
    assert signal.weights(0.0).tolist() == [1.0, 0.0, 0.0]
    assert signal.weights(0.25).tolist() == [1.0, 0.25, 0.25]
    assert informative_groups(rewards[..., None].expand(-1, -1, 2), mask).informative.tolist() == [True, False, False]


def test_tawin_by_hand() -> None:
    """Advantages 1.5 and three times -0.5; peak at rank 2, temperature 1 / ln 2 halves the weight with every rank away.

    Ranks 2, 3, 4 weigh 1, 1/2, 1/4, sum 7/4; the mass of -1.5 is split 4 : 2 : 1.
    """
    advantages = torch.tensor([[1.5, -0.5, -0.5, -0.5]])
    moved = tawin_advantages(advantages, target_rank=2, temperature=1 / math.log(2))
    assert moved.tolist() == [pytest.approx([1.5, -1.5 * 4 / 7, -1.5 * 2 / 7, -1.5 / 7])]
    plateau = tawin_advantages(advantages, target_rank=2, temperature=1 / math.log(2), threshold=-1.0)
    assert plateau.tolist() == [pytest.approx([1.5, -0.6, -0.6, -0.3])]  # ranks within 1 of the peak weigh 1, then 1/2


def test_tawin_keeps_positive_and_negative_mass() -> None:
    advantages = group_advantages(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
    moved = tawin_advantages(advantages)
    torch.testing.assert_close(moved.clamp(min=0), advantages.clamp(min=0))
    torch.testing.assert_close(moved.sum(1), torch.zeros(20), atol=1e-4, rtol=0)
    assert tawin_advantages(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_refusals() -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        group_advantages(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(DataError, match=r"mask has shape \(2, 3\), expected \(2, 2\)"):
        group_advantages(torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(DataError, match=r"expected \[B, G\] or \[B, G, C\]"):
        group_advantages(torch.zeros(3))
    with pytest.raises(DataError, match=r"tawin weighs rows"):
        tawin_advantages(torch.zeros(2, 2, 2))
    with pytest.raises(ConfigError, match=r"zero_signal_weight is 2"):
        informative_groups(torch.zeros(2, 2)).weights(2.0)
