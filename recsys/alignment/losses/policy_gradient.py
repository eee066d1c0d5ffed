"""Policy-gradient losses of ReRe and OneRec: from log-probabilities and advantages to a loss. Pure maths.

Five steps: the old policy's log-probability, bounded from below for ecpo and gbpo; the ratio of new to old; the surrogate
objective; minus beta times the divergence from the reference; and an average over codes and rows.

===========  ================  ============================  =====================  ==================================
type         ratio of          surrogate                     average                source
===========  ================  ============================  =====================  ==================================
grpo         a code            min(r A, clip(r) A)           row mean, then rows    GRPO, arXiv 2402.03300; ReRe
dapo         a code            min(r A, clip(r) A)           all codes              DAPO, arXiv 2503.14476
gspo         a row, mean code  min(s A, clip(s) A)           rows                   GSPO, arXiv 2507.18071
dr_grpo      a code            min(r A, clip(r) A)           sum / fixed length     Dr. GRPO, arXiv 2503.20783
tawin        a code            min(r A, clip(r) A)           row mean, then rows    TAWin, arXiv 2604.22504
ecpo         a code or row     min(r A, clip(r) A), r bound  row mean, then rows    OneRec report, 2506.13695, 2.4.1
gbpo         a code or row     r A, r bounded, no clip       row mean, then rows    OneRec-V2, 2508.20900, 3.1.2
===========  ================  ============================  =====================  ==================================

Without old log-probabilities the step is on-policy: every ratio is 1, with the gradient of the log-probability, and no clip
acts. That is what ReRe's code does; its gspo then has the gradient of its grpo. tawin differs from grpo, and dr_grpo's
missing division by the standard deviation lies, in the advantages: see :func:`advantages_of`.

Legend: B users (one group each), G rollouts per group, C codes of a row (items times levels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

from recsys.alignment.losses.advantages import group_advantages, tawin_advantages
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.contracts.errors import ConfigError, DataError

MAX_LOG_RATIO: Final = 20.0
"""Log-ratios are cut here before ``exp``, as in verl: float32 overflows at 88, and infinity times a clipped zero is NaN."""


@dataclass(frozen=True)
class PolicyGradientResult:
    """A policy-gradient loss and what to log beside it; all but ``loss`` carry no gradient.

    Attributes:
        loss: To be minimised.
        clip_share: Share of ratios whose gradient the clip removes; for gbpo, share of ratios whose denominator was raised.
        mean_ratio, max_ratio: Of new to old probability, as used.
        kl: Mean estimate per code of the divergence from the reference, 0 without one.
    """

    loss: torch.Tensor
    clip_share: torch.Tensor
    mean_ratio: torch.Tensor
    max_ratio: torch.Tensor
    kl: torch.Tensor


def advantages_of(
    config: PolicyGradientConfig, rewards: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn rewards into the advantages that the configured loss expects; shapes as in ``group_advantages``."""
    advantages = group_advantages(rewards, mask, scale=config.scale, eps=config.advantage_eps)
    if config.loss_type != "tawin":
        return advantages
    return tawin_advantages(
        advantages,
        mask,
        target_rank=config.tawin_rank,
        temperature=config.tawin_temperature,
        threshold=config.tawin_threshold,
    )


