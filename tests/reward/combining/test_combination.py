"""Towers to one reward: z-scores, ranks and weights by hand; candidates that do not exist; towers that say nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.contracts.errors import ConfigError
from recsys.reward.combining.combination import combine_rewards, tower_weights
from recsys.reward.config import CombinationConfig, RewardSignal

INF = float("inf")


def test_zscores_by_hand() -> None:
    """Tower 1 is 1, 2, 3: mean 2, deviation sqrt(2/3) = 0.8165, z = -1.2247, 0, 1.2247.

    Tower 2 is 0.03, 0.01, 0.02: z = 1.2247, -1.2247, 0. Weights 1 and 2: -1.2247 + 2.4495 = 1.2247, -2.4495, 1.2247.
    """
    values = torch.tensor([[[1.0, 0.03], [2.0, 0.01], [3.0, 0.02]]])
    reward = combine_rewards(values, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(reward, torch.tensor([[1.2247, -2.4495, 1.2247]]), atol=1e-4, rtol=0)


def test_ranks_by_hand() -> None:
    """5, 7, 7, 9: (below - above) / (2 * 3) = -3/6, 0, 0, 3/6 for 5 and 9; for 7: (1 - 1) / 6 = 0."""
    values = torch.tensor([5.0, 7.0, 7.0, 9.0]).view(1, 4, 1)
    assert combine_rewards(values, torch.tensor([1.0]), "rank").tolist() == [[-0.5, 0.0, 0.0, 0.5]]


def test_a_tower_that_does_not_vary_adds_nothing() -> None:
    values = torch.tensor([[[0.7, 0.1], [0.7, 0.2]]])
    for mode in ("zscore", "rank"):
        alone = combine_rewards(values[..., 1:], torch.tensor([1.0]), mode)
        torch.testing.assert_close(combine_rewards(values, torch.tensor([5.0, 1.0]), mode), alone)
    # float32 noise is no difference: 0.7 and its neighbour
    noise = torch.tensor([0.7, 0.70000005]).view(1, 2, 1)
    assert combine_rewards(noise, torch.tensor([1.0])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("mode", ["zscore", "raw", "rank"])
def test_candidates_that_do_not_exist_change_nothing(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 4, 3, generator=generator)
    weights = torch.tensor([1.0, -0.5, 2.0])
    expected = combine_rewards(values, weights, mode)
    padded = torch.cat([values, torch.full((2, 1, 3), torch.nan), torch.full((2, 1, 3), -INF)], dim=1)
    found = combine_rewards(padded, weights, mode)
    torch.testing.assert_close(found[:, :4], expected)
    assert (found[:, 4:] == -INF).all()
    masked = combine_rewards(
        torch.cat([values, torch.rand(2, 2, 3)], 1), weights, mode, torch.tensor([True] * 4 + [False] * 2)
    )
    torch.testing.assert_close(masked, found)
    assert (combine_rewards(padded[:, 4:], weights, mode) == -INF).all()


@given(seed=st.integers(0, 20), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_zscores_and_ranks_do_not_know_a_towers_scale(seed: int, scale: float, shift: float) -> None:
    values = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(seed))
    moved = values * torch.tensor([scale, 1.0]) + torch.tensor([shift, 0.0])
    weights = torch.tensor([1.0, 0.3])
    for mode in ("zscore", "rank"):
        torch.testing.assert_close(
            combine_rewards(moved, weights, mode), combine_rewards(values, weights, mode), atol=5e-3, rtol=0
        )


def test_weights_of_each_request() -> None:
    values = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = combine_rewards(values, weights)
    for row in range(2):
        torch.testing.assert_close(found[row], combine_rewards(values[row : row + 1], weights[row])[0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"expected \[B, N, T\] and \[T\] or \[B, T\]"):
        combine_rewards(torch.zeros(2, 3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="expected 'zscore', 'raw' or 'rank'"):
        combine_rewards(torch.zeros(1, 1, 1), torch.ones(1), "best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="watch is no tower; this reward model has swt, ltr"):
        tower_weights({"swt": 1.0, "ltr": 1.0}, {"watch": 2.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(value: float) -> None:
    """It would make every reward NaN, once the models are trained."""
    with pytest.raises(ValidationError, match="finite number"):
        CombinationConfig(weights={"ltr": value})
    with pytest.raises(ValidationError, match="finite number"):
        RewardSignal(name="ltr", column="like", kind="any", weight=value)
