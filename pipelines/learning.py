"""The stages that learn: policy, reward models, the aligned policy, and the second stage of item lists.

Each has the form of :data:`~pipelines.engine.stage.StageFunction` and imports what it needs inside, as
:mod:`pipelines.stages` explains, where they stand in their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.stage import Inputs
from recsys.device import resolve_device
from recsys.runtime import Progress

if TYPE_CHECKING:
    from pipelines.config import RunConfig

Summary = dict[str, Any]


def train(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Fit the policy; goes on from its last checkpoint after a kill."""
    from pipelines.training_inputs import training_inputs
    from recsys.training.fit import train_policy

    return train_policy(training_inputs(config, inputs), out_dir, progress)


def reward(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Train the session reward model, and on other users the held-out reward model; goes on after a kill."""
    import numpy as np

    from recsys.contracts.dataset import Dataset
    from recsys.reward.training import RewardInputs, train_reward_models
    from recsys.semantic_ids.versions import SemanticIds

    training = RewardInputs(
        dataset=Dataset.open(inputs["prepare"].path),
        semantic_ids=SemanticIds.load(inputs["tokenize"].path),
        config=config.reward,
        seed=config.seed,
        item_embeddings=np.load(inputs["embed"].path / "fused.npy", mmap_mode="r"),
        device=resolve_device(config.device),
    )
    return train_reward_models(training, out_dir, progress)


def align(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Align the policy in rounds under the guard; goes on after a kill, between and within rounds."""
    import numpy as np
    import torch

    from recsys.alignment.align import align_policy
    from recsys.alignment.inputs import AlignmentInputs
    from recsys.contracts.dataset import Dataset
    from recsys.model.checkpoint import load_policy
    from recsys.reports.alignment import write_alignment_page
    from recsys.reward.checkpoint import load_reward_model
    from recsys.reward.scoring import ModelScorer
    from recsys.semantic_ids.versions import SemanticIds

    semantic_ids, device = SemanticIds.load(inputs["tokenize"].path), resolve_device(config.device)
    opened = (semantic_ids.digest, device)
    scorers: dict[str, ModelScorer | None] = {"reward": None, "held_out": None}
    if "reward" in inputs:
        folder = inputs["reward"].path
        scorers = {name: ModelScorer(load_reward_model(folder / name, *opened)) for name in scorers}
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    alignment = AlignmentInputs(
        dataset=Dataset.open(inputs["prepare"].path),
        semantic_ids=semantic_ids,
        policy=load_policy(inputs["train"].path / "model", *opened),
        config=config.align,
        decode=config.decode,
        seed=config.seed,
        reward_model=scorers["reward"],
        held_out_reward_model=scorers["held_out"],
        item_vectors=torch.from_numpy(np.load(inputs["embed"].path / "fused.npy")).to(device),
        parents=digests,
    )
    summary = align_policy(alignment, out_dir, progress)
    write_alignment_page(out_dir, f"Alignment of '{config.name}'", digests)
    return summary


def rank(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Fit the second stage of item lists: scorers on train events, weights and ranker on validation rows."""
    import numpy as np

    from recsys.contracts.dataset import Dataset
    from recsys.decoding.second_stage.fit import fit_second_stage
    from recsys.model.checkpoint import load_policy
    from recsys.semantic_ids.versions import SemanticIds

    semantic_ids = SemanticIds.load(inputs["tokenize"].path)
    model = inputs["align" if "align" in inputs else "train"].path / "model"
    policy = load_policy(model, semantic_ids.digest, resolve_device(config.device))
    embeddings = inputs["embed"].path
    vectors = {
        name: np.load(embeddings / f"{name}.npy", mmap_mode="r")
        for name in ("fused", "text")
        if (embeddings / f"{name}.npy").exists()
    }
    prepared = Dataset.open(inputs["prepare"].path)
    fitted, summary = fit_second_stage(
        prepared, policy, semantic_ids, config.decode, config.rank, vectors, config.seed, progress
    )
    fitted.save(out_dir / "ranker")
    return summary
