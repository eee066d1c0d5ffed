"""What a policy is worth before and after every round, measured on one fixed sample of validation rows.

Legend: N validation rows, G candidates per row, M items per session, L levels, K codes, T towers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.config import GuardConfig, RolloutConfig
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.disliked_items import NOTHING, DislikedItems, with_last_item
from recsys.alignment.rollouts.log_probs import candidate_log_probs, level_distributions
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.alignment.rounds.measurement import (
    COVERAGE,
    COVERAGE_AT,
    HELD_OUT_REWARD,
    HR1,
    KL_TO_START,
    REWARD,
    STEERED,
    Measurement,
    Rows,
    recall_name,
)
from recsys.alignment.rounds.soft_recall import soft_recall
from recsys.alignment.sample_config import DislikesConfig, ObjectiveConfig
from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.datamodule import validation_rows
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import coverage_by_row, row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.weights import frozen_copy
from recsys.reward.scoring import SessionScorer, objective_of
from recsys.runtime import Progress
from recsys.semantic_ids.versions import SemanticIds

_ROWS_PER_PASS: Final = 512
_TINY: Final = 1e-9
_WEIGHTS_SEED: Final = 13


class PolicyEvaluator:
    """Measures policies on one fixed sample of validation rows.

    Rewards are given as levels that mean the same in every round. A learned reward is, per tower, in standard deviations
    above the start: the mean and deviation of the *start's* candidates are kept and every later round is held against
    them; then the towers are weighed. Other rewards enter as they are. ``reward`` is what is trained on,
    ``held_out_reward`` the held-out model alone; both are means over G generated candidates, ``*_best`` of the best one.

    A policy that is steered is measured twice: without weights, as a request that names none is answered, and under weights
    that are drawn once per row, as in training.

    Args:
        decode: The beam is as wide as it says, or as the largest cut-off; it is not guided.
        reward_set: The rewards that are trained on.
        held_out_reward_model: Held-out model; ``None`` where no reward model is used.
        objective: How weights of the reward's towers are drawn; ``None``: the policy is not steered.
        dislikes: Measure ``likes_over_dislikes``: of the rows whose user disliked something in the validation split, the
            share in which what the user took is more probable than the same session with that item in its last place.

    Raises:
        ConfigError: ``recall_at`` is not below the number of items.
        DataError: The validation split is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        semantic_ids: SemanticIds,
        start_policy: GenerativeRecommender,
        config: GuardConfig,
        decode: DecodeConfig,
        reward_set: RewardSet,
        held_out_reward_model: SessionScorer | None,
        seed: int,
        objective: ObjectiveConfig | None = None,
        dislikes: DislikesConfig | None = None,
    ) -> None:
        num_items = dataset.spec.num_items
        if config.recall_at >= num_items:
            raise ConfigError(
                f"align.guard.recall_at is {config.recall_at}, the catalogue holds {num_items} items: every list of that "
                "length holds all of them; choose less"
            )
        self.config, self.seed = config, seed
        self.reward_set, self.held_out_reward_model = reward_set, held_out_reward_model
        self.ks = sorted({1, *(k for k in config.ks if k < num_items)})
        self.num_items = num_items
        sample = validation_rows(dataset, config.users, seed)
        self.targets = sample.targets
        self.requests = Requests.from_targets(dataset, sample.targets)
        self._hated_NM = None if dislikes is None else _with_disliked(dataset, self.requests, dislikes, seed)
        self._steered = None if objective is None else _with_weights(self.requests, start_policy, objective, seed)
        self.semantic_ids = semantic_ids
        # the first-stage order is the policy's own, whatever guides the search that is served: the soft recall holds
        # log-probabilities of targets against those of the list; the dense order is measured beside it
        own = {"beam_width": max(decode.beam_width, *self.ks), "rescore": "dense", "guidance": 0.0}
        self._decode = decode.model_copy(update=own)
        self._rollouts = RolloutSampler(
            semantic_ids,
            RolloutConfig(num_generations=config.num_generations, exclude_seen=config.exclude_seen),
            start_policy.codes.weight.device,
        )
        self._start_policy = frozen_copy(start_policy)

    @property
    def users(self) -> npt.NDArray[np.int32]:
        """Whose row it is, ``[N]``: the unit of the bootstrap."""
        return self.targets.user_index

    def measure(self, policy: GenerativeRecommender, start: Measurement | None, progress: Progress) -> Measurement:
        """Measure a policy.

        Args:
            start: What the start measured, for the scale of learned rewards; ``None``: this is the start.
        """
        values, rows = self._rankings(policy, progress)
        values |= self._distributions(policy, self.requests)
        if self._hated_NM is not None:
            values["likes_over_dislikes"] = self._likes_over_dislikes(policy, self._hated_NM)
        before = {} if start is None else start.values
        parts = self._rewards(policy, self.requests, before, progress)
        if self._steered is not None:
            parts += self._rewards(policy, self._steered, before, progress, STEERED)
            values |= self._distributions(policy, self._steered, STEERED)
        for part_values, part_rows in parts:
            values |= part_values
            rows |= part_rows
        return Measurement(values, rows)

    def _rankings(self, policy: GenerativeRecommender, progress: Progress) -> tuple[dict[str, float], Rows]:
        recommender = Recommender(policy, self.semantic_ids, self._decode)
        beam, served = recommender.both_orders(
            self.requests.histories, self.ks[-1], exclude_seen=self.config.exclude_seen, progress=progress
        )
        values: dict[str, float] = {}
        rows: Rows = {}
        for name, ranked in (("beam", beam), ("served", served)):
            metrics = row_metrics(ranked, self.targets, self.ks)
            kept = {f"{name}_{m}": v for m, v in metrics.items() if not m.startswith("mrr")}
            values |= {metric: float(v.mean()) for metric, v in kept.items()}
            if name == "beam":
                rows |= {m: kept[m] for m in (HR1, *map(recall_name, self.config.recall_depths)) if m in kept}
        log_prob_NM = self._target_log_probs(policy)
        for k in self.config.recall_depths:
            if k in self.ks:
                rows[recall_name(k, soft=True)] = soft_recall(log_prob_NM, beam.scores, k)
                values[recall_name(k, soft=True)] = float(rows[recall_name(k, soft=True)].mean())
        rows[COVERAGE] = coverage_by_row(beam, COVERAGE_AT, self.num_items)
        values[COVERAGE] = float(rows[COVERAGE].mean())
        return values, rows

    @torch.no_grad()
    def _target_log_probs(self, policy: GenerativeRecommender) -> npt.NDArray[np.float64]:
        """Log-probability of every target as the next item, ``[N, M]``; NaN for none, -inf for one that may not be shown."""
        targets_NM = self.requests.targets_NM
        found_NM = np.full(targets_NM.shape, np.nan)
        for rows in self.requests.blocks(_ROWS_PER_PASS, policy.spec.model.max_history):
            history = collate_histories(self.requests.histories.take(rows), policy.spec.model.max_history)
            items_BM = targets_NM[rows]
            each = candidate_log_probs(
                policy, history.to(policy.codes.weight.device), items_BM[..., None].to(policy.codes.weight.device)
            )
            found_NM[rows] = each.sessions.masked_fill(~each.mask.any(-1).any(-1), torch.nan).double().cpu().numpy()
        if self.config.exclude_seen:
            seen_NM = [
                np.isin(asked, seen)
                for asked, seen in zip(targets_NM.numpy(), self.requests.histories.seen_items(), strict=True)
            ]
            found_NM[np.stack(seen_NM) & ~np.isnan(found_NM)] = -np.inf
        return found_NM

    def _distributions(self, policy: GenerativeRecommender, requests: Requests, ending: str = "") -> dict[str, float]:
        """Softmax entropy per level and divergence from the start, along the prefixes of what users really took next.

        The divergence is given over all items and, for sessions, at each place of them: a policy that is ruined at one
        place alone shows there.
        """
        places = requests.targets_NM.shape[1]
        entropy_L, kl_M, count_M = np.zeros(policy.num_levels), np.zeros(places), np.zeros(places)
        for now, before, asked_BM in self._along_targets(policy, requests):
            count_M += asked_BM.sum(0).cpu().numpy()
            for level, (log_p, log_q) in enumerate(zip(now, before, strict=True)):
                p = log_p.exp()
                entropy_L[level] -= float((p * log_p).sum(-1)[asked_BM].double().sum())
                each_BM = (p * (log_p - log_q)).sum(-1).masked_fill(~asked_BM, 0.0)
                kl_M += each_BM.double().sum(0).cpu().numpy()
        items = count_M.sum()
        values = {f"entropy_level_{level + 1}{ending}": float(e) / items for level, e in enumerate(entropy_L)}
        values[KL_TO_START + ending] = float(kl_M.sum() / items)
        if places > 1:
            values |= {f"{KL_TO_START}{ending}_item_{m + 1}": kl_M[m] / count_M[m] for m in range(places) if count_M[m]}
        return {name: float(value) for name, value in values.items()}

    @torch.no_grad()
    def _likes_over_dislikes(self, policy: GenerativeRecommender, hated_NM: torch.Tensor) -> float:
        """Share of the rows with a dislike in which the session that was taken is more probable."""
        device, max_history = policy.codes.weight.device, policy.spec.model.max_history
        asked = (hated_NM != self.requests.targets_NM).any(1).nonzero()[:, 0].numpy()
        preferred = 0
        for begin in range(0, len(asked), _ROWS_PER_PASS):
            rows = asked[begin : begin + _ROWS_PER_PASS]
            history = collate_histories(self.requests.histories.take(rows), max_history).to(device)
            both = torch.stack([self.requests.targets_NM[rows], hated_NM[rows]], dim=1).to(device)
            liked_B, hated_B = candidate_log_probs(policy, history, both).sessions.unbind(1)
            preferred += int((liked_B > hated_B).sum())
        return preferred / len(asked)

    @torch.no_grad()
    def _along_targets(
        self, policy: GenerativeRecommender, requests: Requests
    ) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]]:
        """Per block of rows: log-probabilities ``[B, M, K]`` of every level now and at the start, and which items exist."""
        device = policy.codes.weight.device
        for block in requests.blocks(_ROWS_PER_PASS, policy.spec.model.max_history):
            part = requests.take(block)
            history = collate_histories(part.histories, policy.spec.model.max_history).to(device)
            items_B1M = part.targets_NM[:, None].to(device) + 1
            batch = TrainingBatch(history, items_B1M, history.lengths_B[:, None].contiguous())
            now, before = (
                [level[:, 0] for level in level_distributions(model, batch)] for model in (policy, self._start_policy)
            )
            yield now, before, items_B1M[:, 0] > 0

    def _rewards(
        self,
        policy: GenerativeRecommender,
        requests: Requests,
        start: Mapping[str, float],
        progress: Progress,
        ending: str = "",
    ) -> list[tuple[dict[str, float], Rows]]:
        """Reward of generated candidates, by what is trained on and by the held-out reward model.

        Args:
            start: What the start measured; empty for the start itself.
            ending: Of the names of all figures.
        """
        total = np.zeros((len(requests), self._rollouts.config.num_generations))
        generator = torch.Generator().manual_seed(self.seed)
        rules = self.reward_set.without_learned()
        blocks = list(requests.blocks(self._rollouts.requests_per_batch, policy.spec.model.max_history))
        items = torch.full((*total.shape, policy.spec.dataset.session_length), -1)
        for block in progress.track(blocks, "rewards", len(blocks)):
            part = requests.take(block)
            group = self._rollouts.roll_out(policy, part, generator)
            items[torch.from_numpy(block)] = group.items.cpu()
            if rules is not None:
                value = rules.reward(group)
                total[block] = (value.mean(-1) if value.ndim == 3 else value).cpu().numpy()
        exists = (items >= 0).any(-1).numpy()
        measured: list[tuple[dict[str, float], Rows]] = []
        values: dict[str, float] = {}
        if self.reward_set.learned is not None and "learned" in self.reward_set.weights:
            level, values = _level(self.reward_set.learned, REWARD + ending, requests.histories, items, start)
            total += self.reward_set.weights["learned"] * level
        measured.append(_summary(REWARD + ending, total, exists, values))
        if self.held_out_reward_model is not None:
            name = HELD_OUT_REWARD + ending
            level, values = _level(self.held_out_reward_model, name, requests.histories, items, start)
            measured.append(_summary(name, level, exists, values))
        return measured


