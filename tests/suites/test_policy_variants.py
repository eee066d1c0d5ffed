"""What every encoder with every decoder must keep: exact search, equal stepwise and whole decoding, learning, saving."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy, training_form
from recsys.training.losses import next_token_loss
from tests.toy.dataset import ring_prepared, toy_ids
from tests.toy.language_model import SHAPE

BASE = {
    "width": 16,
    "num_heads": 4,
    "num_decoder_layers": 2,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 6,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "init_std": 0.5,
}
PATHWAYS = {
    "encoder": "pathways",
    "encoder_attention": "bidirectional",
    "short_events": 2,
    "positive_events": 3,
    "lifelong_queries": 2,
    "lifelong_layers": 1,
}
LAZY = {"decoder": "lazy", "num_dense_blocks": 1, "kv_groups": 2}
LANGUAGE = {"backbone": "llm", "features": ("codes", "behaviour"), "language_model": {"shape": {**SHAPE}}}
UNTIED = {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False}
TITLES = {"titles": True, "title_tokens": 6, "instruction": "likes: ", "softmax": "vocabulary"}
VARIANTS = {
    "standard": {},
    "bidirectional": {"encoder_attention": "bidirectional"},
    "pathways": PATHWAYS,
    "lazy": {**LAZY, "num_encoder_layers": 0},
    "lazy with an encoder": {**LAZY, "kv_layers": 2, "kv_split": 2, "num_shared_experts": 1},
    "lazy over pathways": {**PATHWAYS, **LAZY, "num_encoder_layers": 1},
    "language model": {**LANGUAGE, "language_model": {"shape": {**SHAPE, "tie_word_embeddings": True}}},
    "language model with titles": {**LANGUAGE, "language_model": {"shape": {**SHAPE, **UNTIED}, **TITLES}},
}


@pytest.mark.parametrize("option", ["backbone", "encoder", "encoder_attention", "decoder", "kv_split"])
def test_every_choice_of_the_configuration_is_in_the_suite(option: str) -> None:
    choices = get_args(ModelConfig.model_fields[option].annotation)
    chosen = {getattr(ModelConfig.model_validate({**BASE, **variant}), option) for variant in VARIANTS.values()}
    assert chosen == set(choices)


variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=12, items=20)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("sessions"), users=6, items=20, task="session", session_length=2)


def ids() -> SemanticIds:
    """20 items on 3 x 4 x 3 codes, unevenly."""
    places = np.arange(20)
    return toy_ids(np.stack([places // 7, places % 7 // 2, places % 2 + places % 7 // 6], 1), (3, 4, 3))


def policy_for(prepared: Dataset, variant: str, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(2)
    config = ModelConfig.model_validate({**BASE, **VARIANTS[variant], **changes})
    return build_policy(prepared, ids(), config, None).eval()


def histories_of(prepared: Dataset) -> Histories:
    """All users' histories, and one that is empty."""
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    events = (histories.item, histories.behaviour, histories.gap, histories.watch)
    start, end = histories.start, histories.end.copy()
    end[0] = start[0]
    return Histories(histories.user_index, start, end, *events)


def item_scores(policy: GenerativeRecommender, histories: Histories) -> np.ndarray:
    """Log-probability of every item by teacher forcing: no cache, no index, ``[N, I]``."""
    batch = collate_histories(histories, policy.spec.model.max_history)
    columns = []
    for item in range(policy.spec.dataset.num_items):
        target = torch.full((len(histories), 1, 1), item + 1)
        columns.append(policy.log_prob(TrainingBatch(batch, target, batch.lengths_B[:, None]))[:, 0, 0])
    return torch.stack(columns, 1).detach().numpy()


@variants
def test_full_width_search_equals_scoring_every_item(prepared: Dataset, variant: str) -> None:
    policy = policy_for(prepared, variant)
    histories = histories_of(prepared)
    expected = item_scores(policy, histories)
    found = Recommender(policy, ids(), DecodeConfig(beam_width=20, rescore="none")).recommend(
        histories, 20, exclude_seen=False
    )
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1), atol=1e-4)
    rows = np.arange(len(histories))[:, None]
    np.testing.assert_allclose(expected[rows, found.items], found.scores, atol=1e-4)
    assert np.ptp(expected) > 1.0


