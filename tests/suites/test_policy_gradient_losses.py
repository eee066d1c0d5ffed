"""One suite for every policy-gradient loss: what the alignment loops may rely on, whichever is configured."""

from __future__ import annotations

import pytest
import torch

from recsys.alignment.losses.policy_gradient import policy_gradient_loss
from tests.toy.policy_gradient import EVERY_FORM, LOSS_TYPES, config_of, exist, random_step


def test_every_type_of_the_configuration_is_in_the_suite() -> None:
    """With one ratio per row as well, where the type can have one; the others refuse that."""
    assert {name for name, level in EVERY_FORM if level == "token"} == set(LOSS_TYPES)
    for name in LOSS_TYPES:
        if (name, "sequence") in EVERY_FORM:
            assert config_of(name, "sequence").is_sequence_level
        else:
            with pytest.raises(ValueError, match="does not read ratio_level"):
                config_of(name, "sequence")


@pytest.mark.parametrize(("loss_type", "level"), EVERY_FORM)
class TestEveryForm:
    def test_reference_and_old_policy_get_no_gradient(self, loss_type: str, level: str) -> None:
        new, old, reference, advantages, mask = random_step(0)
        old, reference = old.requires_grad_(), reference.requires_grad_()
        config = config_of(loss_type, level, beta=0.1)
        policy_gradient_loss(
            config, new, advantages, mask, old_log_probs_BGC=old, ref_log_probs_BGC=reference
        ).loss.backward()
        assert old.grad is None
        assert reference.grad is None
        assert new.grad.abs().max().item() > 0

    def test_masked_codes_are_not_read(self, loss_type: str, level: str) -> None:
        new, old, reference, advantages, mask = random_step(1)
        config = config_of(loss_type, level, beta=0.1)
        results, gradients = [], []
        for junk in (0.0, torch.nan, -torch.inf):
            filled = [values.detach().masked_fill(~mask, junk) for values in (new, old, reference)]
            leaf = filled[0].requires_grad_()
            result = policy_gradient_loss(
                config,
                leaf,
                advantages.masked_fill(~mask.any(-1), junk),
                mask,
                old_log_probs_BGC=filled[1],
                ref_log_probs_BGC=filled[2],
            )
            result.loss.backward()
            results.append(vars(result))
            gradients.append(leaf.grad)
        for result, gradient in zip(results[1:], gradients[1:], strict=True):
            for name, value in result.items():
                assert value.item() == results[0][name].item(), name
            assert torch.equal(gradient, gradients[0])
        assert (gradients[0][~mask] == 0).all()

    def test_on_policy_ratios_are_one_and_nothing_is_clipped(self, loss_type: str, level: str) -> None:
        """gbpo may raise the denominator of a negative to 1 - pi even then, which lowers the ratio."""
        new, _, _, advantages, mask = random_step(2)
        result = policy_gradient_loss(config_of(loss_type, level), new, advantages, mask)
        same = policy_gradient_loss(config_of(loss_type, level), new, advantages, mask, old_log_probs_BGC=new.detach())
        assert torch.equal(result.loss, same.loss)
        assert result.max_ratio.item() == 1.0
        if loss_type != "gbpo":
            assert result.mean_ratio.item() == 1.0
            assert result.clip_share.item() == 0.0

    def test_zero_weight_filters_a_group(self, loss_type: str, level: str) -> None:
        """Weights 1, 0, 1 equal leaving the group out; 0 everywhere is a loss of 0 with a gradient of 0."""
        new, old, reference, advantages, mask = random_step(3)
        config = config_of(loss_type, level, beta=0.1)

        def loss_of(rows: list[int], weights: torch.Tensor | None) -> torch.Tensor:
            return policy_gradient_loss(
                config,
                new[rows],
                advantages[rows],
                mask[rows],
                old_log_probs_BGC=old[rows],
                ref_log_probs_BGC=reference[rows],
                group_weights_B=weights,
            ).loss

        torch.testing.assert_close(loss_of([0, 1, 2], torch.tensor([1.0, 0.0, 1.0])), loss_of([0, 2], None))
        nothing = loss_of([0, 1, 2], torch.zeros(3))
        (gradient,) = torch.autograd.grad(nothing, new)
        assert nothing.item() == 0
        assert gradient.abs().max().item() == 0

    def test_a_good_row_is_raised_and_a_bad_one_lowered(self, loss_type: str, level: str) -> None:
        new = torch.full((1, 2, 3), -1.5, requires_grad=True)
        policy_gradient_loss(config_of(loss_type, level), new, torch.tensor([[1.0, -1.0]]), exist(new)).loss.backward()
        assert (new.grad[0, 0] < 0).all()
        assert (new.grad[0, 1] > 0).all()

    def test_extreme_ratios_keep_gradients_finite(self, loss_type: str, level: str) -> None:
        """A policy that moved by 200 nats: exp overflows in float32, and a clipped infinity would give NaN."""
        new = torch.tensor([[[-0.1, -0.1], [-200.0, -200.0]]]).requires_grad_()
        old = torch.tensor([[[-200.0, -200.0], [-0.1, -0.1]]])
        for signs in ([1.0, -1.0], [-1.0, 1.0]):
            result = policy_gradient_loss(
                config_of(loss_type, level, beta=0.1),
                new,
                torch.tensor([signs]),
                exist(new),
                old_log_probs_BGC=old,
                ref_log_probs_BGC=old,
            )
            (gradient,) = torch.autograd.grad(result.loss, new)
            assert torch.isfinite(gradient).all()
            assert torch.isfinite(result.loss)
