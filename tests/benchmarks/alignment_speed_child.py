"""Times of alignment's parts under one version of the code, for :mod:`tests.benchmarks.alignment_speed`; run by it.

``python tests/benchmarks/alignment_speed_child.py OLD|NEW BEAUTY SIMULATED`` with the root of the version's code in
``PYTHONPATH``. It opens the files of finished runs by itself, because modules and file names of the old version are others,
and prints processor seconds as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

STEPS = 12
IPA_SAMPLES = 512
GUARD_ROWS = 300
OLD_NAMES = {
    "config": "recsys.alignment.config",
    "rere": "recsys.alignment.rere",
    "ipa": "recsys.alignment.ipa",
    "learner": "recsys.alignment.learner",
    "rewards": "recsys.alignment.reward_plugs",  # old name
    "sampler": "recsys.alignment.rollouts",
    "stream": "recsys.alignment.sample_stream",
    "loop": "recsys.alignment.rounds",
    "evaluator": "recsys.alignment.gauge",
    "decode": "recsys.decoding.config",
}
NEW_NAMES = {
    **OLD_NAMES,
    "learner": "recsys.alignment.rounds.learner",
    "rewards": "recsys.alignment.rewards.reward_set",
    "sampler": "recsys.alignment.rollouts.sampler",
    "stream": "recsys.alignment.rollouts.request_stream",
    "loop": "recsys.alignment.rounds.loop",
    "evaluator": "recsys.alignment.rounds.policy_evaluator",
}


def folder_of(run: Path, kind: str, policy: Path) -> Path:
    """Artefact of a kind that the run's policy was trained from."""
    stages = {"prepared": "prepare", "semantic_ids": "tokenize"}
    parents: dict[str, str] = json.loads((policy / "manifest.json").read_text())["parents"]
    return run / "artifacts" / kind / parents[stages[kind]][:16]


def open_new(run: Path) -> tuple[Any, Any, Any]:
    """Data, semantic IDs and policy with today's code."""
    (policy_path,) = list((run / "artifacts" / "policy").glob("*/"))[:1]
    dataset = import_module("recsys.contracts.dataset").Dataset.open(folder_of(run, "prepared", policy_path))
    ids = import_module("recsys.semantic_ids.versions").SemanticIds.load(folder_of(run, "semantic_ids", policy_path))
    return dataset, ids, import_module("recsys.model.checkpoint").load_policy(policy_path / "model", ids.digest)


def open_old(run: Path) -> tuple[Any, Any, Any]:
    """The same files with the code of 7be21f4."""
    (policy_path,) = list((run / "artifacts" / "policy").glob("*/"))[:1]
    data, ids_path = folder_of(run, "prepared", policy_path), folder_of(run, "semantic_ids", policy_path)
    prepared_module = import_module("recsys.contracts.prepared")
    sizes = prepared_module.Vocabulary.model_validate(json.loads((data / "dataset.json").read_text()))
    prepared = prepared_module.PreparedData(  # old name
        data, sizes, prepared_module.read_history_arrays(data / "history")
    )
    books, codes = load_file(ids_path / "codebooks.safetensors"), np.load(ids_path / "codes.npy")
    ids = import_module("recsys.semantic_ids.generation").SemanticIds(  # old name
        codes=codes,
        level_sizes=tuple(json.loads((ids_path / "semantic_ids.json").read_text())["level_sizes"]),
        item_ids=pl.Series("item_id", np.arange(len(codes)).astype(str)),
        codebooks=tuple(books[f"level_{level}"] for level in range(len(books))),
        ancestors=(),
    )
    module = import_module("recsys.model.generative_recommender")
    config_class = import_module("recsys.model.config").ModelConfig
    saved = json.loads((policy_path / "model" / "policy.json").read_text())["model"]
    known = {name: value for name, value in saved.items() if name in config_class.model_fields}
    spec = module.PolicySpec(
        model=config_class.model_validate(known),
        vocabulary=sizes,
        level_sizes=ids.level_sizes,
        semantic_id_digest=ids.digest,
    )
    policy = module.GenerativeRecommender(
        spec, torch.zeros(sizes.num_items + 1, len(ids.level_sizes) + 2, dtype=torch.int64)
    )
    found = policy.load_state_dict(load_file(policy_path / "model" / "model.safetensors"), strict=False)
    assert not found.unexpected_keys  # what is missing are second names of shared tables
    return prepared, ids, policy.eval()


