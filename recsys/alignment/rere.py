"""ReRe: policy gradient on constrained roll-outs with rule and ranking rewards.

A step rolls the current policy out once per request (one beam of G by default), evaluates the groups, turns rewards into
advantages inside each group, and updates once, or several times against the clipped ratio. Groups whose rewards are all
equal give no gradient; they are filtered or down-weighted, and counted. Where rewards know nothing but the target, a group
without it is such a group, and its request is dropped while it is generated, as soon as its beam has lost the target
(:mod:`recsys.alignment.rollouts.lost_targets`). The reference of the divergence is the start, moved towards the policy now
and then.

Source: ReRe (arXiv 2510.12211) and its public code (`spec` of losses and rewards:
:mod:`recsys.alignment.losses.policy_gradient`, :mod:`recsys.alignment.rewards.functions`); reference synchronisation as
in TRL. Departures: targets travel with their requests; filtered groups are left out of the gradient pass, but not out of
the number of groups that the loss is divided by, so an update is that of ReRe but for the filtered groups' pull to the
reference (``group_average`` has another form).

Legend: B requests, G candidates, M items per session, L levels, C = M * L codes of a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.config import RereConfig
from recsys.alignment.losses.advantages import informative_groups
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import advantages_of, policy_gradient_loss
from recsys.alignment.recall.constraint import RecallConstraint
from recsys.alignment.recall.lambda_loss import lambda_loss
from recsys.alignment.recall.prefix_anchor import prefix_anchor
from recsys.alignment.recall.sibling_advantages import sibling_advantages
from recsys.alignment.rewards.functions import RolloutGroup, first_difference_mask, target_share
from recsys.alignment.rewards.names import RewardName
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.narrowing import narrow, repaired
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.alignment.rounds.learner import Learner, TargetPass, supervised_loss
from recsys.alignment.rounds.loop import RoundWork
from recsys.contracts.errors import ConfigError
from recsys.data.batch import TrainingBatch
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.weights import frozen_copy, load_moving_state, moving_state

NEED_TARGET: Final[frozenset[RewardName]] = frozenset({"rule", "ranking"})
"""Rewards that are 0 for every candidate of a group without the target."""


@dataclass(frozen=True)
class _Signal:
    """What the groups of a step teach.

    Attributes:
        group: Those that weigh something.
        rewards: ``[B, G]`` or per code ``[B, G, C]``.
        weights_B: Weight of each group.
        share: Of these groups among all that the loss is divided by.
    """

    group: RolloutGroup
    rewards: torch.Tensor
    weights_B: torch.Tensor
    share: float


@dataclass
class RankingRewardLearning:
    """ReRe's loop as a method of :mod:`recsys.alignment.rounds.loop`.

    Attributes:
        stream: Requests with their targets, by step.
        sampler: Generates the groups with the policy in training.
        reward_set: The rewards.
        seed: Of the sampling strategies.
        reference: What the divergence is measured from, and the recall constraint; no gradient reaches it. ``None`` where
            neither asks for it.
        constraint: The recall constraint with its dual variable; ``None``: off.
    """

    config: RereConfig
    learner: Learner
    stream: RequestStream
    sampler: RolloutSampler
    reward_set: RewardSet
    seed: int
    reference: GenerativeRecommender | None = field(init=False, default=None)
    constraint: RecallConstraint | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        recall, length = self.config.recall, self.learner.policy.spec.dataset.session_length
        if recall.sibling_share > 0 and length > 1:
            raise ConfigError(
                f"align.rere.recall.sibling_share is {recall.sibling_share:g}, and sessions of {length} items are no tree "
                "of single items; set it to 0, or train on features.task: next_item"
            )
        if recall.constraint is not None:
            self.constraint = RecallConstraint(recall.constraint)

    @property
    def num_rounds(self) -> int:
        """Rounds at most."""
        return self.config.rounds

    @property
    def steps_per_round(self) -> int:
        """Roll-out batches of one round."""
        return self.config.steps_per_round

    def begin(self, state: dict[str, Any] | None) -> None:
        """Take the reference of the round before, or the policy itself at the start."""
        wanted = self.config.loss.beta > 0 or self.constraint is not None
        if wanted and self.reference is None:
            self.reference = frozen_copy(self.learner.policy)
        start = {"reference": moving_state(self.learner.policy), "dual": 0.0}
        self.load_state_dict(start if state is None else state)

    def state_dict(self) -> dict[str, Any]:
        """What moves of the reference, and the dual variable, where there are any."""
        return {
            "reference": None if self.reference is None else moving_state(self.reference, self.learner.policy),
            "dual": 0.0 if self.constraint is None else self.constraint.dual,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put reference and dual variable back."""
        if self.reference is not None:
            load_moving_state(self.reference, state["reference"], self.learner.policy)
        if self.constraint is not None:
            self.constraint.dual = float(state["dual"])

    def train(self, work: RoundWork) -> dict[str, Any]:
        """Roll out, score, update, step by step."""
        first = (work.number - 1) * self.steps_per_round
        steps = range(work.first_step, self.steps_per_round)
        for step in work.progress.track(steps, f"round {work.number}", len(steps)):
            rows = self.stream.rows(first + step)
            before = self.learner.step
            self._step(work, rows, seeded(self.seed, work.number, step))
            self._sync_reference(before)
            work.checkpoint(step + 1)
        groups = work.curve.counts.get("groups", 0)
        return {"zero_signal_share": work.curve.counts.get("groups_without_signal", 0) / max(groups, 1)}

    def keep(self, folder: Path, work: RoundWork) -> None:
        """Groups are used once and not kept."""

    def _step(self, work: RoundWork, rows: npt.NDArray[np.int64], generator: torch.Generator) -> None:
        """One batch of requests: groups, rewards, advantages, ``num_iterations`` updates."""
        config = self.config
        requests = self.stream.requests(rows)
        group, num_dropped = self._groups(requests, generator)
        group, certainty_B = self._repaired(work, group)
        reward = self.reward_set.reward
        parts = reward.components(group)
        total = reward.total(parts, group)
        signal = informative_groups(total, _compared(group, total))
        num_groups = signal.num_groups + num_dropped
        work.curve.count(groups=num_groups, groups_without_signal=signal.num_zero_signal + num_dropped)
        work.curve.count(groups_dropped_early=num_dropped)
        work.curve.count(groups_with_target=int((target_share(group) > 0).any(1).sum()))
        generated = signal.num_groups / num_groups  # every reward of a dropped group is 0
        figures = {f"reward_{name}": generated * _mean_of_valid(value, group) for name, value in parts.items()}
        figures |= {"reward": generated * _mean_of_valid(total, group)}
        if len(group.items):
            figures["distinct_share"] = distinct_share(group)

        # a group without candidates, of a user who may not be shown anything, has nothing to be weighed
        weights_B = signal.weights(config.zero_signal_weight) * certainty_B * group.valid.any(1)
        used = weights_B > 0
        part, total = _take_groups(group, used), total[used]
        if config.recall.narrowing is not None and len(part.items):
            part, total = narrow(part, total, config.recall.narrowing.negatives)
        self._updates(
            work,
            rows,
            _Signal(
                group=part,
                rewards=total,
                weights_B=weights_B[used],
                share=float(weights_B.sum()) / num_groups if config.group_average == "all" else 1.0,
            ),
            loss_config=config.loss.gentler(work.smaller_steps.loss),
            figures=figures,
        )

    def _repaired(self, work: RoundWork, group: RolloutGroup) -> tuple[RolloutGroup, torch.Tensor]:
        """The groups, those without their target repaired if so configured, and the weight of each, ``[B]``."""
        repair, everything = self.config.recall.repair, torch.ones(len(group.items), device=group.items.device)
        if repair is None or not len(group.items):
            return group, everything
        with self.learner.mixed():
            group, repaired_B = repaired(self.learner.policy, group, repair.reach)
        work.curve.count(groups_repaired=int(repaired_B.sum()))
        return group, everything.masked_fill(repaired_B, repair.weight)

    def _groups(self, requests: Requests, generator: torch.Generator) -> tuple[RolloutGroup, int]:
        """Groups of the requests, and how many requests were dropped because no group of theirs could give a signal."""
        policy = self.learner.policy
        if not self.drops_early:
            return self.sampler.roll_out(policy, requests, generator), 0
        group, rows = self.sampler.roll_out_where_found(policy, requests)
        return group, len(requests) - len(rows)

    @property
    def drops_early(self) -> bool:
        """Whether a group without the target has no signal, and a signal is asked of every group."""
        target_alone = set(self.config.rewards) <= NEED_TARGET
        filtered = self.config.zero_signal_weight == 0 and self.config.recall.repair is None
        return target_alone and filtered and self.sampler.finds_targets(self.learner.policy)

    def _updates(
        self,
        work: RoundWork,
        rows: npt.NDArray[np.int64],
        signal: _Signal,
        *,
        loss_config: PolicyGradientConfig,
        figures: dict[str, float],
    ) -> None:
        """Update on groups that weigh something; without any, on the targets' losses alone if there are such."""
        has_groups = len(signal.group.items) > 0
        if not has_groups:
            work.curve.count(steps_without_signal=1)
        reference = self._reference_log_probs(signal.group) if has_groups and loss_config.beta > 0 else None
        batch = self._targets(rows)
        old: torch.Tensor | None = None
        for _ in range(self.config.num_iterations):
            terms: list[torch.Tensor] = []
            if has_groups:
                loss, codes = self._group_loss(signal, loss_config, old, reference, figures)
                if old is None and self.config.num_iterations > 1:
                    old = codes.detach()  # the policy that generated; its ratio is exactly 1 in the first update
                terms.append(work.smaller_steps.weight * signal.share * loss)
            if batch is not None:
                terms += self._target_losses(batch, figures)
            step, rate = self.learner.step, self.learner.learning_rate
            if terms:
                figures |= {"gradient_norm": self.learner.update(torch.stack(terms).sum()), "learning_rate": rate}
            work.curve.add(step, **figures)

    def _group_loss(
        self,
        signal: _Signal,
        loss_config: PolicyGradientConfig,
        old: torch.Tensor | None,
        reference: torch.Tensor | None,
        figures: dict[str, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the groups, and the log-probabilities of their codes, ``[B, G, C]``."""
        recall, group = self.config.recall, signal.group
        assert group.history is not None
        with self.learner.mixed():
            scored = candidate_log_probs(self.learner.policy, group.history, group.items)
        codes = scored.codes.flatten(2)
        loss = codes.new_zeros(())
        if recall.policy_gradient_weight > 0:
            result = policy_gradient_loss(
                loss_config,
                codes,
                _advantages(loss_config, signal, recall.sibling_share),
                group.code_mask,
                old_log_probs_BGC=old,
                ref_log_probs_BGC=reference,
                group_weights_B=signal.weights_B,
            )
            loss = recall.policy_gradient_weight * result.loss
            figures |= {"kl": float(result.kl), "clip_share": float(result.clip_share)}
            figures |= {"ratio_max": float(result.max_ratio)}
        if recall.lambda_loss is not None:
            ranking_B = lambda_loss(scored.sessions, signal.rewards, group.valid, recall.lambda_loss.sigma)
            ranking = (ranking_B * signal.weights_B).sum() / signal.weights_B.sum()
            loss = loss + recall.lambda_loss.weight * ranking
            figures["lambda_loss"] = float(ranking.detach())
        return loss, codes

    def _targets(self, rows: npt.NDArray[np.int64]) -> TrainingBatch | None:
        """What the users of a step took next, if a loss asks for it."""
        recall = self.config.recall
        if self.config.supervised.weight == 0 and recall.anchor is None and recall.constraint is None:
            return None
        return self.stream.collate(rows).to(self.learner.device)

    def _target_losses(self, batch: TrainingBatch, figures: dict[str, float]) -> list[torch.Tensor]:
        """Losses of what users took next, of all requests of a step and from one pass."""
        supervised, anchor = self.config.supervised, self.config.recall.anchor
        terms: list[torch.Tensor] = []
        with self.learner.mixed():
            targets = TargetPass.of(self.learner.policy, batch)
            if supervised.weight > 0:
                loss = supervised_loss(self.learner.policy, targets, supervised)
                terms.append(supervised.weight * loss)
                figures["supervised"] = loss.item()
        if anchor is not None:
            loss = prefix_anchor(targets.code_losses_NL, anchor.eta)
            terms.append(anchor.weight * loss)
            figures["prefix_anchor"] = loss.item()
        if self.constraint is not None:
            assert self.reference is not None
            with torch.no_grad(), self.learner.mixed():
                start_NL = TargetPass.of(self.reference, batch).code_losses_NL
            figures["recall_dual"] = self.constraint.dual
            price, lost = self.constraint.loss(-targets.code_losses_NL.sum(1), -start_NL.sum(1))
            terms.append(price)
            figures["target_log_prob_lost"] = lost
        return terms

    @torch.no_grad()
    def _reference_log_probs(self, group: RolloutGroup) -> torch.Tensor | None:
        if self.reference is None:
            return None
        assert group.history is not None
        with self.learner.mixed():
            return candidate_log_probs(self.reference, group.history, group.items).codes.flatten(2)

    @torch.no_grad()
    def _sync_reference(self, updates_before: int) -> None:
        """Move the reference towards the policy whenever another ``reference_sync_every`` updates are done."""
        every = self.config.reference_sync_every
        if self.reference is None or every is None or self.learner.step // every == updates_before // every:
            return
        for own, current in zip(self.reference.parameters(), self.learner.policy.parameters(), strict=True):
            own.lerp_(current, self.config.reference_mixup)


def _compared(group: RolloutGroup, rewards: torch.Tensor) -> torch.Tensor:
    """Which rewards are held against each other: of candidates, or of codes up to the first wrong one."""
    return group.valid if rewards.ndim == 2 else first_difference_mask(group)


def _advantages(config: PolicyGradientConfig, signal: _Signal, sibling_share: float) -> torch.Tensor:
    """Advantages in the group and among siblings, ``[B, G]`` or ``[B, G, C]``."""
    group = signal.group
    own = advantages_of(config, signal.rewards, _compared(group, signal.rewards))
    if sibling_share == 0:
        return own
    siblings = sibling_advantages(
        signal.rewards, group.codes[:, :, 0], group.valid, scale=config.scale, eps=config.advantage_eps
    )
    # a candidate's codes are averaged, and a node's advantage is meant to count once
    levels = siblings.shape[-1]
    return (1 - sibling_share) * own[..., None] + sibling_share * levels * siblings


def distinct_share(group: RolloutGroup) -> float:
    """Different candidates per place of a group, mean over groups; 1 for a beam.

    Example:
        >>> items = torch.tensor([[[3], [3], [5], [-1]]])
        >>> codes, nothing = torch.zeros(1, 4, 1, 2, dtype=torch.int64), torch.zeros(1, 1, 2, dtype=torch.int64)
        >>> distinct_share(RolloutGroup(items, torch.tensor([[5]]), codes, nothing, torch.zeros(1, 4)))
        0.5
    """
    same_BGG = (group.items[:, :, None] == group.items[:, None]).all(-1)
    repeats_BG = same_BGG.tril(-1).any(-1)
    return float((group.valid & ~repeats_BG).float().mean())


def _mean_of_valid(values: torch.Tensor, group: RolloutGroup) -> float:
    mask = group.valid if values.ndim == 2 else group.code_mask
    found = values[mask]
    return float(found.mean()) if len(found) else 0.0


def _take_groups(group: RolloutGroup, used_B: torch.Tensor) -> RolloutGroup:
    """Groups of some of the requests."""
    history = group.history
    assert history is not None
    kept = history.take(used_B)
    return RolloutGroup(
        items=group.items[used_B],
        target=group.target[used_B],
        codes=group.codes[used_B],
        target_codes=group.target_codes[used_B],
        scores=group.scores[used_B],
        history=kept,
    )
