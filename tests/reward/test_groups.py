"""Worst-group weighting: weights and losses by hand, where it converges, a kill, and columns that make no groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import polars as pl
import pytest
import torch

from pipelines.config import load_run_config
from recsys.config import validate
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import read_json
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.config import RewardTrainConfig
from recsys.reward.groups import UserGroups, group_losses, next_weights, sums_by_group
from recsys.reward.loss import reward_loss
from recsys.reward.model import RewardScores
from recsys.reward.module import FeedbackBatch, RewardModule
from tests.reward.test_reward_model import ITEMS
from tests.reward.test_reward_training import SMALL, config, train
from tests.toy.reward import colour_prepared

REFERENCE = 0.6931472


def grouped(folder: Path, users: int = 120) -> Dataset:
    """Every fourth user is of the group "b", one has no group."""
    prepared = colour_prepared(folder, users=users, items=ITEMS)
    kind = [None if user == 2 else "b" if user % 4 == 0 else "a" for user in range(users)]
    prepared.__dict__["users"] = pl.DataFrame({"user_index": range(users), "kind": kind})
    return prepared


def test_weights_by_hand() -> None:
    """1/4, 1/4, 1/2 with losses 2, 0, 1 and step ln 2: 1/4 * 4, 1/4 * 1, 1/2 * 2, of 9/4: 4/9, 1/9, 4/9."""
    found = next_weights(torch.tensor([0.25, 0.25, 0.5]), torch.tensor([2.0, 0.0, 1.0]), math.log(2))
    torch.testing.assert_close(found, torch.tensor([4 / 9, 1 / 9, 4 / 9]))


def test_losses_of_groups_by_hand() -> None:
    """Logit 0 costs ln 2 whatever the label; logit 2 with label 0 costs 2.1269; the third group has no row."""
    scores = RewardScores(torch.tensor([[[0.0]], [[2.0]], [[0.0]]]), None)
    labels = torch.tensor([[[1.0]], [[0.0]], [[torch.nan]]])
    losses = group_losses(scores, labels, torch.ones(1), torch.tensor([0, 1, 0]), 3)
    torch.testing.assert_close(losses, torch.tensor([REFERENCE, 2.1269, 0.0]), atol=1e-4, rtol=0)
    sums, counts = sums_by_group(scores.logits, labels, torch.tensor([0, 1, 0]), 3)
    torch.testing.assert_close(sums[:, 0], torch.tensor([REFERENCE, 2.1269, 0.0]), atol=1e-4, rtol=0)
    assert counts[:, 0].tolist() == [1.0, 1.0, 0.0]


def test_one_group_has_the_loss_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = RewardScores(torch.randn(6, 1, 2, generator=generator), torch.randn(6, 1, generator=generator))
    labels, weights = torch.rand(6, 1, 2, generator=generator), torch.tensor([1.0, -0.5])
    (found,) = group_losses(scores, labels, weights, torch.zeros(6, dtype=torch.long), 1)
    torch.testing.assert_close(found, reward_loss(scores, labels, weights))


@pytest.mark.parametrize(("robust", "expected"), [(False, 0.1), (True, 0.5)])
def test_where_it_converges(robust: bool, expected: float) -> None:
    """One probability for 90 sessions with label 0 and 10 with label 1: the mean is best at .1, the worst group at .5."""
    logit = torch.zeros((), requires_grad=True)
    labels = torch.tensor([0.0] * 90 + [1.0] * 10)[:, None, None]
    group, weights = labels[:, 0, 0].long(), torch.tensor([0.9, 0.1])
    optimiser = torch.optim.SGD([logit], lr=0.5)
    for _ in range(400):
        losses = group_losses(RewardScores(logit.expand(100, 1, 1), None), labels, torch.ones(1), group, 2)
        if robust:
            weights = next_weights(weights, losses, 0.1)
        optimiser.zero_grad()
        (weights * losses).sum().backward()
        optimiser.step()
    assert logit.sigmoid().item() == pytest.approx(expected, abs=0.02)
    if robust:
        assert weights[1].item() == pytest.approx(0.5, abs=0.02)


def test_groups_are_those_of_the_users(tmp_path: Path) -> None:
    groups = UserGroups.of(grouped(tmp_path), "kind")
    assert groups.names == ("a", "b", "not known")
    assert groups.of_user_U[:6].tolist() == [1, 0, 2, 0, 1, 0]


ROBUST: dict[str, Any] = {**SMALL["train"], "max_epochs": 3, "worst_group": {"column": "kind", "step_size": 0.05}}


def test_training_keeps_the_weights_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal weights of groups and of the model, whether or not the process died in the second epoch; and other ones than
    without groups."""
    prepared = grouped(tmp_path / "data")
    settings = config(train={**ROBUST, "checkpoint_every_s": 1e-6})
    train(prepared, tmp_path / "whole", settings)
    original = RewardModule.training_step

    def dies(module: RewardModule, batch: FeedbackBatch, batch_idx: int) -> torch.Tensor:
        if module.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        return original(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModule, "training_step", dies)
        with pytest.raises(
            (KeyboardInterrupt, SystemExit, lightning.fabric.utilities.exceptions.MisconfigurationException)
        ):
            train(prepared, tmp_path / "killed", settings)
    train(prepared, tmp_path / "killed", settings)
    train(prepared, tmp_path / "plain", config(train={**SMALL["train"], "max_epochs": 3}))
    for name in ("reward", "held_out"):
        whole, killed, plain = (
            load_reward_model(tmp_path / run / name, None).state_dict() for run in ("whole", "killed", "plain")
        )
        for key, tensor in whole.items():
            torch.testing.assert_close(killed[key], tensor)
        assert any(not torch.equal(plain[key], tensor) for key, tensor in whole.items())
        facts, again = (read_json(tmp_path / run / name / "training.json") for run in ("whole", "killed"))
        assert facts["group_weights"] == again["group_weights"]
        assert set(facts["group_weights"]) == {"a", "b", "not known"}
        assert sum(facts["group_weights"].values()) == pytest.approx(1.0, abs=1e-3)
        assert facts["group_weights"]["a"] != facts["group_weights"]["b"]
        curves = pl.read_parquet(tmp_path / "whole" / name / "curves.parquet")
        of = {
            key: curves.filter(pl.col("name") == f"valid/bce_{key}")["value"].to_list()
            for key in ("worst", "of_a", "of_b")
        }
        assert all(worst >= max(a, b) - 1e-6 for worst, a, b in zip(*of.values(), strict=True))
        assert facts["valid_bce_of_the_worst_group"] == pytest.approx(min(of["worst"]), abs=1e-6)


def test_refusals(tmp_path: Path) -> None:
    prepared = grouped(tmp_path / "data", users=70)
    with pytest.raises(
        DataError, match=r"reads column 'country', which users.parquet does not have \(columns: user_index, kind\)"
    ):
        UserGroups.of(prepared, "country")
    with pytest.raises(DataError, match=r"makes 70 group\(s\), expected 2 to 64"):
        UserGroups.of(prepared, "user_index")
    prepared.__dict__["users"] = prepared.users.with_columns(kind=pl.lit("a"))
    with pytest.raises(DataError, match=r"makes 1 group\(s\)"):
        UserGroups.of(prepared, "kind")
    with pytest.raises(ConfigError, match=r"step_size"):
        validate(RewardTrainConfig, {"worst_group": {"column": "kind", "step_size": 0.0}}, "test")
    recipe = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "kuairand.yaml"
    with pytest.raises(ConfigError, match=r"worst_group names column 'kind', which source.user_columns does not carry"):
        load_run_config(recipe, ["source.path=somewhere", "reward.train.worst_group={column: kind}"])
