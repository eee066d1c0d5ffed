"""Policy-gradient losses by hand, and what is promised of their ratios and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import (
    advantages_of,
    average,
    bounded_old,
    early_clipped_old,
    kl_estimate,
    log_complement,
    policy_gradient_loss,
)
from recsys.config import validate
from recsys.contracts.errors import ConfigError, DataError
from tests.toy.policy_gradient import CLIPPED, LOSS_TYPES, config_of, exist, logs, random_step, result_of


@pytest.mark.parametrize("loss_type", CLIPPED)
def test_clipped_surrogate_by_hand(loss_type: str) -> None:
    """Ratios 0.3 / 0.2 = 1.5 twice, A = 1 and -1: min(1.5, 1.2) = 1.2 and min(-1.5, -1.2) = -1.5, mean -0.15."""
    result = result_of(config_of(loss_type), logs(0.3, 0.3), [1.0, -1.0], logs(0.2, 0.2))
    assert result.loss.item() == pytest.approx(0.15, abs=1e-6)
    assert result.clip_share.item() == 0.5
    assert result.mean_ratio.item() == pytest.approx(1.5)
    assert result.max_ratio.item() == pytest.approx(1.5)


def test_clip_higher_by_hand() -> None:
    """epsilon_high 0.28: ratio 1.5 counts as 1.28, ratio 0.5 with A = -1 as 0.8: -(1.28 - 0.8) / 2 = -0.24."""
    result = result_of(config_of("dapo", epsilon_high=0.28), logs(0.3, 0.1), [1.0, -1.0], logs(0.2, 0.2))
    assert result.loss.item() == pytest.approx(-0.24, abs=1e-6)
    assert result.clip_share.item() == 1.0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of("grpo"), 0.0),
        (config_of("dapo"), 0.5),
        (config_of("dr_grpo"), 1 / 3),
        (config_of("dr_grpo", max_length=6), 1 / 6),
    ],
)
def test_averages_by_hand(config: PolicyGradientConfig, expected: float) -> None:
    """A row of one code with A = 1 and a row of three with A = -1, on-policy.

    Row means: -(1 - 1) / 2. Over codes: -(1 - 3) / 4. Fixed length 3: -(1/3 - 3/3) / 2; fixed length 6 halves that.
    """
    new = torch.full((1, 2, 3), -1.0)
    mask = torch.tensor([[[True, False, False], [True, True, True]]])
    loss = policy_gradient_loss(config, new, torch.tensor([[1.0, -1.0]]), mask).loss
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_sequence_ratios_by_hand() -> None:
    """Two codes with ratios 2 and 0.5, A = 1. Codes: (1.2 + 0.5) / 2. gspo: sqrt(2 * 0.5) = 1. With ratios 2 and 2 the row's
    product is 4 for ecpo per row, bounded to 1.3 and clipped to 1.2; gspo's mean is 2."""
    old = torch.tensor([[[0.2, 0.2]]]).log()
    mixed, grown = (
        torch.tensor([[[0.4, 0.1]]]).log(),
        torch.tensor([[[0.4, 0.4]]]).log(),
    )
    assert result_of(config_of("grpo"), mixed, [1.0], old).loss.item() == pytest.approx(-0.85)
    assert result_of(config_of("gspo"), mixed, [1.0], old).loss.item() == pytest.approx(-1.0)
    assert result_of(config_of("gspo"), grown, [1.0], old).max_ratio.item() == pytest.approx(2.0)
    bounded = result_of(config_of("ecpo", "sequence"), grown, [1.0], old)
    assert bounded.max_ratio.item() == pytest.approx(1.3)
    assert bounded.loss.item() == pytest.approx(-1.2)
    plain = result_of(config_of("gbpo", "sequence"), grown, [-1.0], old)  # 0.16 / max(0.04, 0.84)
    assert plain.loss.item() == pytest.approx(0.16 / 0.84)


