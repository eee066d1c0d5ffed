"""Training: it learns an answer one can see, and a kill changes nothing."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import row_metrics
from recsys.model.checkpoint import load_policy
from recsys.model.config import ModelConfig
from recsys.runtime import PlainProgress, set_threads
from recsys.training.config import TrainConfig
from recsys.training.fit import leading_directions, train_policy
from recsys.training.inputs import TrainingInputs
from recsys.training.module import PolicyModule
from tests.toy.dataset import ring_ids, ring_prepared

MODEL = ModelConfig(width=32, num_heads=2, ffn_width=64, expert_width=32, max_history=5, features=("item", "codes"))
TRAIN = TrainConfig(
    max_epochs=30,
    batch_size=16,
    learning_rate=5e-3,
    patience=30,
    validation_users=20,
    monitor="beam",
)
DECODE = DecodeConfig(beam_width=12, exclude_seen=False)


def train(prepared: Dataset, folder: Path, config: TrainConfig = TRAIN, model: ModelConfig = MODEL) -> dict:
    set_threads(1)
    inputs = TrainingInputs(prepared, ring_ids(), model, config, DECODE, seed=5)
    return train_policy(inputs, folder, PlainProgress())


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_the_next_item_on_the_ring_is_learned(tmp_path: Path, attention: str) -> None:
    prepared = ring_prepared(tmp_path / "data")
    model = ModelConfig.model_validate({**MODEL.model_dump(), "encoder_attention": attention})
    report = train(prepared, tmp_path, model=model)
    policy = load_policy(tmp_path / "model", ring_ids().digest)
    targets = prepared.targets(TEST)
    for rescore in (False, True):
        ranked = Recommender(policy, ring_ids(), DECODE).recommend(
            Histories.from_targets(prepared.history, targets), 5, exclude_seen=False, rescore=rescore
        )
        assert row_metrics(ranked, targets, [1])["hr@1"].mean() > 0.95
    assert report["valid"]["ndcg_at_10"] > 0.95
    curves = pl.read_parquet(tmp_path / "curves.parquet")
    assert {"train/loss", "valid/ndcg_at_10"} <= set(curves["name"])


def test_sessions_are_learned(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path / "data", task="session", session_length=2)
    model = ModelConfig.model_validate({**MODEL.model_dump(), "encoder_attention": "bidirectional"})
    train(prepared, tmp_path, model=model)
    policy = load_policy(tmp_path / "model", ring_ids().digest)
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    items, _ = Recommender(policy, ring_ids(), DECODE).recommend_sessions(histories, 1, exclude_seen=False)
    last = np.array([seen[-1] for seen in histories.seen_items()])
    expected = np.stack([(last + 1) % 12, (last + 2) % 12], axis=1)
    assert (items[:, 0] == expected).all(1).mean() > 0.9


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("steps", [[3], [1, 6, 11, 12, 17], [18, 21]])
def test_killed_and_resumed_training_equals_undisturbed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    prepared = ring_prepared(tmp_path / "data")
    config = TRAIN.model_copy(update={"max_epochs": 4, "checkpoint_every_s": 1e-6, "validate_every_epochs": 3})
    train(prepared, tmp_path / "undisturbed", config)
    original = PolicyModule.on_before_zero_grad if hasattr(PolicyModule, "on_before_zero_grad") else None
    for step in steps:

        def kill(self: PolicyModule, optimizer: object, at: int = step) -> None:
            if self.trainer.global_step == at:
                raise Killed

        monkeypatch.setattr(PolicyModule, "on_before_zero_grad", kill)
        with pytest.raises(Killed):
            train(prepared, tmp_path / "killed", config)
    monkeypatch.setattr(PolicyModule, "on_before_zero_grad", original)
    train(prepared, tmp_path / "killed", config)
    expected = load_file(tmp_path / "undisturbed" / "model" / "model.safetensors")
    actual = load_file(tmp_path / "killed" / "model" / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    a, b = (pl.read_parquet(tmp_path / run / "curves.parquet") for run in ("undisturbed", "killed"))
    assert a.equals(b)


@pytest.mark.parametrize(("epochs", "validations"), [(1, 1), (3, 2), (4, 2)])
def test_the_last_epoch_is_always_validated(tmp_path: Path, epochs: int, validations: int) -> None:
    """Every second epoch and the last: 1; 2 and 3; 2 and 4."""
    config = TRAIN.model_copy(update={"max_epochs": epochs, "validate_every_epochs": 2})
    train(ring_prepared(tmp_path / "data"), tmp_path, config)
    curves = pl.read_parquet(tmp_path / "curves.parquet")
    assert curves.filter(pl.col("name") == "valid/ndcg_at_10").height == validations


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path / "data")
    table = pl.read_parquet(tmp_path / "data" / "targets.parquet")
    table.filter(pl.col("split") != 1).write_parquet(tmp_path / "data" / "targets.parquet")
    with pytest.raises(DataError, match="split 'valid' holds no target"):
        train(prepared, tmp_path)


def test_leading_directions_keep_distances_of_low_rank_embeddings() -> None:
    generator = np.random.default_rng(0)
    embeddings = (generator.normal(size=(30, 3)) @ generator.normal(size=(3, 10))).astype(np.float32)
    start = leading_directions(embeddings, 5)
    assert np.allclose(start[:, 3:], 0, atol=1e-3)
    original = np.linalg.norm(embeddings[0] - embeddings[1]) / np.linalg.norm(embeddings[2] - embeddings[3])
    kept = np.linalg.norm(start[0] - start[1]) / np.linalg.norm(start[2] - start[3])
    assert kept == pytest.approx(original, rel=1e-3)
