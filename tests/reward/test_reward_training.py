"""Training the reward model and the held-out one: they learn what is there, from different users, and survive a kill."""

import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import polars as pl
import pytest
import torch

import recsys.reward.training
from recsys.config import validate
from recsys.contracts.columns import TEST, TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.manifest import write_json
from recsys.data.histories import Histories
from recsys.reward.checkpoint import load_reward_model, save_reward_model
from recsys.reward.config import FeedbackConfig, RewardConfig, RewardModelConfig, RewardSignal
from recsys.reward.evaluate import popularity_baseline, user_mean_baseline
from recsys.reward.feedback.dataset import SessionFeedback, session_feedback
from recsys.reward.model import SessionRewardModel
from recsys.reward.module import RewardModule
from recsys.reward.scoring import rank_by_reward
from recsys.reward.training import RewardInputs, base_rates, split_raters, split_users, train_reward_models
from recsys.runtime import PlainProgress
from tests.reward.test_reward_model import ITEMS, SHAPE, colour_ids
from tests.toy.reward import colour_prepared, event, prepared_from

SMALL: dict[str, Any] = {
    "model": {**SHAPE, "width": 16, "init_std": 0.02, "item_embeddings": False, "num_history_layers": 0},
    "held_out_model": {
        **SHAPE,
        "width": 12,
        "fused_tower": True,
        "init_std": 0.02,
        "item_embeddings": False,
        "num_history_layers": 0,
    },
    "train": {"max_epochs": 6, "batch_size": 32, "learning_rate": 0.01},
    "resamples": 50,
}


