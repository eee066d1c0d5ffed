"""Preference losses: from log-probabilities of chosen and rejected sessions to a loss per request. Pure maths.

With ``d = log pi - log pi_ref`` (the log-ratio; w chosen, l rejected) and ``h = beta (d_w - d_l)``:

========== ========================================================== =========== ===========================================
type       loss of one request                                        reference   source
========== ========================================================== =========== ===========================================
dpo        -log sigmoid(h)                                            yes         DPO, arXiv 2305.18290, eq. 7
ipo        (d_w - d_l - 1 / (2 beta))^2                               yes         IPO, arXiv 2310.12036
cdpo       -(1-e) log sigmoid(h) - e log sigmoid(-h)                  yes         conservative DPO (Mitchell, 2023)
rdpo       (-(1-e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2e)     yes         robust DPO, arXiv 2403.00409
cpo        -log sigmoid(beta (log pi_w - log pi_l)) - a log pi_w      no          CPO, arXiv 2401.08417
simpo      -log sigmoid(beta (log pi_w/|w| - log pi_l/|l|) - gamma)   no          SimPO, arXiv 2405.14734, eq. 6
sdpo       log(1 + sum_l exp(beta (d_l - d_w)))                       yes         S-DPO, arXiv 2406.09215
plackett_  -mean_i log(exp z_i / sum_j exp z_j), j = i or ranked      yes         DPO, arXiv 2305.18290, appendix A.3
luce       below i by reward, z = beta d
listwise   cross-entropy of softmax(z) against softmax(reward / t)    yes         ListNet (Cao et al., 2007) as in LiPO,
                                                                                  arXiv 2402.01878
========== ========================================================== =========== ===========================================

e is ``label_smoothing``, a ``cpo_alpha``, gamma ``simpo_gamma``, t ``temperature``; names as in TRL where it has them. With
several negatives the pairwise types take the mean over them; sdpo and the two list types read them together. Session
log-probabilities are sums over codes.

Departures: ipo keeps sums where TRL averages over tokens; cpo adds the summed, not the mean, negative log-likelihood;
plackett_luce takes the mean over places instead of the sum, so that its scale does not grow with the beam, and candidates
of equal reward do not compete with each other.

Legend: B requests, N negatives, C candidates = 1 + N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import torch
import torch.nn.functional as F

from recsys.alignment.losses.config import PreferenceLossConfig
from recsys.contracts.errors import ConfigError, DataError

Need = Literal["reference", "length", "reward"]


@dataclass(frozen=True)
class PreferenceLogProbs:
    """Log-probabilities of preference pairs under the policy and, without gradient, under the reference.

    Attributes:
        chosen: ``[B]`` log-probability of the chosen session, summed over its codes.
        rejected: ``[B, N]`` of the rejected ones; anything where ``rejected_mask`` is false.
        ref_chosen: ``[B]`` under the reference, ``None`` for types that need none.
        ref_rejected: ``[B, N]`` under the reference.
        rejected_mask: Bool ``[B, N]``, negatives that exist; ``None``: all. Every row needs one.
        weights: ``[B]`` at least 0; the loss is the weighted mean. ``None``: equal weights.
        chosen_length: ``[B]`` number of codes, for simpo.
        rejected_length: ``[B, N]`` number of codes, for simpo.
        chosen_reward: ``[B]`` reward, for the list types and the curriculum.
        rejected_reward: ``[B, N]`` reward.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor | None = None
    ref_rejected: torch.Tensor | None = None
    rejected_mask: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    chosen_length: torch.Tensor | None = None
    rejected_length: torch.Tensor | None = None
    chosen_reward: torch.Tensor | None = None
    rejected_reward: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.chosen.ndim != 1 or self.rejected.ndim != 2:
            raise DataError(
                f"preference pairs: chosen has shape {tuple(self.chosen.shape)}, rejected {tuple(self.rejected.shape)}; "
                "expected [B] and [B, N]"
            )
        per_row, per_negative = self.chosen.shape, (len(self.chosen), self.rejected.shape[1])
        expected = dict.fromkeys(("ref_chosen", "weights", "chosen_length", "chosen_reward"), tuple(per_row))
        expected |= dict.fromkeys(
            ("rejected", "ref_rejected", "rejected_mask", "rejected_length", "rejected_reward"), per_negative
        )
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise DataError(f"preference pairs: {name} has shape {tuple(value.shape)}, expected {shape}")

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def present(self) -> torch.Tensor:
        """Bool ``[B, N]``, negatives that exist."""
        if self.rejected_mask is None:
            return torch.ones_like(self.rejected, dtype=torch.bool)
        return self.rejected_mask

    @property
    def chosen_log_ratio(self) -> torch.Tensor:
        """``d_w``, ``[B]``; plain log-probability without a reference."""
        chosen = _exact(self.chosen)
        return chosen if self.ref_chosen is None else chosen - _exact(self.ref_chosen.detach())

    @property
    def rejected_log_ratio(self) -> torch.Tensor:
        """``d_l``, ``[B, N]``, 0 where there is no negative; plain log-probability without a reference."""
        rejected = _exact(self.rejected)
        ratio = rejected if self.ref_rejected is None else rejected - _exact(self.ref_rejected.detach())
        return ratio.masked_fill(~self.present, 0.0)


