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

import copy
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
from recsys.alignment.rewards.functions import RolloutGroup, first_difference_mask, target_share
from recsys.alignment.rewards.names import RewardName
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.alignment.rounds.learner import Learner, supervised_loss
from recsys.alignment.rounds.loop import RoundWork
from recsys.model.generative_recommender import GenerativeRecommender

NEED_TARGET: Final[frozenset[RewardName]] = frozenset({"rule", "ranking"})
"""Rewards that are 0 for every candidate of a group without the target."""


@dataclass
class RankingRewardLearning:
    """ReRe's loop as a method of :mod:`recsys.alignment.rounds.loop`.

    Attributes:
        stream: Requests with their targets, by step.
        sampler: Generates the groups with the policy in training.
        reward_set: The rewards.
        seed: Of the sampling strategies.
        reference: What the divergence is measured from; no gradient reaches it. ``None`` with ``beta`` 0.
    """

    config: RereConfig
    learner: Learner
    stream: RequestStream
    sampler: RolloutSampler
    reward_set: RewardSet
    seed: int
    reference: GenerativeRecommender | None = field(init=False, default=None)

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
        if self.config.loss.beta > 0 and self.reference is None:
            self.reference = copy.deepcopy(self.learner.policy).eval().requires_grad_(False)
        self.load_state_dict({"reference": self.learner.policy.state_dict()} if state is None else state)

    def state_dict(self) -> dict[str, Any]:
        """The reference, where there is one."""
        return {"reference": None if self.reference is None else self.reference.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the reference back."""
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])

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
        reward = self.reward_set.reward
        parts = reward.components(group)
        total = reward.total(parts, group)
        mask = group.valid if total.ndim == 2 else first_difference_mask(group)
        signal = informative_groups(total, mask)
        num_groups = signal.num_groups + num_dropped
        work.curve.count(groups=num_groups, groups_without_signal=signal.num_zero_signal + num_dropped)
        work.curve.count(groups_dropped_early=num_dropped)
        work.curve.count(groups_with_target=int((target_share(group) > 0).any(1).sum()))
        generated = signal.num_groups / num_groups  # every reward of a dropped group is 0
        figures = {f"reward_{name}": generated * _mean_of_valid(value, group) for name, value in parts.items()}
        figures |= {"reward": generated * _mean_of_valid(total, group)}
        if len(group.items):
            figures["distinct_share"] = distinct_share(group)

        loss = config.loss.gentler(work.smaller_steps.loss)
        weights_B = signal.weights(config.zero_signal_weight)
        used = weights_B > 0
        share = float(weights_B.sum()) / num_groups if config.group_average == "all" else 1.0
        part = _take_groups(group, used)
        advantages = advantages_of(loss, total, mask)[used]
        self._updates(
            work,
            rows,
            part,
            advantages=advantages,
            weights_B=weights_B[used],
            share=share,
            loss_config=loss,
            figures=figures,
        )

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
        filtered = self.config.zero_signal_weight == 0
        return target_alone and filtered and self.sampler.finds_targets(self.learner.policy)

    def _updates(
        self,
        work: RoundWork,
        rows: npt.NDArray[np.int64],
        group: RolloutGroup,
        *,
        advantages: torch.Tensor,
        weights_B: torch.Tensor,
        share: float,
        loss_config: PolicyGradientConfig,
        figures: dict[str, float],
    ) -> None:
        """Update on groups that weigh something; without any, on the next-token loss alone if it is joined.

        Args:
            share: Of these groups among all that the loss is divided by.
        """
        config = self.config
        has_groups = len(group.items) > 0
        if not has_groups:
            work.curve.count(steps_without_signal=1)
        reference = self._reference_log_probs(group) if has_groups else None
        old: torch.Tensor | None = None
        for _ in range(config.num_iterations):
            terms: list[torch.Tensor] = []
            if has_groups:
                assert group.history is not None
                with self.learner.mixed():
                    codes = candidate_log_probs(self.learner.policy, group.history, group.items).codes.flatten(2)
                result = policy_gradient_loss(
                    loss_config,
                    codes,
                    advantages,
                    group.code_mask,
                    old_log_probs_BGC=old,
                    ref_log_probs_BGC=reference,
                    group_weights_B=weights_B,
                )
                if old is None and config.num_iterations > 1:
                    old = codes.detach()  # the policy that generated; its ratio is exactly 1 in the first update
                terms.append(work.smaller_steps.weight * share * result.loss)
                figures |= {"kl": float(result.kl), "clip_share": float(result.clip_share)}
                figures |= {"ratio_max": float(result.max_ratio)}
            if config.supervised.weight > 0:
                batch = self.stream.collate(rows).to(self.learner.device)
                with self.learner.mixed():
                    supervised = supervised_loss(self.learner.policy, batch, config.supervised)
                terms.append(config.supervised.weight * supervised)
                figures["supervised"] = supervised.item()
            step, rate = self.learner.step, self.learner.learning_rate
            if terms:
                figures |= {"gradient_norm": self.learner.update(torch.stack(terms).sum()), "learning_rate": rate}
            work.curve.add(step, **figures)

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
    return float(values[mask].mean()) if len(values) else 0.0


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
