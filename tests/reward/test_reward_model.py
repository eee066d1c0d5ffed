"""The reward model: padding, batching and order of users change nothing; its loss by hand; files that do not fit."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.contracts.columns import TEST, TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.data.item_catalogue import ItemCatalogue
from recsys.reward.calibration import calibrate
from recsys.reward.checkpoint import load_reward_model, save_reward_model
from recsys.reward.config import CombinationConfig, FeedbackConfig, RewardConfig, RewardModelConfig, RewardTrainConfig
from recsys.reward.evaluate import evaluate_reward_models
from recsys.reward.feedback.dataset import SessionFeedback, session_feedback
from recsys.reward.loss import reward_loss
from recsys.reward.match_attention import ItemRelations, Likeness, MatchAttention
from recsys.reward.model import RewardScores, SessionRewardModel
from recsys.reward.module import FeedbackDataset, RewardModule
from recsys.reward.scoring import rank_by_reward, reward_sessions, score_sessions
from recsys.reward.training import RewardInputs, build_reward_model
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.dataset import toy_ids
from tests.toy.reward import colour_prepared

ITEMS = 24
SHAPE = {"width": 16, "num_heads": 2, "ffn_width": 32, "tower_width": 8, "max_history": 6, "init_std": 0.5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return colour_prepared(tmp_path_factory.mktemp("colours"), users=40, items=ITEMS)


def colour_ids() -> SemanticIds:
    """First code: the colour."""
    return toy_ids(np.stack([np.arange(ITEMS) % 4, np.arange(ITEMS) // 4], 1), (4, 6))


def random_model(
    prepared: Dataset, *, max_items: int = 4, combination: Mapping[str, Any] | None = None, **shape: object
) -> SessionRewardModel:
    torch.manual_seed(3)
    config = RewardConfig(
        combination=CombinationConfig(**(combination or {})),
        feedback=FeedbackConfig(max_items=max_items),
        model=RewardModelConfig(**{**SHAPE, **shape}),
    )
    feedback = session_feedback(prepared, config.feedback)
    embeddings = np.random.default_rng(0).normal(size=(ITEMS, 5))
    inputs = RewardInputs(prepared, colour_ids(), config, seed=0, item_embeddings=embeddings)
    model = build_reward_model(inputs, feedback, feedback, config.model)
    for name, parameter in model.named_parameters():  # what starts at zero would hide mistakes
        if "relation" in name or "cosine" in name or "down" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def histories_of(prepared: Dataset, count: int = 8) -> Histories:
    """Of different lengths, one of them empty."""
    histories = Histories.from_targets(prepared.history, prepared.all_users()).take(np.arange(count))
    end = np.minimum(histories.end, histories.start + np.arange(count))
    arrays = (histories.item, histories.behaviour, histories.gap, histories.watch)
    return Histories(histories.user_index, histories.start, end, *arrays)


def test_relations_by_hand() -> None:
    """Codes (0, 1), (0, 2), (1, 1), author 3 3 0, category 0 2 2 of rows 1, 2, 3; L = 2, number 1 + 4 depth + 2 a + c.

    1-1: same item, depth 3, author, category unknown: 1 + 12 + 2 = 15. 1-2: one code, author: 1 + 4 + 2 = 7.
    1-3: nothing (the second code alone does not count, unknown equals nothing): 1. 2-3: category: 2. Padding: 0.
    """
    codes = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 1]])
    catalogue = ItemCatalogue(codes, torch.tensor([0, 3, 3, 0]), torch.tensor([0, 0, 2, 2]))
    relations = ItemRelations(catalogue, None)
    found = relations.number(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 2, 3, 0]]))
    assert found.tolist() == [[[15, 7, 1, 0], [7, 16, 2, 0], [0, 0, 0, 0]]]
    assert relations.count == 17


def test_match_attention_by_hand() -> None:
    """All projections of queries and keys zero, out the identity: scores are bias[relation] + gain * cosine.

    Relations 0 and 1 with bias 0 and ln 3, cosines 0: weights 1/4, 3/4. Values v are 0; value[1] = (4, 8), so the result is
    3/4 (4, 8) = (3, 6). With cosines 1 and 0, gain ln 3 the weights are equal, and direction (2, 2) adds 1/2 (2, 2).
    """
    torch.manual_seed(0)
    attention = MatchAttention(2, 1, 2, with_cosine=True)
    for parameter in attention.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.eye_(attention.out.weight)
    with torch.no_grad():
        attention.relation_bias_RA[1] = np.log(3)
        attention.relation_value_RD[1] = torch.tensor([4.0, 8.0])
    x = torch.randn(1, 1, 2)
    keys_values = attention.keys_values(torch.randn(1, 2, 2))
    visible = torch.ones(1, 1, 2, dtype=torch.bool)
    numbers = torch.tensor([[[0, 1]]])
    found = attention(x, keys_values, Likeness(numbers, torch.zeros(1, 1, 2)), visible)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 6.0]]]))
    with torch.no_grad():
        attention.cosine_gain_A[0] = np.log(3)
        attention.cosine_direction_D[:] = 2.0
    found = attention(x, keys_values, Likeness(numbers, torch.tensor([[[1.0, 0.0]]])), visible)
    torch.testing.assert_close(found, torch.tensor([[[0.5 * 4 + 1, 0.5 * 8 + 1]]]))


def test_loss_by_hand() -> None:
    """Logit 0 against 0.25: ln 2. Logit ln 3 (p = 3/4) against 1: ln 4/3. The tower's mean over known labels of each:
    tower 1: (ln 2 + ln 4/3) / 2 = 0.4904; tower 2 knows one label, 0 at logit 0: ln 2. The fused tower at logit 0 costs
    ln 2 per label, whatever the labels: weights 1 and -2 give 3 ln 2."""
    logits = torch.tensor([[[0.0, 5.0]], [[np.log(3.0), 0.0]]])
    labels = torch.tensor([[[0.25, torch.nan]], [[1.0, 0.0]]])
    weights = torch.tensor([1.0, -2.0])
    expected = (np.log(2) + np.log(4 / 3)) / 2 + np.log(2)
    assert reward_loss(RewardScores(logits, None), labels, weights).item() == pytest.approx(expected, abs=1e-6)
    fused = RewardScores(logits, torch.zeros(2, 1, requires_grad=True))
    assert reward_loss(fused, labels, weights).item() == pytest.approx(expected + 3 * np.log(2), abs=1e-6)


def test_the_fused_tower_learns_less_of_what_has_a_negative_weight() -> None:
    """A label of 1 for a tower of negative weight pushes the fused logit down: gradient p - (1 - y) = 0.5 > 0."""
    logit = torch.zeros(1, 1, requires_grad=True)
    scores = RewardScores(torch.zeros(1, 1, 1), logit)
    reward_loss(scores, torch.ones(1, 1, 1), torch.tensor([-1.0])).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_padding_batches_and_neighbours_change_nothing(prepared: Dataset, fused: bool) -> None:
    model = random_model(prepared, fused_tower=fused)
    histories = histories_of(prepared)
    items = np.random.default_rng(1).integers(0, ITEMS, (8, 5, 3))
    together = score_sessions(model, histories, items)
    padded = score_sessions(model, histories, np.pad(items, ((0, 0), (0, 1), (0, 1)), constant_values=-1))
    np.testing.assert_allclose(padded.logits[:, :5], together.logits, atol=1e-5)
    assert np.isnan(padded.logits[:, 5]).all()
    for row in range(8):
        for candidate in range(5):
            one = items[row : row + 1, candidate : candidate + 1]
            alone = score_sessions(model, histories.take(np.array([row])), one)
            np.testing.assert_allclose(alone.logits[0, 0], together.logits[row, candidate], atol=1e-5)
            if fused:
                assert alone.fused is not None
                assert together.fused is not None
                np.testing.assert_allclose(alone.fused[0, 0], together.fused[row, candidate], atol=1e-5)


def test_history_items_and_their_order_count(prepared: Dataset) -> None:
    model = random_model(prepared)
    histories = histories_of(prepared)
    items = np.random.default_rng(1).integers(0, ITEMS, (8, 1, 3))
    items[..., 1] = (items[..., 0] + 1) % ITEMS
    base = score_sessions(model, histories, items).logits
    assert np.abs(base - score_sessions(model, histories, items[..., ::-1]).logits).max() > 1e-3
    other = histories.take(np.roll(np.arange(8), 1))
    assert np.abs(base - score_sessions(model, other, items).logits).max() > 1e-3


def test_a_long_history_is_read_from_its_end(prepared: Dataset) -> None:
    model = random_model(prepared)
    whole = Histories.from_targets(prepared.history, prepared.all_users())
    assert (whole.lengths > 6).any()
    arrays = (whole.item, whole.behaviour, whole.gap, whole.watch)
    recent = Histories(whole.user_index, np.maximum(whole.start, whole.end - 6), whole.end, *arrays)
    items = np.zeros((len(whole), 1, 2), np.int64)
    np.testing.assert_array_equal(
        score_sessions(model, whole, items).logits, score_sessions(model, recent, items).logits
    )


def test_an_untrained_model_predicts_the_base_rates(prepared: Dataset) -> None:
    torch.manual_seed(0)
    config = RewardConfig(model=RewardModelConfig(**SHAPE, item_embeddings=False))
    feedback = session_feedback(prepared, config.feedback)
    inputs = RewardInputs(prepared, colour_ids(), config, seed=0)
    model = build_reward_model(inputs, feedback, feedback, config.model).eval()
    found = score_sessions(model, histories_of(prepared), np.zeros((8, 1, 2), np.int64)).probabilities
    np.testing.assert_allclose(found, np.broadcast_to(np.array(model.spec.base_rates), found.shape), atol=1e-5)


def test_second_stage_ranks_items_as_sessions_of_one(prepared: Dataset) -> None:
    model = random_model(prepared)
    histories = histories_of(prepared)
    items = np.random.default_rng(2).integers(0, ITEMS, (8, 6))
    items[0, 4:] = -1
    ranked = rank_by_reward(model, histories, items)
    np.testing.assert_allclose(ranked, reward_sessions(model, histories, items[:, :, None]), atol=1e-6)
    assert (ranked[0, 4:] == -np.inf).all()
    assert np.isfinite(ranked[0, :4]).all()
    like_only = rank_by_reward(model, histories, items, {"swt": 0.0, "vtr": 0.0}, "raw")
    place = model.spec.names.index("ltr")
    likes = score_sessions(model, histories, items[:, :, None]).probabilities[:, :, place]
    np.testing.assert_allclose(like_only[1:], likes[1:], atol=1e-6)
    by_request = np.zeros((8, 3))
    by_request[:, place] = 1.0
    np.testing.assert_allclose(rank_by_reward(model, histories, items, by_request, "raw"), like_only, atol=1e-6)


def test_saved_and_loaded_it_is_the_same_and_frozen(prepared: Dataset, tmp_path: Path) -> None:
    model = random_model(prepared, fused_tower=True)
    save_reward_model(tmp_path / "reward", model)
    assert sorted(path.name for path in (tmp_path / "reward").iterdir()) == ["model.safetensors", "reward_model.json"]
    loaded = load_reward_model(tmp_path / "reward", colour_ids().digest)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    items = np.random.default_rng(1).integers(0, ITEMS, (8, 5, 3))
    first, second = (score_sessions(m, histories_of(prepared), items) for m in (model, loaded))
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.fused, second.fused)


def test_refusals(prepared: Dataset, tmp_path: Path) -> None:
    model = random_model(prepared)
    histories = histories_of(prepared)
    with pytest.raises(DataError, match="expected -1 to 23"):
        score_sessions(model, histories, np.full((8, 1, 1), 24))
    with pytest.raises(DataError, match="at most 4 items"):
        score_sessions(model, histories, np.zeros((8, 1, 5), np.int64))
    with pytest.raises(ValueError, match="this reward model reads 6"):
        model.encode(collate_histories(Histories.from_targets(prepared.history, prepared.all_users()), 50))
    with pytest.raises(ConfigError, match="needs a model with fused_tower"):
        reward_sessions(model, histories, np.zeros((8, 1, 1), np.int64), mode="fused")
    with pytest.raises(ConfigError, match="follows is no tower"):
        reward_sessions(model, histories, np.zeros((8, 1, 1), np.int64), {"follows": 1.0})
    with pytest.raises(ArtifactError, match="does not exist"):
        load_reward_model(tmp_path / "nowhere", None)
    save_reward_model(tmp_path / "reward", model)
    with pytest.raises(ArtifactError, match=r"trained with semantic IDs .* run `reward` again"):
        load_reward_model(tmp_path / "reward", "0" * 64)
    earlier = load_reward_model(tmp_path / "reward", "0" * 64, allow_grown={model.spec.semantic_id_digest})
    assert earlier.spec == model.spec
    (tmp_path / "reward" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_reward_model(tmp_path / "reward", None)
    feedback = session_feedback(prepared, FeedbackConfig())
    config = RewardConfig(combination=CombinationConfig(weights={"wtr": 1.0}))
    with pytest.raises(ConfigError, match=r"reward.combination.weights: wtr is no tower"):
        build_reward_model(RewardInputs(prepared, colour_ids(), config, seed=0), feedback, feedback, config.model)
    with pytest.raises(ConfigError, match="no item embeddings were given"):
        build_reward_model(
            RewardInputs(prepared, colour_ids(), RewardConfig(), seed=0), feedback, feedback, RewardModelConfig()
        )


def test_item_rates_come_from_train_sessions_of_other_users_alone(prepared: Dataset) -> None:
    """Rates that a session is part of would tell its label: the model would learn to read them and nothing else."""
    config = RewardConfig(model=RewardModelConfig(**SHAPE, item_embeddings=False))
    feedback = session_feedback(prepared, config.feedback)
    first = np.arange(40) < 20
    inputs = RewardInputs(prepared, colour_ids(), config, seed=0)

    def rates(own: SessionFeedback, others: SessionFeedback) -> torch.Tensor:
        return build_reward_model(inputs, own, others, config.model).item_rates_IT

    own, others = feedback.of_users(first), feedback.of_users(~first)
    expected = rates(own, others)
    assert expected[1:].abs().max() > 0.1
    assert (expected[0] == 0).all()
    torch.testing.assert_close(rates(others, others), expected)
    torch.testing.assert_close(rates(own, others.of(TRAIN)), expected)
    assert (rates(own, own) - expected).abs().max() > 0.1


def test_what_is_calibrated_again_stays_calibrated(prepared: Dataset) -> None:
    """Labels are sigmoid(2 x - 1/2) of a fresh model's logits. These come through scale and shift: a second fit finds
    nothing to change, and one on a model that was turned by hand finds the same answers."""
    sessions = session_feedback(prepared, FeedbackConfig(max_items=4)).of(TRAIN)
    asked = (sessions.histories, sessions.padded_items(4)[:, None])
    wanted = 2.0 * score_sessions(random_model(prepared), *asked).logits - 0.5
    sessions = replace(sessions, labels=1.0 / (1.0 + np.exp(-wanted[:, 0])))
    for scale, shift in ((1.0, 0.0), (1.25, 1.0)):
        model = random_model(prepared)
        model.scale_T.fill_(scale)
        model.shift_T.fill_(shift)
        for _ in range(2):
            calibrate(model, sessions)
            found = score_sessions(model, *asked).probabilities[:, 0]
            np.testing.assert_allclose(found, sessions.labels, atol=5e-3)


def test_the_validation_loss_does_not_depend_on_batches(prepared: Dataset) -> None:
    """One batch of all sessions, and batches of 5 and the rest: the mean is over known labels, of which batches have
    different numbers."""
    sessions = session_feedback(prepared, FeedbackConfig(max_items=4))
    sessions.labels[::3, 1] = np.nan
    rows, everything = FeedbackDataset(sessions, 4, 6), np.arange(len(sessions))
    found = []
    for cuts in ([], [5], [1, 40]):
        module, seen = RewardModule(random_model(prepared), RewardTrainConfig(), total_steps=10), {}
        module.log = lambda name, value, seen=seen, **_: seen.update({name: float(value)})  # type: ignore[method-assign]
        for number, part in enumerate(np.split(everything, cuts)):
            module.validation_step(rows.collate(part), number)
        module.on_validation_epoch_end()
        found.append(seen)
    batch = rows.collate(everything)
    with torch.no_grad():
        expected = reward_loss(
            module.model.score(batch.history, batch.items_BNM), batch.labels_BNT, torch.ones(len(sessions.names))
        )
    for seen in found:
        assert seen["valid/bce"] == pytest.approx(expected.item(), rel=1e-5)


def test_new_users_are_those_who_did_not_train_the_model(prepared: Dataset) -> None:
    """A quarter of the users trained it: their sessions are among all, and not among the new ones."""
    feedback = session_feedback(prepared, FeedbackConfig(max_items=4))
    trained = np.arange(prepared.spec.num_users) % 4 == 0
    report = evaluate_reward_models(
        {"reward": random_model(prepared)}, feedback, {"reward": trained}, resamples=5, bins=3, seed=0
    )
    test = feedback.of(TEST)
    rows = report.metrics.filter(
        (pl.col("tower") == "vtr") & (pl.col("system") == "model") & (pl.col("metric") == "auc")
    )
    assert dict(rows.select("users", "sessions").iter_rows()) == {
        "all": len(test),
        "new": int((~trained[test.user_index]).sum()),
    }
