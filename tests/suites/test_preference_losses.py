"""One suite for every preference loss: what the alignment loops may rely on, whichever is configured."""

from dataclasses import fields
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.alignment.losses.config import PreferenceLossConfig, PreferenceLossType
from recsys.alignment.losses.preference import LOSSES, PreferenceLogProbs, preference_loss
from recsys.contracts.errors import ConfigError

MONOTONE = ("dpo", "rdpo", "cpo", "simpo", "sdpo")
"""Their gradients have one sign everywhere; the others have a point beyond which the margin is large enough."""


def pairs_of(rows: int, negatives: int, seed: int, spread: float = 1.0, dtype=torch.float32) -> PreferenceLogProbs:
    """Random log-probabilities near a random reference, the chosen one best by reward, rewards all different."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    reference, ref_rejected = -8 * draw(rows) - 1, -8 * draw(rows, negatives) - 1
    return PreferenceLogProbs(
        chosen=(reference + spread * (draw(rows) - 0.5)).requires_grad_(),
        rejected=(ref_rejected + spread * (draw(rows, negatives) - 0.5)).requires_grad_(),
        ref_chosen=reference.requires_grad_(),
        ref_rejected=ref_rejected.requires_grad_(),
        chosen_length=torch.full((rows,), 6),
        rejected_length=torch.full((rows, negatives), 6),
        chosen_reward=3 + draw(rows),
        rejected_reward=draw(rows, negatives),
    )


def changed(pairs: PreferenceLogProbs, **values: torch.Tensor | None) -> PreferenceLogProbs:
    return PreferenceLogProbs(**{**{f.name: getattr(pairs, f.name) for f in fields(pairs)}, **values})


def rows_of(pairs: PreferenceLogProbs, rows: slice) -> PreferenceLogProbs:
    values = {f.name: getattr(pairs, f.name) for f in fields(pairs)}
    return PreferenceLogProbs(**{name: value[rows] if value is not None else None for name, value in values.items()})


def test_the_names_of_the_configuration_are_the_registered_ones() -> None:
    assert set(get_args(PreferenceLossType)) == set(LOSSES)


def test_only_two_types_work_without_a_reference() -> None:
    assert [name for name, loss in LOSSES.items() if "reference" not in loss.needs] == ["cpo", "simpo"]


@pytest.mark.parametrize("loss_type", LOSSES)
class TestEveryLoss:
    @pytest.mark.parametrize("negatives", [1, 2, 5])
    def test_gradient_raises_the_chosen_and_lowers_the_rejected(self, loss_type: str, negatives: int) -> None:
        """Near the reference. A middle place of the Plackett-Luce order is pulled both ways, so the sum is looked at."""
        pairs = pairs_of(4, negatives, seed=negatives, spread=0.1)
        preference_loss(PreferenceLossConfig(loss_type=loss_type), pairs).loss.backward()
        assert (pairs.chosen.grad < 0).all()
        assert (pairs.rejected.grad.sum(1) > 0).all()
        if loss_type != "plackett_luce":
            assert (pairs.rejected.grad > 0).all()

    def test_reference_gets_no_gradient(self, loss_type: str) -> None:
        pairs = pairs_of(3, 2, seed=0)
        preference_loss(PreferenceLossConfig(loss_type=loss_type), pairs).loss.backward()
        assert pairs.ref_chosen.grad is None
        assert pairs.ref_rejected.grad is None
        assert pairs.chosen.grad is not None

    def test_gradient_is_the_derivative(self, loss_type: str) -> None:
        pairs = pairs_of(3, 3, seed=1, spread=4.0, dtype=torch.float64)
        mask = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])

        def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
            given_pairs = changed(pairs, chosen=chosen, rejected=rejected, rejected_mask=mask)
            return preference_loss(PreferenceLossConfig(loss_type=loss_type, beta=0.7), given_pairs).loss

        assert torch.autograd.gradcheck(loss, (pairs.chosen, pairs.rejected))

    def test_many_rows_equal_one_row(self, loss_type: str) -> None:
        config = PreferenceLossConfig(loss_type=loss_type)
        pairs = pairs_of(5, 3, seed=2)
        together = preference_loss(config, pairs)
        alone = torch.cat([preference_loss(config, rows_of(pairs, slice(row, row + 1))).per_row for row in range(5)])
        torch.testing.assert_close(together.per_row, alone)
        torch.testing.assert_close(together.loss, alone.mean())

    @pytest.mark.parametrize("junk", [0.0, -torch.inf, torch.nan])
    def test_an_absent_negative_changes_nothing(self, loss_type: str, junk: float) -> None:
        config = PreferenceLossConfig(loss_type=loss_type)
        pairs = pairs_of(3, 2, seed=3)
        expected = preference_loss(config, pairs)
        expected.loss.backward()
        pad = torch.full((3, 1), junk)
        rejected = torch.cat([pairs.rejected.detach(), pad], 1).requires_grad_()
        padded = changed(
            pairs,
            rejected=rejected,
            ref_rejected=torch.cat([pairs.ref_rejected.detach(), pad], 1),
            rejected_mask=torch.tensor([[True, True, False]]).expand(3, -1),
            rejected_length=torch.tensor([[6, 6, 0]]).expand(3, -1),
            rejected_reward=torch.cat([pairs.rejected_reward, pad], 1),
        )
        found = preference_loss(config, padded)
        for name in ("loss", "per_row", "margin", "accuracy", "chosen_log_ratio", "rejected_log_ratio"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        (gradient,) = torch.autograd.grad(found.loss, rejected)
        torch.testing.assert_close(gradient[:, :2], pairs.rejected.grad)
        assert (gradient[:, 2] == 0).all()

    def test_loss_is_the_weighted_mean(self, loss_type: str) -> None:
        """Weights 1, 0, 3: a quarter of the first row, three quarters of the last. All 0: a loss of 0 with a graph."""
        config = PreferenceLossConfig(loss_type=loss_type)
        pairs = pairs_of(3, 2, seed=4)
        result = preference_loss(config, changed(pairs, weights=torch.tensor([1.0, 0.0, 3.0])))
        torch.testing.assert_close(result.loss, (result.per_row[0] + 3 * result.per_row[2]) / 4)
        nothing = preference_loss(config, changed(pairs, weights=torch.zeros(3))).loss
        nothing.backward()
        assert nothing.item() == 0
        assert pairs.chosen.grad.abs().max().item() == 0

    def test_half_precision_is_widened(self, loss_type: str) -> None:
        """bfloat16 keeps 8 bits, so that a log-probability near -30 has steps of 0.125; the difference must be exact."""
        pairs = pairs_of(3, 2, seed=5)
        low = {f.name: getattr(pairs, f.name) for f in fields(pairs)}
        low = {k: v.detach().bfloat16() if v is not None and v.is_floating_point() else v for k, v in low.items()}
        wide = {k: v.float() if v is not None and v.is_floating_point() else v for k, v in low.items()}
        config = PreferenceLossConfig(loss_type=loss_type)
        found = preference_loss(config, PreferenceLogProbs(**low)).loss
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(
            preference_loss(config, PreferenceLogProbs(**wide)).loss.item(), rel=1e-6, abs=1e-7
        )

    def test_pairs_that_lack_what_it_needs_are_refused(self, loss_type: str) -> None:
        bare = pairs_of(2, 1, seed=6)
        bare = PreferenceLogProbs(bare.chosen, bare.rejected)
        if not LOSSES[loss_type].needs:
            preference_loss(PreferenceLossConfig(loss_type=loss_type), bare)
            return
        with pytest.raises(ConfigError, match=f"'{loss_type}' needs the .* these pairs carry none; add it, or choose"):
            preference_loss(PreferenceLossConfig(loss_type=loss_type), bare)


@settings(max_examples=40, deadline=None)
@given(
    loss_type=st.sampled_from(MONOTONE),
    beta=st.floats(0.01, 1.0),
    negatives=st.integers(1, 4),
    seed=st.integers(0, 1000),
    spread=st.floats(0.0, 8.0),
)
def test_gradient_signs_hold_anywhere(loss_type: str, beta: float, negatives: int, seed: int, spread: float) -> None:
    pairs = pairs_of(3, negatives, seed, spread)
    preference_loss(PreferenceLossConfig(loss_type=loss_type, beta=beta), pairs).loss.backward()
    assert (pairs.chosen.grad < 0).all()
    assert (pairs.rejected.grad > 0).all()
