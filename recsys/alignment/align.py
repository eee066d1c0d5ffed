"""Align a policy: from configuration to the kept round's policy and its report; resumable after a kill at any instant.

Reads a trained policy, prepared data and, where the rewards ask for it, a reward model and a held-out one; writes into
the work folder ``model/`` (the kept policy), ``rounds/NN`` (every round: policy, pairs, measurements, curve, manifest),
``curves.parquet`` and ``alignment_report.json``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recsys.alignment.config import AlignConfig, IpaConfig, UserFeedbackConfig
from recsys.alignment.inputs import AlignmentInputs
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
from recsys.alignment.rsft import kept_samples
from recsys.alignment.sample_config import ObjectiveConfig
from recsys.alignment.user_feedback import UserFeedbackLearning
from recsys.contracts.errors import ConfigError
from recsys.model.checkpoint import save_policy
from recsys.reward.scoring import DiverseScorer
from recsys.runtime import Progress, seed_everything


def align_policy(inputs: AlignmentInputs, work_dir: Path, progress: Progress) -> dict[str, Any]:
    """Run the configured method under the guard; ``inputs.policy`` is changed in place and ends as the kept round's.

    Returns:
        Summary: method, kept round, why it stopped, figures before and after.

    Raises:
        ConfigError: The method is ``none``, or a reward lacks what it needs.
        ArtifactError: Policy and semantic IDs do not belong together, or the folder holds another run's rounds.
    """
    config, policy = inputs.config, inputs.policy
    inputs.semantic_ids.check_same(policy.spec.semantic_id_digest)
    inputs.semantic_ids.check_rows(policy.item_tower.codes_IL[1:].cpu().numpy())
    settings = config.active
    if config.needs_reward_model and inputs.reward_model is None:
        raise ConfigError(
            f"align.{config.method}.rewards names 'learned' or align.rsft.by 'reward', and no reward model is given; run "
            "`reward` first"
        )
    seed_everything(inputs.seed)
    if isinstance(settings, IpaConfig) and settings.objective is not None:
        inputs = _steerable(inputs, settings.objective)
    reward_set = RewardSet(settings.rewards, inputs.item_vectors, inputs.collaborative, inputs.reward_model)
    evaluator = PolicyEvaluator(
        dataset=inputs.dataset,
        semantic_ids=inputs.semantic_ids,
        start_policy=policy,
        config=config.guard,
        decode=inputs.decode,
        reward_set=reward_set,
        held_out_reward_model=inputs.held_out_reward_model,
        seed=inputs.seed,
        objective=settings.objective if isinstance(settings, IpaConfig) else None,
        dislikes=settings.dislikes if isinstance(settings, IpaConfig) else None,
    )
    method, learner = _method(inputs, reward_set)
    plain: dict[str, Any] = {"method": config.method, config.method: settings.model_dump(mode="json")}
    plain["guard"] = config.guard.model_dump(mode="json")
    plain["precision"], plain["decode"] = config.precision, inputs.decode.model_dump(mode="json")
    if config.rsft is not None:
        plain["rsft"] = config.rsft.model_dump(mode="json")
    loop = RoundLoop(
        method=method,
        learner=learner,
        evaluator=evaluator,
        guard=config.guard,
        store=RoundStore(work_dir, _parents(inputs), plain, inputs.seed),
        checkpoint_every_steps=config.checkpoint_every_steps,
        progress=progress,
    )
    run = loop.run()
    save_policy(work_dir / MODEL_NAME, policy)
    return _report(run, config, work_dir)


def _parents(inputs: AlignmentInputs) -> dict[str, str]:
    """What the rounds of a folder belong to: what the caller names, and in any case the policy's own weights.

    A caller who names nothing would otherwise be handed the rounds that another policy left in the folder.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(inputs.policy.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {**inputs.parents, "policy_weights": weights.hexdigest()}


def _steerable(inputs: AlignmentInputs, config: ObjectiveConfig) -> AlignmentInputs:
    """Name the policy's objectives after the reward's towers, and add the diversity tower to both scorers."""
    policy, reward_model, held_out = inputs.policy, inputs.reward_model, inputs.held_out_reward_model
    if reward_model is None:
        raise ConfigError(
            "align.ipa.objective weighs the towers of the learned reward; add 'learned' to align.ipa.rewards"
        )
    if config.diversity:
        category_I = policy.item_tower.category_I[1:].cpu()
        reward_model = DiverseScorer(reward_model, category_I)
        held_out = None if held_out is None else DiverseScorer(held_out, category_I)
    if policy.spec.model.num_objectives != len(reward_model.towers):
        raise ConfigError(
            f"the policy takes {policy.spec.model.num_objectives} objective weights, the reward has the towers "
            f"{', '.join(reward_model.towers)}: train with model.num_objectives={len(reward_model.towers)}"
        )
    policy.spec = policy.spec.model_copy(update={"objectives": reward_model.towers})
    return replace(inputs, reward_model=reward_model, held_out_reward_model=held_out)


def _method(inputs: AlignmentInputs, reward_set: RewardSet) -> tuple[Method, Learner]:
    """Build the method and the learner that it drives."""
    settings, policy, seed = inputs.config.active, inputs.policy, inputs.seed
    max_history = policy.spec.model.max_history
    rsft = inputs.config.rsft
    kept = None if rsft is None else kept_samples(inputs.dataset, rsft, inputs.reward_model)

    def stream_of(batch_size: int) -> RequestStream:
        return RequestStream(inputs.dataset, max_history, batch_size, seed, kept)

    if isinstance(settings, UserFeedbackConfig):
        stream = stream_of(settings.exposures_per_step)
        updates = settings.rounds * settings.steps_per_round
        learner = Learner(policy, settings.optimiser, updates, inputs.config.precision)
        return UserFeedbackLearning(settings, learner, stream, seed), learner
    sampler = RolloutSampler(inputs.semantic_ids, settings.rollouts, policy.codes.weight.device)
    if isinstance(settings, IpaConfig):
        stream = stream_of(settings.batch_size)
        updates = settings.rounds * stream.steps_for(settings.samples_per_round)
        learner = Learner(policy, settings.optimiser, updates, inputs.config.precision)
        return IterativePreferenceAlignment(settings, learner, stream, sampler, reward_set, seed), learner
    stream = stream_of(settings.requests_per_step)
    updates = settings.rounds * settings.steps_per_round * settings.num_iterations
    learner = Learner(policy, settings.optimiser, updates, inputs.config.precision)
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