def policy_gradient_loss(
    config: PolicyGradientConfig,
    log_probs_BGC: torch.Tensor,
    advantages: torch.Tensor,
    mask_BGC: torch.Tensor,
    *,
    old_log_probs_BGC: torch.Tensor | None = None,
    ref_log_probs_BGC: torch.Tensor | None = None,
    group_weights_B: torch.Tensor | None = None,
) -> PolicyGradientResult:
    """Compute the configured loss.

    Args:
        log_probs_BGC: Log-probability of each code under the policy; anything where the mask is false.
        advantages: ``[B, G]``, or ``[B, G, C]`` with ratios per code; from :func:`advantages_of`.
        mask_BGC: Bool, codes that exist.
        old_log_probs_BGC: Under the policy that made the group; ``None``: the policy itself (one step per group).
        ref_log_probs_BGC: Under the reference; no gradient reaches it.
        group_weights_B: Weight of each group in the average, from ``GroupSignal.weights``.

    Raises:
        ConfigError: ``beta`` asks for a reference that is not given, or codes have advantages and ratios are per row.
        DataError: Shapes differ, no code exists, or an unmasked log-probability is NaN or infinite.

    Example:
        On-policy, one group of two rows of one code: the loss is minus the mean advantage, 0; its gradient pulls the first
        code up and pushes the second down, half each.

        >>> logs = torch.tensor([[[-1.0], [-2.0]]], requires_grad=True)
        >>> exist = torch.ones(1, 2, 1, dtype=torch.bool)
        >>> policy_gradient_loss(PolicyGradientConfig(beta=0), logs, torch.tensor([[1.0, -1.0]]), exist).loss.backward()
        >>> logs.grad.flatten().tolist()
        [-0.5, 0.5]
    """
    if config.beta > 0 and ref_log_probs_BGC is None:
        raise ConfigError(
            f"beta is {config.beta} and no reference log-probabilities are given; pass them or set beta=0"
        )
    new = _clean("log_probs", log_probs_BGC, mask_BGC)
    old = new.detach() if old_log_probs_BGC is None else _clean("old_log_probs", old_log_probs_BGC, mask_BGC).detach()
    advantages = _advantage_per_code(config, advantages, mask_BGC).to(new.dtype)

    ratio, surrogate, is_cut = _surrogate(config, new, old, advantages, mask_BGC)
    penalised, kl = surrogate, new.new_zeros(())
    if ref_log_probs_BGC is not None:
        reference = _clean("ref_log_probs", ref_log_probs_BGC, mask_BGC)
        kl_BGC = kl_estimate(new, reference, config.kl_estimator, config.kl_clamp)
        penalised = surrogate - config.beta * kl_BGC
        kl = kl_BGC.detach()[mask_BGC].mean()

    counted = mask_BGC.any(-1, keepdim=True) if config.is_sequence_level else mask_BGC
    ratios = ratio.detach()[counted]
    return PolicyGradientResult(
        loss=-average(config, penalised.expand_as(new), mask_BGC, group_weights_B),
        clip_share=is_cut[counted].to(new.dtype).mean(),
        mean_ratio=ratios.mean(),
        max_ratio=ratios.max(),
        kl=kl,
    )


def early_clipped_old(new: torch.Tensor, old: torch.Tensor, max_ratio: float) -> torch.Tensor:
    """Raise the old log-probability so that no ratio exceeds ``max_ratio``.

    A negative advantage on a probability that grew has an unbounded ratio in GRPO; here it keeps its gradient at a bounded
    size. Where the clip acts on a positive advantage nothing changes.

    Source: OneRec technical report (arXiv 2506.13695), section 2.4.1, in log space: ``max(sg(new) - log(max_ratio), old)``.
    """
    return torch.maximum(new.detach() - math.log(max_ratio), old)


