"""Align a policy: from configuration to the kept round's policy and its report; resumable after a kill at any instant.

Reads a trained policy, prepared data and, where the rewards ask for it, a reward model and a held-out one; writes into
the work folder ``model/`` (the kept policy), ``rounds/NN`` (every round: policy, pairs, measurements, curve, manifest),
``curves.parquet`` and ``alignment_report.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recsys.alignment.config import AlignConfig, IpaConfig, ObjectiveConfig
from recsys.alignment.ipa import IterativePreferenceAlignment
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner
from recsys.alignment.rounds.loop import AlignmentRun, Method, RoundLoop
from recsys.alignment.rounds.policy_evaluator import PolicyEvaluator
from recsys.alignment.rounds.report import write_alignment_report
from recsys.alignment.rounds.store import MODEL_NAME, RoundStore
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import save_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.scoring import DiverseScorer, SessionScorer
from recsys.runtime import Progress, seed_everything
from recsys.semantic_ids.versions import SemanticIds


def align_policy(
    prepared: Dataset,
    semantic_ids: SemanticIds,
    policy: GenerativeRecommender,
    config: AlignConfig,
    decode: DecodeConfig,
    work_dir: Path,
    seed: int,
    progress: Progress,
    *,
    reward_model: SessionScorer | None = None,
    held_out_reward_model: SessionScorer | None = None,
    item_vectors: torch.Tensor | None = None,
    collaborative: Callable[[Histories], torch.Tensor] | None = None,
    parents: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the configured method under the guard; ``policy`` is changed in place and ends as the kept round's.

    Args:
        reward_model: For the reward ``learned``; see :class:`~recsys.reward.scoring.ModelScorer`.
        held_out_reward_model: Held-out model that nothing is trained on.
        item_vectors: ``[items, any]`` for the reward ``semantic``.
        collaborative: Histories to logits ``[B, items]`` for the reward ``collaborative``.
        parents: Digests of what the run reads; every round's manifest carries them.

    Returns:
        Summary: method, kept round, why it stopped, figures before and after.

    Raises:
        ConfigError: The method is ``none``, or a reward lacks what it needs.
        ArtifactError: Policy and semantic IDs do not belong together, or the folder holds another run's rounds.
    """
    semantic_ids.check_same(policy.spec.semantic_id_digest)
    settings = config.active
    if config.needs_reward_model and reward_model is None:
        raise ConfigError(
            f"align.{config.method}.rewards names 'learned', and no reward model is given; run `reward` first"
        )
    seed_everything(seed)
    if isinstance(settings, IpaConfig) and settings.objective is not None:
        reward_model, held_out_reward_model = _make_steerable(
            policy, settings.objective, reward_model, held_out_reward_model
        )
    reward_set = RewardSet(settings.rewards, item_vectors, collaborative, reward_model)
    evaluator = PolicyEvaluator(
        prepared, semantic_ids, policy, config.guard, decode, reward_set, held_out_reward_model, seed
    )
    method, learner = _method(prepared, semantic_ids, policy, config, reward_set, seed)
    plain = {"method": config.method, config.method: settings.model_dump(mode="json")}
    plain["guard"] = config.guard.model_dump(mode="json")
    store = RoundStore(work_dir, parents or {}, plain, seed)
    run = RoundLoop(method, learner, evaluator, config.guard, store, config.checkpoint_every_steps, progress).run()
    save_policy(work_dir / MODEL_NAME, policy)
    return _report(run, config, work_dir)


def _make_steerable(
    policy: GenerativeRecommender,
    config: ObjectiveConfig,
    reward_model: SessionScorer | None,
    held_out_reward_model: SessionScorer | None,
) -> tuple[SessionScorer, SessionScorer | None]:
    """Name the policy's objectives after the reward's towers, and add the diversity tower to both scorers."""
    if reward_model is None:
        raise ConfigError(
            "align.ipa.objective weighs the towers of the learned reward; add 'learned' to align.ipa.rewards"
        )
    if config.diversity:
        category_I = policy.item_tower.side_I[1:, 1].cpu()
        reward_model = DiverseScorer(reward_model, category_I)
        held_out_reward_model = (
            DiverseScorer(held_out_reward_model, category_I) if held_out_reward_model is not None else None
        )
    if policy.spec.model.num_objectives != len(reward_model.towers):
        raise ConfigError(
            f"the policy takes {policy.spec.model.num_objectives} objective weights, the reward has the towers "
            f"{', '.join(reward_model.towers)}: train with model.num_objectives={len(reward_model.towers)}"
        )
    policy.spec = policy.spec.model_copy(update={"objectives": reward_model.towers})
    return reward_model, held_out_reward_model


def _method(
    prepared: Dataset,
    semantic_ids: SemanticIds,
    policy: GenerativeRecommender,
    config: AlignConfig,
    reward_set: RewardSet,
    seed: int,
) -> tuple[Method, Learner]:
    """Build the method and the learner that it drives."""
    settings = config.active
    device = policy.codes.weight.device
    max_history = policy.spec.model.max_history
    sampler = RolloutSampler(semantic_ids, settings.rollouts, device)
    if isinstance(settings, IpaConfig):
        stream = RequestStream(prepared, max_history, settings.batch_size, seed)
        updates = settings.rounds * stream.steps_for(settings.samples_per_round)
        learner = Learner(policy, settings.optimiser, updates)
        return IterativePreferenceAlignment(settings, learner, stream, sampler, reward_set, seed), learner
    stream = RequestStream(prepared, max_history, settings.requests_per_step, seed)
    updates = settings.rounds * settings.steps_per_round * settings.num_iterations
    learner = Learner(policy, settings.optimiser, updates)
    return RankingRewardLearning(settings, learner, stream, sampler, reward_set, seed), learner


def _report(run: AlignmentRun, config: AlignConfig, work_dir: Path) -> dict[str, Any]:
    report = write_alignment_report(run, config, work_dir)
    start, kept = report["rounds"][0]["measured"], report["rounds"][run.kept]["measured"]
    shown = [
        name for name in ("beam_hr@1", "beam_ndcg@10", "reward", "held_out_reward", "kl_to_start") if name in start
    ]
    shown.append(f"beam_recall@{config.guard.recall_at}")
    return {
        "method": config.method,
        "rounds": len(run.rounds) - 1,
        "kept_round": run.kept,
        "stopped": run.stopped,
        "before": {name: start[name] for name in shown},
        "after": {name: kept[name] for name in shown},
    }