class Version:
    """One version of the code, by today's names."""

    def __init__(self, old: bool) -> None:
        self.old = old
        names = OLD_NAMES if old else NEW_NAMES
        self.modules = SimpleNamespace(**{short: import_module(name) for short, name in names.items()})
        stream, rewards = ("SampleStream", "RewardPlugs") if old else ("RequestStream", "RewardSet")  # old name
        self.stream: Any = getattr(self.modules.stream, stream)
        self.rewards: Any = getattr(self.modules.rewards, rewards)
        self.seeded: Any = self.modules.stream.seeded

    def open(self, run: Path) -> tuple[Any, Any, Any]:
        """Data, semantic IDs and policy."""
        return open_old(run) if self.old else open_new(run)

    def work(self) -> Any:
        """A round at work."""
        loop, curve = self.modules.loop, self.modules.learner.RoundCurve()
        smaller = 1.0 if self.old else loop.SmallerSteps()
        return loop.RoundWork(1, Path(tempfile.mkdtemp()), 0, smaller, curve, Quiet(), lambda steps: None)


class Quiet:
    """Progress that shows nothing."""

    def track(self, items: Any, label: str, total: int | None = None) -> Any:
        """The items as they are."""
        return items


def seconds(action: Callable[[], object]) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def rere(version: Version, run: Path, requests: int) -> list[float]:
    """Steps of ReRe."""
    data, ids, policy = version.open(run)
    config = version.modules.config.RereConfig(requests_per_step=requests)
    stream = version.stream(data, policy.spec.model.max_history, requests, 0)
    learner = version.modules.learner.Learner(policy, config.optimiser, 1000)
    sampler = version.modules.sampler.RolloutSampler(ids, config.rollouts)
    rewards = version.rewards(config.rewards)
    method = version.modules.rere.RankingRewardLearning(config, learner, stream, sampler, rewards, 0)
    method.begin(None)
    work = version.work()

    def step(number: int) -> None:
        method._step(work, stream.rows(number), version.seeded(0, 1, number))

    step(0)
    return [seconds(lambda n=number: step(n)) for number in range(1, STEPS + 1)]  # type: ignore[misc]


def ipa(version: Version, run: Path) -> list[float]:
    """A round of IPA with the simulator's settings; its reward is the rule, so that no reward model is timed."""
    data, ids, policy = version.open(run)
    config = version.modules.config.IpaConfig(
        samples_per_round=IPA_SAMPLES,
        batch_size=64,
        preference_share=0.5,
        preference_reduction="pairs",
        rewards={"rule": 1.0},
        rollouts={"strategy": "sampling", "num_generations": 32, "exclude_seen": True},
    )
    stream = version.stream(data, policy.spec.model.max_history, config.batch_size, 0)
    learner = version.modules.learner.Learner(policy, config.optimiser, 1000)
    sampler = version.modules.sampler.RolloutSampler(ids, config.rollouts)
    method = version.modules.ipa.IterativePreferenceAlignment(
        config, learner, stream, sampler, version.rewards(config.rewards), 0
    )
    return [seconds(lambda: method.train(version.work())) for _ in range(2)]


def guard(version: Version, run: Path) -> list[float]:
    """A look of the guard, with the cut-offs that it has by default."""
    data, ids, policy = version.open(run)
    config = version.modules.config.GuardConfig(users=GUARD_ROWS)
    decode, rewards = version.modules.decode.DecodeConfig(beam_width=50), version.rewards({"rule": 1.0, "ranking": 1.0})
    kind = version.modules.evaluator.Gauge if version.old else version.modules.evaluator.PolicyEvaluator  # old name
    measurer = kind(data, ids, policy, config, decode, rewards, None, 0)
    return [seconds(lambda: measurer.measure(policy, None, Quiet())) for _ in range(2)]


def main() -> None:
    """Time everything and print it."""
    torch.set_num_threads(1)
    version, beauty, simulated = Version(sys.argv[1] == "OLD"), Path(sys.argv[2]), Path(sys.argv[3])
    found = {
        "ReRe step, 32 requests": rere(version, beauty, 32),
        "ReRe step, 128 requests": rere(version, beauty, 128),
        "guard's look": guard(version, beauty),
        "IPA round": ipa(version, simulated),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