def bounded_old(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Raise the old log-probability to ``log pi`` where the advantage is not negative, to ``log(1 - pi)`` where it is.

    The gradient is then at most that of the log-likelihood, ``A grad(log pi)``, and at most that of binary cross-entropy,
    ``|A| grad(pi) / (1 - pi)``: an improbable negative no longer gives a large step.

    Source: OneRec-V2 (arXiv 2508.20900), section 3.1.2.
    """
    pi = new.detach()
    return torch.where(advantages >= 0, torch.maximum(old, pi), torch.maximum(old, log_complement(pi)))


def log_complement(log_prob: torch.Tensor) -> torch.Tensor:
    """``log(1 - exp(log_prob))`` without cancellation at either end; ``-inf`` for probability 1.

    Example:
        1 - 2^-1 = 0.5, and 1 - e^-1e-6 = 1e-6, which float32 would round when formed from e^-1e-6.

        >>> log_complement(torch.tensor([-0.6931472, -1e-6])).exp().tolist()[0]
        0.5
        >>> bool(abs(log_complement(torch.tensor([-1e-6])).exp().item() / 1e-6 - 1) < 1e-5)
        True
    """
    near_one = log_prob > -math.log(2)
    return torch.where(near_one, (-torch.expm1(log_prob)).log(), torch.log1p(-log_prob.exp()))


def kl_estimate(
    log_probs: torch.Tensor, reference: torch.Tensor, estimator: Literal["k1", "k2", "k3"], clamp: float | None = None
) -> torch.Tensor:
    """Estimate the divergence of the policy from the reference at each code.

    With ``d = reference - log_probs``: k1 ``-d``, k2 ``d^2 / 2``, k3 ``exp(d) - d - 1``, at least 0. k3 grows without bound
    where the policy forgets what the reference knew; teams report divergences of 1e12 from it. Beyond ``clamp`` k2 and k3 go
    on along their tangents: unlike a clamped value, that still pulls the policy back.

    Source: Schulman, "Approximating KL divergence" (2020); the tangent is ours.
    """
    d = reference.detach() - log_probs
    if estimator == "k1":
        return -d
    near = d if clamp is None else d.clamp(-clamp, clamp)
    beyond = d - near
    if estimator == "k2":
        return near.square() / 2 + near.detach() * beyond
    return near.exp() - near - 1 + near.detach().expm1() * beyond


def average(
    config: PolicyGradientConfig,
    values_BGC: torch.Tensor,
    mask_BGC: torch.Tensor,
    group_weights_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average an objective over codes, rows and groups as the loss type does; 0 if every group weighs 0."""
    weight_BGC = mask_BGC.to(values_BGC.dtype)
    if group_weights_B is not None:
        weight_BGC = weight_BGC * group_weights_B.to(values_BGC.dtype)[:, None, None]
    tiny = torch.finfo(values_BGC.dtype).tiny
    if config.loss_type == "dapo":
        return (values_BGC * weight_BGC).sum() / weight_BGC.sum().clamp(min=tiny)
    row_weight_BG = weight_BGC.amax(-1)
    if config.loss_type == "dr_grpo":
        row_BG = (values_BGC * mask_BGC).sum(-1) / (config.max_length or values_BGC.shape[-1])
    else:
        row_BG = (values_BGC * mask_BGC).sum(-1) / mask_BGC.sum(-1).clamp(min=1)
    return (row_BG * row_weight_BG).sum() / row_weight_BG.sum().clamp(min=tiny)


def _surrogate(
    config: PolicyGradientConfig,
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask_BGC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ratios, surrogate objective, and where a bound acted; ``[B, G, C]``, or ``[B, G, 1]`` for ratios per row."""
    if config.is_sequence_level:
        codes = mask_BGC.sum(-1, keepdim=True).clamp(min=1) if config.loss_type == "gspo" else 1
        new, old = new.sum(-1, keepdim=True) / codes, old.sum(-1, keepdim=True) / codes
    low, high = config.clip_bounds
    if config.loss_type == "gbpo":
        bound = bounded_old(new, old, advantages)
        ratio = _ratio(new, bound)
        return ratio, ratio * advantages, bound > old
    if config.loss_type == "ecpo":
        old = early_clipped_old(new, old, high + config.early_clip_delta)
    ratio = _ratio(new, old)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    is_cut = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
    return ratio, surrogate, is_cut


def _ratio(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _advantage_per_code(config: PolicyGradientConfig, advantages: torch.Tensor, mask_BGC: torch.Tensor) -> torch.Tensor:
    """Give advantages of rows a code axis of size 1."""
    if advantages.shape == mask_BGC.shape[:2]:
        return advantages.detach().masked_fill(~mask_BGC.any(-1), 0.0)[..., None]
    if advantages.shape != mask_BGC.shape:
        raise DataError(
            f"advantages have shape {tuple(advantages.shape)}, expected {tuple(mask_BGC.shape[:2])} or "
            f"{tuple(mask_BGC.shape)}"
        )
    if config.is_sequence_level:
        raise ConfigError(
            f"loss_type '{config.loss_type}' has one ratio per row here, and the advantages differ by code; take a reward "
            "per row, or ratio_level='token', or another loss_type"
        )
    return advantages.detach().masked_fill(~mask_BGC, 0.0)


def _clean(name: str, values: torch.Tensor, mask_BGC: torch.Tensor) -> torch.Tensor:
    """Check, widen to float32, and put 0 where the mask is false."""
    if values.ndim != 3 or values.shape != mask_BGC.shape:
        raise DataError(
            f"{name} has shape {tuple(values.shape)}, mask {tuple(mask_BGC.shape)}; expected [B, G, C] each"
        )
    if not mask_BGC.any():
        raise DataError(f"the mask leaves none of the {mask_BGC.numel()} codes; leave such a batch out")
    values = (values if values.dtype == torch.float64 else values.float()).masked_fill(~mask_BGC, 0.0)
    if not torch.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity at a code that exists; expected log-probabilities")
    return values
