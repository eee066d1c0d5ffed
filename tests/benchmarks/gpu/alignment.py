"""Alignment on the device: steps of ReRe on a policy that was trained for a moment, and a round of IPA with a reward model.

Legend: B requests, G candidates, T towers.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from recsys.alignment.config import IpaConfig, RereConfig, RolloutConfig
from recsys.alignment.ipa import IterativePreferenceAlignment
from recsys.alignment.rere import RankingRewardLearning
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.contracts.dataset import Dataset
from recsys.data.item_catalogue import ItemCatalogue
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.config import CombinationConfig, RewardModelConfig, RewardSignal
from recsys.reward.model import RewardSpec, SessionRewardModel
from recsys.reward.scoring import ModelScorer
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.config import TrainConfig
from recsys.training.fit import train_policy
from recsys.training.inputs import TrainingInputs
from tests.benchmarks.gpu import worlds
from tests.benchmarks.gpu.bench import Bench


def alignment(bench: Bench) -> None:
    """Train for a moment, then a part of a round of each method."""
    with bench.cell("rounds", 20), TemporaryDirectory() as folder:
        dataset, ids, source = worlds.beauty_dataset(Path(folder) / "data", smoke=bench.smoke)
        policy = trained(bench, dataset, ids, Path(folder) / "train")
        bench.row("policy", source=source, users=dataset.spec.num_users, items=dataset.spec.num_items)
        with bench.cell("rere", 8):
            rere(bench, dataset, ids, policy, Path(folder))
        with bench.cell("ipa", 8):
            ipa(bench, dataset, ids, policy, Path(folder))


def trained(bench: Bench, dataset: Dataset, ids: SemanticIds, folder: Path) -> GenerativeRecommender:
    """A policy of ``beauty.yaml``'s shape after some epochs: without any skill no group has a signal."""
    model = ModelConfig(preset="tiny", width=bench.size(128, 16), max_history=20)
    users = bench.size(500, 20)
    config = TrainConfig(
        max_epochs=bench.size(5, 3), batch_size=bench.size(256, 16), validation_users=users, validate_every_epochs=100
    )
    decode = DecodeConfig(beam_width=bench.size(20, 5))
    inputs = TrainingInputs(dataset, ids, model, config, decode, seed=17, device=bench.device)
    train_policy(inputs, folder, SilentProgress())
    return load_policy(folder / "model", ids.digest).to(bench.device)


def work_of(folder: Path) -> RoundWork:
    """A round without checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    return RoundWork(1, folder, 0, SmallerSteps(), RoundCurve(), SilentProgress(), lambda steps: None)


def rere(bench: Bench, dataset: Dataset, ids: SemanticIds, policy: GenerativeRecommender, folder: Path) -> None:
    """Steps of 128 requests with 16 candidates each."""
    steps = bench.size(40, 2)
    config = RereConfig(
        requests_per_step=bench.size(128, 8), steps_per_round=steps, rollouts=RolloutConfig(num_generations=16)
    )
    stream = RequestStream(dataset, policy.spec.model.max_history, config.requests_per_step, 0)
    learner = Learner(policy, config.optimiser, 10 * steps)
    sampler = RolloutSampler(ids, config.rollouts, bench.device)
    method = RankingRewardLearning(config, learner, stream, sampler, RewardSet(config.rewards), 0)
    method.begin(None)
    method.train(work_of(folder / "warm-up"))
    work = work_of(folder / "rere")
    bench.wait()
    start = time.perf_counter()
    facts = method.train(work)
    bench.wait()
    seconds = time.perf_counter() - start
    bench.row(
        "rere",
        steps=steps,
        requests_per_step=config.requests_per_step,
        generations=16,
        ms_per_step=round(1e3 * seconds / steps, 2),
        requests_per_s=round(steps * config.requests_per_step / seconds),
        counts=work.curve.counts,
        **facts,
    )


def ipa(bench: Bench, dataset: Dataset, ids: SemanticIds, policy: GenerativeRecommender, folder: Path) -> None:
    """Pairs for a share of the requests by a beam of 128 and a reward model, and the updates of the round."""
    samples = bench.size(20_000, 64)
    config = IpaConfig(
        rounds=1,
        samples_per_round=samples,
        preference_share=bench.size(10, 50) / 100,
        batch_size=bench.size(128, 16),
        rollouts=RolloutConfig(num_generations=bench.size(128, 8)),
    )
    stream = RequestStream(dataset, policy.spec.model.max_history, config.batch_size, 0)
    learner = Learner(policy, config.optimiser, 1000)
    sampler = RolloutSampler(ids, config.rollouts, bench.device)
    reward = RewardSet(config.rewards, learned=ModelScorer(reward_model(bench, dataset, ids)))
    method = IterativePreferenceAlignment(config, learner, stream, sampler, reward, 0)
    method.begin(None)
    work = work_of(folder / "ipa")
    start = time.perf_counter()
    facts = method.train(work)
    bench.wait()
    seconds = time.perf_counter() - start
    bench.row("ipa", round_s=round(seconds, 2), generations=config.rollouts.num_generations, **facts)


def reward_model(bench: Bench, dataset: Dataset, ids: SemanticIds) -> SessionRewardModel:
    """A reward model of the default shape with random weights: it costs what a trained one does."""
    signal = RewardSignal(name="any", column="any", kind="any")
    spec = RewardSpec(
        model=RewardModelConfig(item_embeddings=False),
        dataset=dataset.spec,
        level_sizes=ids.level_sizes,
        semantic_id_digest=ids.digest,
        signals=(signal,),
        base_rates=(0.5,),
        max_items=1,
        embedding_width=0,
        combination=CombinationConfig(),
    )
    rates = torch.zeros(dataset.spec.num_items + 1, 1)
    model = SessionRewardModel(spec, ItemCatalogue.from_items(dataset.items, ids.codes), None, rates)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as it is built, every session has the same value
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(bench.device).eval()