def test_divergence_by_hand() -> None:
    """Policy 0.4, reference 0.2, d = -log 2: k1 log 2, k2 (log 2)^2 / 2, k3 1/2 + log 2 - 1. beta 0.1 adds a tenth."""
    new, reference = logs(0.4), logs(0.2)
    expected = {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 0.5}
    for estimator, value in expected.items():
        assert kl_estimate(new, reference, estimator).item() == pytest.approx(value, abs=1e-6)
        result = policy_gradient_loss(
            config_of("grpo", beta=0.1, kl_estimator=estimator),
            new,
            torch.tensor([[2.0]]),
            exist(new),
            ref_log_probs_BGC=reference,
        )
        assert result.kl.item() == pytest.approx(value, abs=1e-6)
        assert result.loss.item() == pytest.approx(-2.0 + 0.1 * value, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_clamped_divergence_goes_on_along_its_tangent(estimator: str) -> None:
    """At d = 9 with clamp 2: value f(2) + 7 f'(2), slope f'(2), where k3 has f = e^d - d - 1 and k2 f = d^2 / 2."""
    new = torch.tensor([-10.0, -2.0, -0.5], requires_grad=True)
    kl = kl_estimate(new, torch.tensor([-1.0, -1.0, -1.0]), estimator, clamp=2.0)
    value, slope = (2.0, 2.0) if estimator == "k2" else (math.exp(2) - 3, math.exp(2) - 1)
    assert kl[0].item() == pytest.approx(value + 7 * slope, rel=1e-6)
    torch.testing.assert_close(kl[1:], kl_estimate(new, torch.full((3,), -1.0), estimator)[1:])
    kl.sum().backward()
    assert new.grad[0].item() == pytest.approx(-slope, rel=1e-6)
    assert kl_estimate(torch.tensor([-500.0]), torch.tensor([-1.0]), "k3", clamp=5.0).item() < 1e5


def test_k3_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    new, reference = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    for clamp in (None, 0.5):
        assert kl_estimate(new, reference, "k3", clamp).min().item() >= -1e-6
    assert kl_estimate(new, new, "k3").abs().max().item() == 0


@pytest.mark.parametrize("loss_type", CLIPPED)
def test_gradient_is_the_derivative(loss_type: str) -> None:
    """Of the clipped multi-step form with divergence; ecpo and gbpo hold a part of their ratio still, see below."""
    new, old, reference, advantages, mask = random_step(4, dtype=torch.float64)
    config = config_of(loss_type, beta=0.1)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return policy_gradient_loss(
            config, values, advantages, mask, old_log_probs_BGC=old, ref_log_probs_BGC=reference
        ).loss

    assert torch.autograd.gradcheck(loss, (new,))


@pytest.mark.parametrize("loss_type", ["ecpo", "gbpo"])
def test_gradient_is_the_derivative_with_the_bound_held_still(loss_type: str) -> None:
    new, old, _, advantages, mask = random_step(5, spread=2.0, dtype=torch.float64)
    config = config_of(loss_type)
    rows = advantages[..., None]
    bound = early_clipped_old(new, old, 1.3) if loss_type == "ecpo" else bounded_old(new, old, rows)

    def written_out(values: torch.Tensor) -> torch.Tensor:
        ratio = (values - bound).exp()
        clipped = torch.minimum(ratio * rows, ratio.clamp(0.8, 1.2) * rows)
        return -average(config, clipped if loss_type == "ecpo" else ratio * rows, mask)

    assert torch.autograd.gradcheck(written_out, (new,))
    (expected,) = torch.autograd.grad(written_out(new), new)
    loss = policy_gradient_loss(config, new, advantages, mask, old_log_probs_BGC=old).loss
    (found,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(found, expected)


def test_gspo_has_the_gradient_of_grpo_in_a_single_step() -> None:
    new, _, reference, advantages, mask = random_step(6)
    gradients = []
    for loss_type in ("grpo", "gspo"):
        loss = policy_gradient_loss(
            config_of(loss_type, beta=0.1), new, advantages, mask, ref_log_probs_BGC=reference
        ).loss
        gradients += torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_equal_rewards_leave_only_the_divergence() -> None:
    """ReRe: a group without a hit has no advantage anywhere; without beta the gradient is exactly 0."""
    new, _, reference, _, mask = random_step(7)
    for loss_type in LOSS_TYPES:
        config = config_of(loss_type)
        advantages = advantages_of(config, torch.full((3, 5), 0.1), mask.any(-1))
        assert advantages.abs().max().item() == 0
        (gradient,) = torch.autograd.grad(policy_gradient_loss(config, new, advantages, mask).loss, new)
        assert gradient.abs().max().item() == 0
        with_pull = policy_gradient_loss(
            config_of(loss_type, beta=0.1), new, advantages, mask, ref_log_probs_BGC=reference
        ).loss
        assert torch.autograd.grad(with_pull, new)[0].abs().max().item() > 0


@settings(max_examples=60, deadline=None)
@given(
    level=st.sampled_from(["token", "sequence"]),
    epsilon=st.floats(0.05, 0.5),
    delta=st.floats(0.01, 0.5),
    seed=st.integers(0, 10_000),
    spread=st.floats(0.0, 6.0),
)
def test_ecpo_ratios_are_bounded(level: str, epsilon: float, delta: float, seed: int, spread: float) -> None:
    new, old, _, advantages, mask = random_step(seed, spread)
    config = config_of("ecpo", level, epsilon=epsilon, early_clip_delta=delta)
    result = policy_gradient_loss(config, new, advantages, mask, old_log_probs_BGC=old)
    assert result.max_ratio.item() <= (1 + epsilon + delta) * (1 + 1e-6)


def test_ecpo_equals_grpo_where_no_ratio_passes_the_bound() -> None:
    """Ratios of at most e^0.2 = 1.22 < 1.3, some of them clipped at 1.2 and at 0.8."""
    new, _, _, advantages, mask = random_step(8)
    old = new.detach() - torch.linspace(-0.6, 0.2, 60).view(3, 5, 4)
    found = []
    for loss_type in ("grpo", "ecpo"):
        result = policy_gradient_loss(config_of(loss_type), new, advantages, mask, old_log_probs_BGC=old)
        found.append((result.loss, *torch.autograd.grad(result.loss, new)))
        assert result.clip_share.item() > 0
    torch.testing.assert_close(found[0], found[1])


def test_ecpo_keeps_a_bounded_gradient_where_grpo_has_an_unbounded_one() -> None:
    """Ratio 0.5 / 0.1 = 5 with A = -1: grpo's loss and gradient are 5, ecpo's 1.3. With A = 1 both stay at 1.2."""
    for sign, grpo, ecpo in ((-1.0, 5.0, 1.3), (1.0, -1.2, -1.2)):
        for loss_type, expected in (("grpo", grpo), ("ecpo", ecpo)):
            new = logs(0.5).requires_grad_()
            loss = result_of(config_of(loss_type), new, [sign], logs(0.1)).loss
            (gradient,) = torch.autograd.grad(loss, new)
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            assert gradient.item() == pytest.approx(expected if sign < 0 else 0.0, rel=1e-5)


def test_gbpo_by_hand() -> None:
    """pi 0.4, old 0.1. A = -1: 0.4 / max(0.1, 0.6) = 2/3. A = 1: 0.4 / max(0.1, 0.4) = 1. Old 0.8 and A = 1: 0.5."""
    assert result_of(config_of("gbpo"), logs(0.4), [-1.0], logs(0.1)).loss.item() == pytest.approx(2 / 3)
    assert result_of(config_of("gbpo"), logs(0.4), [1.0], logs(0.1)).loss.item() == pytest.approx(-1.0)
    result = result_of(config_of("gbpo"), logs(0.4), [1.0], logs(0.8))
    assert result.loss.item() == pytest.approx(-0.5)
    assert result.clip_share.item() == 0.0


@settings(max_examples=80, deadline=None)
@given(new=st.floats(-20, -1e-4), old=st.floats(-20, -1e-4), size=st.floats(0.1, 5))
def test_gbpo_gradient_is_bounded_by_cross_entropy(new: float, old: float, size: float) -> None:
    """In log pi: a negative by |A| pi / (1 - pi), which is what -log(1 - pi) gives; a positive by A, which is log pi's."""
    value = torch.tensor([[[new]]], dtype=torch.float64, requires_grad=True)
    (cross_entropy,) = torch.autograd.grad(-torch.log1p(-value.exp()).sum(), value)
    reference = torch.tensor([[[old]]], dtype=torch.float64)
    for sign, bound in ((-1.0, cross_entropy.item()), (1.0, 1.0)):
        loss = result_of(config_of("gbpo"), value, [sign * size], reference).loss
        (gradient,) = torch.autograd.grad(loss, value)
        assert abs(gradient.item()) <= size * bound * (1 + 1e-6)
    grpo = result_of(config_of("grpo"), value, [-size], reference).loss
    (unbounded,) = torch.autograd.grad(grpo, value)
    if new - old > 2 and math.exp(new) < 0.1:
        assert abs(unbounded.item()) > 7 * size * cross_entropy.item()


def test_log_complement_keeps_its_digits_at_both_ends() -> None:
    """Against float64: log(1 - p) for p from 1e-12 to 1 - 1e-6; p = 1 gives -inf, which no maximum lets through."""
    exact = torch.tensor([-27.6, -10.0, -1.0, -0.6931, -0.5, -1e-3, -1e-6], dtype=torch.float64)
    expected = torch.log1p(-exact.exp())
    torch.testing.assert_close(log_complement(exact.float()).double(), expected, rtol=1e-5, atol=1e-12)
    assert log_complement(torch.zeros(1)).item() == -math.inf
    certain = torch.zeros(1, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(result_of(config_of("gbpo"), certain, [-1.0], logs(0.5)).loss, certain)
    assert gradient.item() == pytest.approx(2.0)  # 1 / old: a certain negative is still pushed down


def test_advantages_follow_the_type() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert advantages_of(config_of("grpo", advantage_eps=1e-9), rewards)[0, 0].item() == pytest.approx(1.5)
    assert advantages_of(config_of("dr_grpo"), rewards)[0, 0].item() == pytest.approx(0.75)
    assert advantages_of(config_of("grpo", advantage_scale="none"), rewards)[0, 0].item() == pytest.approx(0.75)
    tawin = advantages_of(config_of("tawin"), rewards)[0]
    assert tawin[1].item() < tawin[2].item() < tawin[3].item() < 0


def test_advantages_per_code_reach_their_codes() -> None:
    new = torch.full((1, 1, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([[[1.0, -1.0, 0.0]]])
    (gradient,) = torch.autograd.grad(policy_gradient_loss(config_of("dapo"), new, advantages, exist(new)).loss, new)
    assert gradient.flatten().tolist() == pytest.approx([-1 / 3, 1 / 3, 0.0])


def test_half_precision_is_widened() -> None:
    new, old, reference, advantages, mask = random_step(9)
    low = [values.detach().bfloat16() for values in (new, old, reference)]
    config = config_of("grpo", beta=0.1)
    found, expected = (
        policy_gradient_loss(config, a, advantages, mask, old_log_probs_BGC=b, ref_log_probs_BGC=c).loss
        for a, b, c in (low, [values.float() for values in low])
    )
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


def test_config_refusals() -> None:
    with pytest.raises(ConfigError, match="'grpo', 'dapo'"):
        validate(PolicyGradientConfig, {"loss_type": "ppo"}, "test")
    with pytest.raises(ValidationError, match=r"'grpo' does not read ratio_level .*choose one of ecpo, gbpo"):
        PolicyGradientConfig(ratio_level="sequence")
    with pytest.raises(ValidationError, match=r"'gbpo' does not read epsilon "):
        PolicyGradientConfig(loss_type="gbpo", epsilon=0.1)
    with pytest.raises(ValidationError, match="does not divide by the standard deviation"):
        PolicyGradientConfig(loss_type="dr_grpo", advantage_scale="group_std")
    written = PolicyGradientConfig(loss_type="ecpo", early_clip_delta=0.2).model_dump()
    assert PolicyGradientConfig(**written).early_clip_delta == 0.2


def test_data_refusals() -> None:
    new = torch.full((2, 3, 2), -1.0)
    advantages, mask = torch.zeros(2, 3), exist(new)
    with pytest.raises(ConfigError, match=r"beta is 0.001 and no reference"):
        policy_gradient_loss(PolicyGradientConfig(), new, advantages, mask)
    with pytest.raises(ConfigError, match=r"'gspo' has one ratio per row"):
        policy_gradient_loss(config_of("gspo"), new, torch.zeros(2, 3, 2), mask)
    with pytest.raises(DataError, match=r"advantages have shape \(3,\), expected \(2, 3\) or \(2, 3, 2\)"):
        policy_gradient_loss(config_of("grpo"), new, torch.zeros(3), mask)
    with pytest.raises(DataError, match="old_log_probs has shape"):
        policy_gradient_loss(config_of("grpo"), new, advantages, mask, old_log_probs_BGC=new[:1])
    with pytest.raises(DataError, match="none of the 12 codes"):
        policy_gradient_loss(config_of("grpo"), new, advantages, ~mask)
    with pytest.raises(DataError, match="log_probs holds NaN"):
        policy_gradient_loss(config_of("grpo"), new * torch.nan, advantages, mask)


def test_figures_are_of_the_codes_that_exist() -> None:
    """Two codes exist and four do not. Ratios 1.5 with A = 1 (clipped) and 1; d = -1 and 0: k3 is e^-1 + 1 - 1 and 0."""
    mask = torch.tensor([[[True, False, False], [True, False, False]]])
    new = torch.full((1, 2, 3), -1.0)
    old, reference = new.clone(), new.clone()
    old[0, 0] = -1.0 - math.log(1.5)
    reference[0, 0] = -2.0
    old[~mask] = reference[~mask] = -9.0
    config = PolicyGradientConfig(loss_type="grpo", beta=0.1)
    result = policy_gradient_loss(
        config,
        new,
        torch.tensor([[1.0, 1.0]]),
        mask,
        old_log_probs_BGC=old,
        ref_log_probs_BGC=reference,
    )
    assert result.clip_share.item() == 0.5
    assert result.mean_ratio.item() == pytest.approx(1.25)
    assert result.max_ratio.item() == pytest.approx(1.5)
    assert result.kl.item() == pytest.approx(math.exp(-1) / 2)