def _level(
    scorer: SessionScorer, name: str, histories: Histories, items_NGM: torch.Tensor, start: Mapping[str, float]
) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
    """Weighted sum of towers in standard deviations above the start, ``[N, G]``, and the towers' own means.

    Histories that carry objective weights are weighed by their own.
    """
    towers = scorer.values(histories, items_NGM).double().numpy()
    own = histories.objective
    weights_NT = scorer.weights.numpy()[None] if own is None else objective_of(scorer, own)
    exists_NG = (items_NGM >= 0).any(-1).numpy()
    level = np.zeros(exists_NG.shape)
    values: dict[str, float] = {}
    for place, tower in enumerate(scorer.towers):
        column = towers[..., place]
        here = column[exists_NG]
        mean = start.get(f"{name}_{tower}", float(here.mean()))
        deviation = start.get(f"{name}_{tower}_deviation", float(here.std()))
        values |= {f"{name}_{tower}": float(here.mean()), f"{name}_{tower}_deviation": float(here.std())}
        level += weights_NT[:, [place]] * np.where(exists_NG, (column - mean) / max(deviation, _TINY), 0.0)
    return level, values


def _with_weights(requests: Requests, policy: GenerativeRecommender, config: ObjectiveConfig, seed: int) -> Requests:
    """The same requests, each with objective weights drawn as in training; the same ones in every round."""
    generator = np.random.default_rng([seed, _WEIGHTS_SEED])
    drawn = generator.dirichlet(np.full(policy.spec.model.num_objectives, config.concentration), len(requests))
    return replace(requests, histories=requests.histories.with_objective(drawn))