@dataclass(frozen=True)
class PreferenceResult:
    """A preference loss and what to log beside it; all but ``loss`` and ``per_row`` carry no gradient.

    Attributes:
        loss: Weighted mean over requests.
        per_row: ``[B]`` unweighted loss.
        margin: Mean of ``d_w - d_l`` over all pairs, in nats.
        accuracy: Share of pairs with a positive margin.
        chosen_log_ratio: Mean of ``d_w``; below 0 the chosen sessions lose probability too, a known effect of dpo.
        rejected_log_ratio: Mean of ``d_l``.
    """

    loss: torch.Tensor
    per_row: torch.Tensor
    margin: torch.Tensor
    accuracy: torch.Tensor
    chosen_log_ratio: torch.Tensor
    rejected_log_ratio: torch.Tensor


def preference_loss(config: PreferenceLossConfig, pairs: PreferenceLogProbs) -> PreferenceResult:
    """Compute the configured loss over all pairs.

    Raises:
        ConfigError: The type needs a reference, lengths or rewards, and the pairs carry none.
        DataError: There is no pair, a row has no negative, or a number is not finite.

    Example:
        At the reference every log-ratio is 0, so the loss is -log sigmoid(0) = log 2.

        >>> logs, rejected = torch.tensor([-3.0]), torch.tensor([[-5.0]])
        >>> pairs = PreferenceLogProbs(logs, rejected, ref_chosen=logs, ref_rejected=rejected)
        >>> round(preference_loss(PreferenceLossConfig(loss_type="dpo"), pairs).loss.item(), 4)
        0.6931
    """
    kind = LOSSES[config.loss_type]
    _check(config.loss_type, kind, pairs)
    per_row = kind.per_row(pairs, config)
    weights = torch.ones_like(per_row) if pairs.weights is None else pairs.weights.to(per_row.dtype)
    # all weights 0 (a curriculum that admits none of these pairs): a loss of 0 that still has a graph
    loss = (per_row * weights).sum() / weights.sum().clamp(min=torch.finfo(per_row.dtype).tiny)
    with torch.no_grad():
        present = pairs.present
        chosen, rejected = pairs.chosen_log_ratio, pairs.rejected_log_ratio
        margin_BN = chosen[:, None] - rejected
        return PreferenceResult(
            loss=loss,
            per_row=per_row,
            margin=margin_BN[present].mean(),
            accuracy=(margin_BN[present] > 0).to(chosen.dtype).mean(),
            chosen_log_ratio=chosen.mean(),
            rejected_log_ratio=rejected[present].mean(),
        )


def dpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return ``-log sigmoid(h)`` per row, ``[B]``."""
    return _mean_over_negatives(-F.logsigmoid(config.beta * _margins(pairs)), pairs)


def ipo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the squared distance of the log-ratio margin from ``1 / (2 beta)``, ``[B]``."""
    return _mean_over_negatives((_margins(pairs) - 1 / (2 * config.beta)) ** 2, pairs)


def cdpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return DPO against labels that are wrong with probability ``label_smoothing``, ``[B]``."""
    h, smoothing = config.beta * _margins(pairs), config.label_smoothing
    return _mean_over_negatives(-(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h), pairs)


def rdpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the unbiased estimate of DPO on clean labels, ``[B]``; it is negative where a large margin is likely noise."""
    h, smoothing = config.beta * _margins(pairs), config.label_smoothing
    noisy = -(1 - smoothing) * F.logsigmoid(h) + smoothing * F.logsigmoid(-h)
    return _mean_over_negatives(noisy / (1 - 2 * smoothing), pairs)


def cpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the reference-free contrast plus ``cpo_alpha`` times the chosen negative log-likelihood, ``[B]``."""
    chosen = _exact(pairs.chosen)
    margin_BN = chosen[:, None] - _exact(pairs.rejected).masked_fill(~pairs.present, 0.0)
    return _mean_over_negatives(-F.logsigmoid(config.beta * margin_BN), pairs) - config.cpo_alpha * chosen


def simpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the reference-free contrast of mean log-probabilities per code with a margin, ``[B]``."""
    assert pairs.chosen_length is not None
    assert pairs.rejected_length is not None
    rejected_BN = _exact(pairs.rejected).masked_fill(~pairs.present, 0.0)
    mean_chosen = _exact(pairs.chosen) / pairs.chosen_length
    mean_rejected_BN = rejected_BN / pairs.rejected_length.masked_fill(~pairs.present, 1)
    h = config.beta * (mean_chosen[:, None] - mean_rejected_BN) - config.simpo_gamma
    return _mean_over_negatives(-F.logsigmoid(h), pairs)