def config(**changes: Any) -> RewardConfig:
    return validate(RewardConfig, {**SMALL, **changes}, "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return colour_prepared(tmp_path_factory.mktemp("colours"), users=120, items=ITEMS)


def train(prepared: Dataset, out: Path, settings: RewardConfig) -> dict[str, Any]:
    return train_reward_models(RewardInputs(prepared, colour_ids(), settings, seed=5), out, PlainProgress())


@pytest.fixture(scope="module")
def trained(prepared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("reward")
    return out, train(prepared, out, config())


def test_both_models_find_that_users_watch_their_own_colour(trained: tuple[Path, dict[str, Any]]) -> None:
    """Whether an item has the colour of the history decides watching; popularity and user means know nothing of it."""
    out, summary = trained
    metrics = pl.read_parquet(out / "reward_metrics.parquet").filter(pl.col("users") == "new")
    for model in ("reward", "held_out"):
        assert summary["test"][model]["vtr"]["auc"] > 0.9
        for baseline in ("popularity", "user_mean"):
            gain = metrics.filter(
                (pl.col("model") == model) & (pl.col("tower") == "vtr") & (pl.col("system") == f"model - {baseline}")
            )
            assert gain.filter(pl.col("metric") == "auc")["low"].item() > 0.1
            assert gain.filter(pl.col("metric") == "bce")["high"].item() < 0
    assert summary["agreement"]["vtr"] > 0.7
    calibration = pl.read_parquet(out / "reward_calibration.parquet")
    assert set(calibration.columns) == {"model", "tower", "bin", "sessions", "predicted", "observed"}


def test_reward_model_and_held_out_model_share_no_user(prepared: Dataset) -> None:
    groups = split_users(120, config(reward_share=0.5, held_out_share=0.3), seed=1)
    assert not (groups["reward"] & groups["held_out"]).any()
    assert [int(users.sum()) for users in groups.values()] == [60, 36]


def poisoned(prepared: Dataset, users: Any, folder: Path) -> Dataset:
    """The same data with every feedback of some users turned round on ten items; what counts as positive stays."""
    shutil.copytree(prepared.path, folder)
    events = prepared.events
    hit = pl.lit(pl.Series(users[events["user_index"].to_numpy()])) & (pl.col("item_index") < 10)
    turned = events.with_columns(
        long_view=pl.when(hit).then(~pl.col("long_view")).otherwise("long_view"),
        like=pl.when(hit).then(~pl.col("like")).otherwise("like"),
        watch_time_ms=pl.when(hit).then(90_000 - pl.col("watch_time_ms")).otherwise("watch_time_ms"),
    )
    turned.select(events.columns).write_parquet(folder / "events.parquet")
    return Dataset.open(folder, checked=False)


@pytest.mark.parametrize("side", ["reward", "held_out"])
def test_poison_on_one_side_leaves_the_other_to_the_bit(prepared: Dataset, tmp_path: Path, side: str) -> None:
    """Labels, watch times and item rates of one model's users, all of them: nothing of it reaches the other model."""
    settings = config(train={**SMALL["train"], "max_epochs": 1})
    users = split_users(120, settings, seed=5)[side]
    train(prepared, tmp_path / "clean", settings)
    train(poisoned(prepared, users, tmp_path / "data"), tmp_path / "poisoned", settings)
    for name in ("reward", "held_out"):
        clean, other = (
            (tmp_path / folder / name / "model.safetensors").read_bytes() for folder in ("clean", "poisoned")
        )
        assert (clean == other) == (name != side)


def test_who_gives_rates_trains_nothing() -> None:
    """Of 60 users a quarter, 15, of their own group."""
    settings = config(reward_share=0.5, held_out_share=0.3)
    for name, users in split_users(120, settings, seed=1).items():
        raters = split_raters(users, settings, seed=1)
        assert int(raters.sum()) == {"reward": 15, "held_out": 9}[name]
        assert not (raters & ~users).any()


def test_the_held_out_model_reads_none_of_the_embeddings_of_the_other() -> None:
    assert not RewardConfig().held_out_model.item_embeddings
    with pytest.raises(ConfigError, match="of held_out_model: embeddings are made of all users' events"):
        config(model={**SMALL["model"], "item_embeddings": True}, held_out_model={"item_embeddings": True})


def test_the_second_stage_puts_the_own_colour_first(prepared: Dataset, trained: tuple[Path, dict[str, Any]]) -> None:
    model = load_reward_model(trained[0] / "reward", colour_ids().digest)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    ranked = rank_by_reward(model, histories, np.broadcast_to(np.arange(ITEMS), (120, ITEMS)))
    top = np.argsort(-ranked, axis=1)[:, : ITEMS // 4] % 4
    assert (top == np.arange(120)[:, None] % 4).mean() > 0.9


def test_the_same_seed_gives_the_same_models(
    prepared: Dataset, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    again = train(prepared, tmp_path, config())
    assert again["test"] == trained[1]["test"]
    for name in ("reward", "held_out"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            trained[0] / name / "model.safetensors"
        ).read_bytes()


def test_killed_and_started_again_it_ends_at_the_same_weights(
    prepared: Dataset, trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every batch; the process dies in the held-out reward model's third epoch."""
    settings = config(train={**SMALL["train"], "checkpoint_every_s": 1e-6})
    original = RewardModule.training_step

    def dies(module: RewardModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.model.spec.model.width == 12 and module.current_epoch == 2 and batch_idx == 3:
            raise KeyboardInterrupt
        return original(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModule, "training_step", dies)
        with pytest.raises(
            (KeyboardInterrupt, SystemExit, lightning.fabric.utilities.exceptions.MisconfigurationException)
        ):
            train(prepared, tmp_path, settings)
    assert (tmp_path / "reward" / "training.json").exists()
    assert not (tmp_path / "held_out" / "training.json").exists()
    train(prepared, tmp_path, settings)
    for name in ("reward", "held_out"):
        found, expected = (load_reward_model(folder / name, None).state_dict() for folder in (tmp_path, trained[0]))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor)


def test_killed_before_the_transform_is_saved_it_is_fitted_again(
    prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models are trained when the process dies with the constants of the second one in memory alone."""
    settings = config(combination={"transform": "rank"}, train={**SMALL["train"], "max_epochs": 1})
    train(prepared, tmp_path / "whole", settings)
    original = recsys.reward.training.fit_combination

    def dies(model: SessionRewardModel, sessions: SessionFeedback) -> None:
        assert (sessions.split == TRAIN).all()
        original(model, sessions)
        if model.spec.model.width == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recsys.reward.training, "fit_combination", dies)
        with pytest.raises(KeyboardInterrupt):
            train(prepared, tmp_path / "killed", settings)
    train(prepared, tmp_path / "killed", settings)
    for name in ("reward", "held_out"):
        first, second = (
            (tmp_path / folder / name / "model.safetensors").read_bytes() for folder in ("whole", "killed")
        )
        assert first == second
        constants = load_reward_model(tmp_path / "killed" / name, None).transform_TC
        assert constants.shape[1] > 2
        assert not torch.equal(constants[0], constants[1])
        assert (constants.diff(dim=1) >= 0).all()


def test_bfloat16_multiplies_and_float32_decides(
    prepared: Dataset, trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the models' own fit: towers multiply in bfloat16, logits and weights are float32, and as much is learned."""
    seen: dict[str, set[torch.dtype]] = {"tower": set(), "logits": set()}
    original = RewardModule.training_step

    def watched(module: RewardModule, batch: Any, batch_idx: int) -> torch.Tensor:
        hook = module.model.tower_down[0].register_forward_hook(lambda *found: seen["tower"].add(found[2].dtype))
        with torch.no_grad():
            seen["logits"].add(module.model.score(batch.history, batch.items_BNM).logits.dtype)
        hook.remove()
        return original(module, batch, batch_idx)

    monkeypatch.setattr(RewardModule, "training_step", watched)
    summary = train(prepared, tmp_path, config(precision="bf16-mixed"))
    assert seen == {"tower": {torch.bfloat16}, "logits": {torch.float32}}
    for name in ("reward", "held_out"):
        weights = load_reward_model(tmp_path / name, None).state_dict()
        assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
        mixed, exact = (found["test"][name]["vtr"]["auc"] for found in (summary, trained[1]))
        assert abs(mixed - exact) < 0.01


def test_baselines_by_hand(tmp_path: Path) -> None:
    """Train: item 0 viewed by user 0 and 1, item 1 by nobody (one exposure each user): global mean 1/2, 5 parts of it.

    Item 0: (2 + 5/2) / (2 + 5) = 0.6429, item 1: (0 + 5/2) / 7 = 0.3571. A session of both: vtr 0.5, and a like of
    either: item 0 liked once in two: (1 + 5/4) / 7 = 0.3214, item 1: (0 + 5/4) / 7 = 0.1786: 1 - 0.6786 * 0.8214 = 0.4426.
    User means: user 0 has vtr labels 1, 0: (1 + 5/2) / 7 = 1/2; ltr 1, 0, of a mean 1/4: (1 + 5/4) / 7 = 0.3214.
    """
    rows = []
    for user in range(2):
        rows += [
            event(user, 0, 1, 4 * user, view=True, like=user == 0, watch=100),
            event(user, 1, 2, 4 * user + 1),
            event(user, 0, 3, 4 * user + 2, split=TEST),
            event(user, 1, 4, 4 * user + 2, split=TEST),
        ]
    signals = (
        RewardSignal(name="vtr", column="long_view", kind="share"),
        RewardSignal(name="ltr", column="like", kind="any"),
    )
    feedback = session_feedback(
        prepared_from(tmp_path / "p", rows, 2), FeedbackConfig(signals=signals, min_positives=1)
    )
    train_part, test = feedback.of(TRAIN), feedback.of(TEST)
    np.testing.assert_allclose(popularity_baseline(train_part, test), [[0.5, 0.4426]] * 2, atol=1e-4)
    expected = [[0.5, (1 + 1.25) / 7], [0.5, 1.25 / 7]]
    np.testing.assert_allclose(user_mean_baseline(train_part, test), expected, atol=1e-4)


def test_refusals(prepared: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no user may train both"):
        config(reward_share=0.7, held_out_share=0.5)
    with pytest.raises(ConfigError, match=r"set model: {fused_tower: true} and held_out_model: {fused_tower: true}"):
        config(combination={"mode": "fused"})
    with pytest.raises(ConfigError, match=r"must score users it was not trained on"):
        validate(RewardModelConfig, {"features": ["item", "user"]}, "test")
    with pytest.raises(
        ConfigError, match=r"unknown key 'train.accelerator' .* it is called 'device, at the top of the"
    ):
        validate(RewardConfig, {"train": {"accelerator": "gpu"}}, "test")
    rows = [event(user, user % 2, 1, user, view=user % 2 == 0, watch=user) for user in range(100)]
    small = prepared_from(tmp_path / "p", rows, ITEMS)
    with pytest.raises(DataError, match="users of 'reward' have no validation session"):
        train(small, tmp_path / "b", config(reward_share=0.9, held_out_share=0.01))


def test_base_rates_do_not_depend_on_how_many_sessions_there_are() -> None:
    """A million labels of 0.1, summed in float32 one after the other, have the mean 0.101."""
    labels = np.full((1_000_000, 2), 0.1, np.float32)
    labels[1::2, 1] = np.nan
    assert base_rates(labels) == pytest.approx((0.1, 0.1), rel=1e-6)


def test_two_models_of_one_shape_start_from_other_weights(
    prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that began where the model began would err where it errs."""
    starts = []

    def published(model: SessionRewardModel, feedback: SessionFeedback, job: Any, **_: Any) -> None:
        starts.append(model.start_D.detach().clone())
        save_reward_model(tmp_path / job.name, model)
        write_json(tmp_path / job.name / "training.json", {"seconds": 0.0})

    monkeypatch.setattr(recsys.reward.training, "_fit", published)
    train(prepared, tmp_path, config(held_out_model=SMALL["model"]))
    assert len(starts) == 2
    assert not torch.isclose(starts[0], starts[1]).any()
