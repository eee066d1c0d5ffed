"""Training runs on the ring, and their execution in one process or several; imported by the started processes too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.samples import TargetRows
from recsys.decoding.config import DecodeConfig
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.moe import MixtureOfExperts
from recsys.runtime import PlainProgress, set_threads
from recsys.training import fit
from recsys.training.callbacks import Curves
from recsys.training.config import TrainConfig
from recsys.training.distributed.checkpoint import load_optimizer_state, load_policy_state, save_training_state
from recsys.training.distributed.processes import World, means_over_processes
from recsys.training.distributed.sharding import gathered, shard_tables
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from recsys.training.schedule import adamw
from tests.toy.dataset import ring_ids

# No dropout: its draws differ from process to process. Every token goes to every expert: a choice between experts that
# are equal but for rounding falls either way, and what follows differs by more than rounding.
MODEL: dict[str, Any] = {
    "num_experts": 2,
    "experts_per_token": 2,
    "width": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "ffn_width": 64,
    "expert_width": 32,
    "max_history": 5,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "features": ("item", "codes", "author", "gap", "user"),
}
# 61 users give 85 windows, batches of 7 are 13 steps an epoch and the last one has a single row; 5 epochs are 65 steps
TRAIN: dict[str, Any] = {
    "max_epochs": 5,
    "batch_size": 7,
    "learning_rate": 2e-3,
    "validate_every_epochs": 5,
    "validation_users": 21,
}
ROW_WISE = {"sharding": "row_wise", "table_optimizer": "rowwise_adagrad", "table_learning_rate": 0.02}
TABLE_WISE = ROW_WISE | {"sharding": "table_wise"}
COLUMN_WISE = {"sharding": "column_wise", "table_optimizer": "adagrad", "table_learning_rate": 0.02}


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@dataclass(frozen=True)
class Run:
    """One training run in a folder of its own.

    Attributes:
        folder: Where it works; a run in the folder of a killed one goes on from there.
        train: Changes to :data:`TRAIN`.
        kill_at: Optimiser step before which it dies.
    """

    folder: Path
    data: Path
    train: dict[str, Any]
    model: dict[str, Any]
    kill_at: int | None = None

    def __call__(self) -> None:
        """Train, or die trying."""
        set_threads(1)
        config = TrainConfig.model_validate(TRAIN | self.train)
        model = ModelConfig.model_validate(MODEL | self.model)
        # a point of the curve at every step
        with patch.object(fit, "Curves", partial(Curves, every_steps=1)):
            decode = DecodeConfig(beam_width=12, exclude_seen=False)
            inputs = TrainingInputs(Dataset.open(self.data), ring_ids(), model, config, decode, seed=5)
            if self.kill_at is None:
                fit.train_policy(inputs, self.folder, PlainProgress())
                return

            def kill(module: PolicyModule, _: object) -> None:
                if module.trainer.global_step == self.kill_at:
                    raise Killed

            try:
                with patch.object(PolicyModule, "on_before_zero_grad", kill):
                    fit.train_policy(inputs, self.folder, PlainProgress())
            except Killed:
                return
            raise AssertionError(f"the run ended before step {self.kill_at}")

    def losses(self) -> pl.DataFrame:
        """Columns step, name, value of the training losses."""
        curves = pl.read_parquet(self.folder / "curves.parquet")
        return curves.filter(pl.col("name").str.starts_with("train/")).select("step", "name", "value")

    def figures(self) -> pl.DataFrame:
        """Columns step, name, value of the validation figures."""
        curves = pl.read_parquet(self.folder / "curves.parquet")
        return curves.filter(pl.col("name").str.starts_with("valid/")).select("step", "name", "value")


@dataclass(frozen=True)
class Reshard:
    """Read a training state into sharded tables, look, and write it again.

    Attributes:
        start: Folder of tensors to read.
        end: Folder of tensors to write.
        seen: File for the log-probabilities that the policy gives.
    """

    data: Path
    train: dict[str, Any]
    start: Path
    end: Path
    seen: Path

    def __call__(self) -> None:
        """Read, look, write."""
        cpu = torch.device("cpu")
        config = TrainConfig.model_validate(TRAIN | self.train)
        policy = untrained(Dataset.open(self.data))
        shard_tables(policy.tables, config, cpu)
        optimizer = adamw(policy, config)
        load_policy_state(self.start, policy)
        load_optimizer_state(self.start, policy, optimizer)
        save_training_state(self.end, policy, optimizer)
        with gathered(policy.tables, cpu):
            answer = log_probs(policy, self.data)
        if World.from_environment().is_first:
            torch.save(answer, self.seen)


@dataclass(frozen=True)
class Means:
    """The example of :func:`~recsys.training.distributed.processes.means_over_processes`."""

    seen: Path

    def __call__(self) -> None:
        """Losses 1 and 4 over 3 and 1 targets, beside 5 and nothing over 2 and 0."""
        rank = World.from_environment().rank
        own = [torch.tensor([1.0, 4.0][rank]), torch.tensor([5.0, 0.0][rank])]
        found = means_over_processes(own, [[3, 1][rank], [2, 0][rank]])
        torch.save([float(value) for pair in found for value in pair], self.seen / f"means_{rank}.pt")


@dataclass(frozen=True)
class Balance:
    """One balancing step of experts that met other tokens in each process."""

    seen: Path

    def __call__(self) -> None:
        """Loads (3, 1, 0, 0) and (0, 1, 0, 3)."""
        rank = World.from_environment().rank
        experts = MixtureOfExperts(8, 4, 8, 1)
        experts.load_E += torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 3.0]][rank])
        experts.update_balance(0.25)
        torch.save(experts.bias_E.tolist(), self.seen / f"balance_{rank}.pt")


def untrained(prepared: Dataset) -> GenerativeRecommender:
    """A policy with weights that no training reaches by chance."""
    torch.manual_seed(99)
    return fit.build_policy(prepared, ring_ids(), ModelConfig.model_validate(MODEL), None)


def log_probs(policy: GenerativeRecommender, data: Path) -> torch.Tensor:
    """Log-probabilities of twenty training targets."""
    batch = TargetRows.from_dataset(Dataset.open(data), 5).collate(torch.arange(20).numpy())
    with torch.no_grad():
        return policy.eval().log_prob(batch)


def run_all(runs: list[Run | Reshard | Means | Balance]) -> None:
    """Run one after the other, in every started process alike."""
    for run in runs:
        run()