def _with_disliked(dataset: Dataset, requests: Requests, config: DislikesConfig, seed: int) -> torch.Tensor:
    """Targets with a disliked item in their last place, ``[N, M]``; unchanged for users who disliked nothing.

    Raises:
        DataError: No validation row's user disliked anything in the validation split.
    """
    disliked = DislikedItems.from_events(dataset, config.signals, VALID)
    drawn = disliked.draw(requests.histories.user_index, np.random.default_rng([seed, _WEIGHTS_SEED]))
    rows = np.flatnonzero(drawn != NOTHING)
    if not len(rows):
        raise DataError(
            f"dislikes: none of the {len(requests)} validation rows is of a user who disliked something in the validation "
            "split, so the guard could not try the result; raise align.guard.users, or leave align.ipa.dislikes out"
        )
    changed = requests.targets_NM.clone()
    changed[rows] = with_last_item(changed[rows], torch.from_numpy(drawn[rows]))
    return changed


def _summary(
    name: str, level_NG: npt.NDArray[np.float64], exists_NG: npt.NDArray[np.bool_], values: dict[str, float]
) -> tuple[dict[str, float], Rows]:
    count = exists_NG.sum(1)
    per_row = np.where(exists_NG, level_NG, 0.0).sum(1) / np.maximum(count, 1)
    best = np.where(count > 0, np.where(exists_NG, level_NG, -np.inf).max(1), 0.0)
    return {name: float(per_row.mean()), f"{name}_best": float(best.mean()), **values}, {name: per_row}
