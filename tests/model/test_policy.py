"""The policy: causality, equality of its training forms, and of stepwise and whole decoding."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.config import PRESETS, ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.summary import summarise
from recsys.training.fit import build_policy
from recsys.training.losses import dense_loss, next_token_loss
from tests.toy.dataset import ring_ids, ring_prepared

SMALL = {
    "width": 16,
    "num_heads": 2,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 6,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "init_std": 0.3,
}


@pytest.fixture
def prepared(tmp_path: Path):
    return ring_prepared(tmp_path / "data")


def policy_for(prepared, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(3)
    return build_policy(prepared, ring_ids(), ModelConfig(**{**SMALL, **changes}), None)


def losses(policy: GenerativeRecommender, batch: TrainingBatch) -> tuple[torch.Tensor, int]:
    """Next-token plus dense loss, summed over targets."""
    hidden, query = policy(batch)
    asked = batch.target_BPM > 0
    log_probs = policy.code_log_probs(hidden[asked], batch.target_BPM[asked])
    count = int(asked.sum())
    dense = dense_loss(query[asked[..., 0]], policy.item_vectors(), batch.target_BPM[asked])
    return (next_token_loss(-log_probs, "sum") + dense) * count, count


def test_all_prefix_training_equals_one_pair_per_target_in_loss_and_gradients(prepared) -> None:
    """One pass over a user's sequence is the sum over its (history, target) pairs, to rounding."""
    policy = policy_for(prepared, max_history=20)
    windows = PrefixWindows.from_dataset(prepared, 20)
    pairs = TargetRows.from_dataset(prepared, 20)
    together, count = losses(policy, windows.collate(np.arange(len(windows))))
    grads = torch.autograd.grad(together, list(policy.parameters()), allow_unused=True)
    apart, expanded = losses(policy, pairs.collate(np.arange(len(pairs))))
    expanded_grads = torch.autograd.grad(apart, list(policy.parameters()), allow_unused=True)
    assert count == expanded == int((prepared.history.train_end - prepared.history.offsets[:-1]).sum())
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-3)
    for a, b in zip(grads, expanded_grads, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


def test_long_users_are_cut_into_windows_that_supervise_every_event_once(prepared) -> None:
    windows = PrefixWindows.from_dataset(prepared, 3)
    targets = np.concatenate([np.arange(a, b) for a, b in zip(windows.first_target, windows.end, strict=True)])
    expected = np.concatenate(
        [np.arange(a, b) for a, b in zip(prepared.history.offsets[:-1], prepared.history.train_end, strict=True)]
    )
    assert sorted(targets) == sorted(expected)
    assert (windows.end - windows.start <= 4).all()


def test_windows_overlap_by_half_by_hand() -> None:
    """Windows of 4 events step by 2: 7 events are read as [0, 4), [2, 6), [4, 7), asked from events 0, 4 and 6 on."""
    history = SimpleNamespace(offsets=np.array([0, 7]), train_end=np.array([7]))
    windows = PrefixWindows.from_dataset(SimpleNamespace(history=history), max_history=3)  # type: ignore[arg-type]
    assert windows.start.tolist() == [0, 2, 4]
    assert windows.end.tolist() == [4, 6, 7]
    assert windows.first_target.tolist() == [0, 4, 6]


def test_a_prediction_never_sees_its_target_or_anything_later(prepared) -> None:
    policy = policy_for(prepared)
    batch = PrefixWindows.from_dataset(prepared, 6).collate(np.arange(4))
    before, _ = policy(batch)
    changed_items = batch.history.item_BH.clone()
    changed_items[:, 3:] = 1 + changed_items[:, 3:] % 12
    changed = TrainingBatch(
        type(batch.history)(**{**batch.history.__dict__, "item_BH": changed_items}), batch.target_BPM, batch.visible_BP
    )
    after, _ = policy(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


def test_an_item_of_a_session_does_not_see_later_items(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path, task="session", session_length=3)
    policy = policy_for(prepared, encoder_attention="bidirectional")
    batch = TargetRows.from_dataset(prepared, 6).collate(np.arange(5))
    before, _ = policy(batch)
    targets = batch.target_BPM.clone()
    targets[..., 1] = 1 + targets[..., 1] % 12
    after, _ = policy(TrainingBatch(batch.history, targets, batch.visible_BP))
    torch.testing.assert_close(before[:, :, 0], after[:, :, 0])
    torch.testing.assert_close(before[:, :, 1, 0], after[:, :, 1, 0])  # BOS of item 2 sees item 1 only
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-3


def test_padding_changes_nothing(prepared) -> None:
    for attention in ("causal", "bidirectional"):
        policy = policy_for(prepared, encoder_attention=attention).eval()
        histories = Histories.from_targets(prepared.history, prepared.all_users())
        together = policy.start(collate_histories(histories, 6))
        alone = policy.start(collate_histories(histories.take(np.array([2])), 4))
        shorter = policy.start(collate_histories(histories.take(np.array([2])), 6))
        torch.testing.assert_close(together.dense_query_BD[2:3], shorter.dense_query_BD, atol=1e-5, rtol=1e-4)
        assert (alone.dense_query_BD - shorter.dense_query_BD).abs().max() > 1e-4


@pytest.mark.parametrize("session_length", [1, 3])
def test_steps_with_a_cache_equal_teacher_forcing(tmp_path: Path, session_length: int) -> None:
    task = "session" if session_length > 1 else "next_item"
    prepared = ring_prepared(tmp_path, task=task, session_length=session_length)
    policy = policy_for(prepared, encoder_attention="bidirectional").eval()
    batch = TargetRows.from_dataset(prepared, 6).collate(np.arange(7))
    with torch.no_grad():
        whole = policy.code_log_probs(policy(batch)[0], batch.target_BPM)[:, 0]
        state = policy.start(batch.history)
        codes = policy.item_tower.codes_IL[batch.target_BPM[:, 0]]
        fed = None
        for item in range(session_length):
            for level in range(policy.num_levels):
                log_probs = policy.next_codes(state, fed)
                fed = codes[:, item, level, None]
                picked = log_probs[:, 0].gather(1, fed)[:, 0]
                torch.testing.assert_close(picked, whole[:, item, level], atol=1e-5, rtol=1e-4)
            if item < session_length - 1:
                assert policy.next_codes(state, fed) is None
                fed = None


def test_code_probabilities_of_the_whole_catalogue_sum_to_one(prepared) -> None:
    """The 12 items are all 3 x 4 codes, so their probabilities are a distribution."""
    policy = policy_for(prepared).eval()
    row = TargetRows.from_dataset(prepared, 6).collate(np.array([5]))
    items = torch.arange(1, 13)[:, None, None]
    history = row.history.take(torch.zeros(12, dtype=torch.int64))
    log_probs = policy.log_prob(TrainingBatch(history, items, row.visible_BP.expand(12, 1)))
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_checkpoint_round_trip_and_refusal_of_other_semantic_ids(prepared, tmp_path: Path) -> None:
    policy = policy_for(prepared).eval()
    save_policy(tmp_path / "model", policy)
    again = load_policy(tmp_path / "model", policy.spec.semantic_id_digest)
    batch = TargetRows.from_dataset(prepared, 6).collate(np.arange(9))
    assert torch.equal(policy.log_prob(batch), again.log_prob(batch))
    with pytest.raises(ArtifactError, match="trained with semantic IDs"):
        load_policy(tmp_path / "model", "0" * 64)
    with pytest.raises(ArtifactError, match="trained with semantic IDs"):
        load_policy(tmp_path / "model", "0" * 64, allow_grown=["1" * 64])
    earlier = load_policy(tmp_path / "model", "0" * 64, allow_grown=["1" * 64, policy.spec.semantic_id_digest])
    assert earlier.spec == policy.spec
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_policy(tmp_path / "model")


def test_config_refuses_what_cannot_be_built() -> None:
    with pytest.raises(ValidationError, match="multiple of num_heads"):
        ModelConfig(width=10, num_heads=4)
    with pytest.raises(ValidationError, match="cannot tell items apart"):
        ModelConfig(features=("gap",))
    assert ModelConfig(preset="paper_v1").num_experts == 24


def test_bfloat16_experts_need_rows_of_whole_16_bytes() -> None:
    odd = ModelConfig(width=12, num_heads=2, expert_width=12)
    with pytest.raises(ConfigError, match=r"train.precision asks for bfloat16, and model.width is 12.*multiples of 8"):
        odd.check_bfloat16("train.precision")
    odd.model_copy(update={"num_experts": 1}).check_bfloat16("train.precision")
    for preset in PRESETS:
        ModelConfig.model_validate({"preset": preset}).check_bfloat16("train.precision")


def test_summary_counts_by_hand(prepared) -> None:
    """Active parameters are all but tables and the two idle experts of two layers, 3 * 16 * 16 parameters each."""
    policy = policy_for(prepared)
    sizes = summarise(policy)
    assert sizes.total == sum(p.numel() for p in policy.parameters())
    assert sizes.total - sizes.tables - sizes.active == 2 * 2 * 3 * 16 * 16


def test_unseen_users_have_rows_of_their_own(prepared) -> None:
    """4 reserved rows stand behind the known users; two users that were never met get different states."""
    policy = policy_for(prepared, features=("item", "user"), unseen_user_rows=4).eval()
    users = prepared.spec.num_users
    assert policy.tables.weight("user").shape[0] == users + 1 + 4
    history = TargetRows.from_dataset(prepared, 6).collate(np.array([5, 5])).history
    history = dataclasses.replace(history, user_B=torch.tensor([users + 1, users + 3]))
    first, second = policy.start(history).dense_query_BD
    assert not torch.allclose(first, second)