@variants
def test_narrow_search_equals_a_search_by_hand(prepared: Dataset, variant: str) -> None:
    """Width 3: prefixes as tuples, a prefix's score from teacher forcing of any item that has it."""
    policy = policy_for(prepared, variant)
    histories = histories_of(prepared)
    batch = collate_histories(histories, 6)
    codes = ids().codes
    found = Recommender(policy, ids(), DecodeConfig(beam_width=3, rescore="none")).recommend(
        histories, 3, exclude_seen=False
    )
    per_level = []
    for item in range(20):
        target = torch.full((len(histories), 1, 1), item + 1)
        hidden, _ = policy(TrainingBatch(batch, target, batch.lengths_B[:, None]))
        per_level.append(policy.code_log_probs(hidden, target)[:, 0, 0].detach().numpy())
    prefix_scores = np.stack(per_level, 1).cumsum(-1)  # [N, I, L]
    for row in range(len(histories)):
        beams: set[tuple[int, ...]] = {()}
        for level in range(3):
            scores = {
                tuple(codes[item][: level + 1]): prefix_scores[row, item, level]
                for item in range(20)
                if tuple(codes[item][:level]) in beams
            }
            beams = set(sorted(scores, key=lambda path: -scores[path])[:3])
        expected = sorted(beams, key=lambda path: -scores[path])
        np.testing.assert_allclose(found.scores[row], [scores[path] for path in expected], atol=1e-4)
        assert [tuple(codes[item]) for item in found.items[row]] == expected


@variants
def test_sessions_carry_their_probabilities(sessions: Dataset, variant: str) -> None:
    policy = policy_for(sessions, variant)
    histories = histories_of(sessions)
    items, scores = Recommender(policy, ids(), DecodeConfig(beam_width=8)).recommend_sessions(histories, 3)
    batch = collate_histories(histories, 6)
    for beam in range(3):
        target = torch.from_numpy(items[:, None, beam] + 1)
        expected = policy.log_prob(TrainingBatch(batch, target, batch.lengths_B[:, None])).sum((1, 2))
        np.testing.assert_allclose(scores[:, beam], expected.detach().numpy(), atol=1e-4)


@variants
def test_a_batch_answers_as_single_users_do(prepared: Dataset, variant: str) -> None:
    recommender = Recommender(policy_for(prepared, variant), ids(), DecodeConfig(beam_width=6))
    histories = histories_of(prepared)
    together = recommender.recommend(histories, 5)
    for row in range(len(histories)):
        alone = recommender.recommend(histories.take(np.array([row])), 5)
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-4)


@variants
def test_it_learns_the_ring(prepared: Dataset, variant: str) -> None:
    """The next item follows from the last one; 60 steps take the loss from about the code entropy to below half of it."""
    policy = policy_for(prepared, variant, init_std=0.05).train()
    form = training_form(prepared, policy.spec.model)
    rows = (PrefixWindows if form == "all_prefixes" else TargetRows).from_dataset(prepared, 6)
    batch = rows.collate(np.arange(len(rows)))
    asked = batch.target_BPM > 0
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    seen = []
    for _ in range(60):
        hidden, _ = policy(batch)
        loss = next_token_loss(policy.code_losses(hidden[asked], batch.target_BPM[asked]), "sum")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    assert seen[0] > 2.5
    assert seen[-1] < seen[0] / 2
    unused = [name for name, weight in policy.named_parameters() if weight.requires_grad and weight.grad is None]
    assert unused == ["dense_query.weight"]  # the dense head has a loss of its own


@variants
def test_a_saved_policy_comes_back(prepared: Dataset, variant: str, tmp_path: Path) -> None:
    policy = policy_for(prepared, variant)
    save_policy(tmp_path, policy)
    again = load_policy(tmp_path, policy.spec.semantic_id_digest)
    assert again.spec == policy.spec
    np.testing.assert_array_equal(
        item_scores(policy, histories_of(prepared)), item_scores(again, histories_of(prepared))
    )