def sdpo(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the softmax cross-entropy of the chosen one among itself and all negatives, ``[B]``; N = 1 is dpo."""
    return F.cross_entropy(
        config.beta * _candidate_log_ratios(pairs),
        pairs.chosen.new_zeros(len(pairs), dtype=torch.int64),
        reduction="none",
    )


def plackett_luce(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the negative log-likelihood of the reward order, mean over places, ``[B]``; two candidates are dpo.

    A row whose candidates all have one reward has no order: its loss and its gradient are 0.
    """
    logits_BC = config.beta * _candidate_log_ratios(pairs)
    rewards_BC, exists_BC = _candidate_rewards(pairs)
    below_BCC = (rewards_BC[:, None] < rewards_BC[:, :, None]) & exists_BC[:, None] & exists_BC[:, :, None]
    beaten_BCC = below_BCC | torch.eye(rewards_BC.shape[1], dtype=torch.bool, device=rewards_BC.device)
    # absent candidates hold -inf; they enter no sum but their own, which the mean leaves out
    finite_BC = logits_BC.masked_fill(~exists_BC, 0.0)
    pool_BC = finite_BC[:, None].masked_fill(~beaten_BCC, -torch.inf).logsumexp(-1)
    competes_BC = below_BCC.any(-1)
    return ((pool_BC - finite_BC) * competes_BC).sum(-1) / competes_BC.sum(-1).clamp(min=1)


def listwise(pairs: PreferenceLogProbs, config: PreferenceLossConfig) -> torch.Tensor:
    """Return the cross-entropy of the log-ratio softmax against the reward softmax, ``[B]``; at least its entropy."""
    rewards_BC, exists_BC = _candidate_rewards(pairs)
    target_BC = (rewards_BC / config.temperature).masked_fill(~exists_BC, -torch.inf).softmax(-1)
    log_share_BC = (config.beta * _candidate_log_ratios(pairs)).log_softmax(-1)
    return -(target_BC * log_share_BC.masked_fill(~exists_BC, 0.0)).sum(-1)


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss and what it asks for.

    Attributes:
        per_row: Pairs and configuration to ``[B]``.
        needs: What the pairs must carry beside the policy's log-probabilities.
    """

    per_row: Callable[[PreferenceLogProbs, PreferenceLossConfig], torch.Tensor]
    needs: frozenset[Need]


_REFERENCE: Final[frozenset[Need]] = frozenset({"reference"})
_RANKED: Final[frozenset[Need]] = frozenset({"reference", "reward"})
LOSSES: Final[Mapping[str, PreferenceLoss]] = MappingProxyType(
    {
        "dpo": PreferenceLoss(dpo, _REFERENCE),
        "ipo": PreferenceLoss(ipo, _REFERENCE),
        "cdpo": PreferenceLoss(cdpo, _REFERENCE),
        "rdpo": PreferenceLoss(rdpo, _REFERENCE),
        "cpo": PreferenceLoss(cpo, frozenset()),
        "simpo": PreferenceLoss(simpo, frozenset({"length"})),
        "sdpo": PreferenceLoss(sdpo, _REFERENCE),
        "plackett_luce": PreferenceLoss(plackett_luce, _RANKED),
        "listwise": PreferenceLoss(listwise, _RANKED),
    }
)
"""Every type by name. ``needs`` says which ones want a reference: all but cpo and simpo."""


def _check(name: str, kind: PreferenceLoss, pairs: PreferenceLogProbs) -> None:
    carried = {
        "reference": (pairs.ref_chosen, pairs.ref_rejected),
        "length": (pairs.chosen_length, pairs.rejected_length),
        "reward": (pairs.chosen_reward, pairs.rejected_reward),
    }
    for need in sorted(kind.needs):
        if any(value is None for value in carried[need]):
            raise ConfigError(
                f"preference loss '{name}' needs the {need} of chosen and rejected sessions, and these pairs carry none; "
                f"add it, or choose one of {', '.join(other for other, loss in LOSSES.items() if need not in loss.needs)}"
            )
    present = pairs.present
    if not len(pairs) or not present.any(1).all():
        row = int((~present.any(1)).nonzero()[0, 0]) if len(pairs) else 0
        raise DataError(
            f"preference loss '{name}': row {row} of {len(pairs)} has no rejected session; a pair needs one, leave such "
            "requests out when pairs are made"
        )
    read = [pairs.chosen, pairs.rejected[present]]
    if "reference" in kind.needs:
        read += [pairs.ref_chosen, pairs.ref_rejected[present]]  # type: ignore[index, list-item]
    if "reward" in kind.needs:
        read += [pairs.chosen_reward, pairs.rejected_reward[present]]  # type: ignore[index, list-item]
    if not all(torch.isfinite(values).all() for values in read):
        raise DataError(
            f"preference loss '{name}': a log-probability or reward of a pair is NaN or infinite; expected finite numbers, "
            "mask beams that do not exist with rejected_mask"
        )


def _margins(pairs: PreferenceLogProbs) -> torch.Tensor:
    """``d_w - d_l``, ``[B, N]``."""
    return pairs.chosen_log_ratio[:, None] - pairs.rejected_log_ratio


def _mean_over_negatives(losses_BN: torch.Tensor, pairs: PreferenceLogProbs) -> torch.Tensor:
    present = pairs.present
    return losses_BN.masked_fill(~present, 0.0).sum(1) / present.sum(1)


def _candidate_log_ratios(pairs: PreferenceLogProbs) -> torch.Tensor:
    """Log-ratios of the chosen one and the negatives, ``[B, C]``; ``-inf`` where there is no negative."""
    rejected_BN = pairs.rejected_log_ratio.masked_fill(~pairs.present, -torch.inf)
    return torch.cat([pairs.chosen_log_ratio[:, None], rejected_BN], dim=1)


def _candidate_rewards(pairs: PreferenceLogProbs) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards ``[B, C]``, chosen first, 0 where absent, and which candidates exist."""
    assert pairs.chosen_reward is not None
    assert pairs.rejected_reward is not None
    rewards = torch.cat([pairs.chosen_reward[:, None], pairs.rejected_reward], dim=1).detach()
    exists = torch.cat([torch.ones_like(pairs.present[:, :1]), pairs.present], dim=1)
    return _exact(rewards).masked_fill(~exists, 0.0), exists


def _exact(values: torch.Tensor) -> torch.Tensor:
    """At least float32: a log-ratio is a small difference of large numbers."""
    return values if values.dtype == torch.float64 else values.float()
