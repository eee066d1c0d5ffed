"""The tasks between titles and codes, each against a plain forward pass of the ordinary transformers model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.contracts.errors import ConfigError
from recsys.data.samples import PrefixWindows
from recsys.language_model.auxiliary import drawn_items, id_to_title, title_to_id, titles_to_id
from recsys.language_model.language_policy import LanguagePolicy
from recsys.language_model.transformers_form import transformers_model
from recsys.language_model.vocabulary import ANSWER, START, TITLE
from tests.toy.builders import item_table
from tests.toy.language_model import language_policy_for, ring_world

TASKS = {"title_to_id": 1.0, "id_to_title": 0.5, "titles_to_id": 0.25, "items_per_step": 3}


def policy_for(folder: Path, **model: Any) -> LanguagePolicy:
    return language_policy_for(
        ring_world(folder), softmax="vocabulary", instruction="likes: ", title_tokens=7, auxiliary=TASKS, model=model
    )


def cross_entropy(policy: LanguagePolicy, prompt: list[int], answer: list[int]) -> list[float]:
    """Minus the log-probability of each token of an answer behind a prompt."""
    with torch.no_grad():
        logits = transformers_model(policy)(input_ids=torch.tensor([prompt + answer])).logits[0]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [-log_probs[place, token].item() for place, token in enumerate(answer)]


def test_title_to_id_and_back(tmp_path: Path) -> None:
    """Items 4 and 11: "item 4" and "item 11", the second cut to 7 bytes, which it has."""
    policy = policy_for(tmp_path)
    rows = torch.tensor([5, 12])
    start, answer, title = (policy.vocabulary.mark(mark) for mark in (START, ANSWER, TITLE))
    codes = policy.vocabulary.code_tokens(policy.item_tower.codes_IL[rows]).tolist()
    texts = [list(b"item 4"), list(b"item 11")]
    to_codes = [sum(cross_entropy(policy, [start, *t, answer], c)) for t, c in zip(texts, codes, strict=True)]
    to_title = [
        np.mean(cross_entropy(policy, [start, *c, title], [*t, start])) for t, c in zip(texts, codes, strict=True)
    ]
    np.testing.assert_allclose(title_to_id(policy, rows).detach().numpy(), to_codes, rtol=1e-4)
    np.testing.assert_allclose(id_to_title(policy, rows).detach().numpy(), to_title, rtol=1e-4)


def test_a_history_of_titles(tmp_path: Path) -> None:
    policy = policy_for(tmp_path)
    dataset = ring_world(tmp_path / "again")
    windows = PrefixWindows.from_dataset(dataset, 6)
    batch = windows.collate(np.arange(1))
    losses = titles_to_id(policy, batch)
    items, targets = batch.history.item_BH[0].tolist(), batch.target_BPM[0, :, 0].tolist()
    header = [policy.vocabulary.mark(START), *b"likes: "]
    told = [token for row in items[:2] for token in f"item {row - 1}".encode()]
    codes = policy.vocabulary.code_tokens(policy.item_tower.codes_IL[targets[2]]).tolist()
    expected = sum(cross_entropy(policy, [*header, *told, policy.vocabulary.mark(ANSWER)], codes))
    assert losses[2].item() == pytest.approx(expected, rel=1e-4)
    assert len(losses) == sum(target > 0 for target in targets)


def test_a_history_of_titles_hears_what_the_row_says(tmp_path: Path) -> None:
    """A row that says something asks only for what it names, and without the sentence that would seem to be anything."""
    policy = policy_for(tmp_path, words={"fields": ["category"]})
    assert policy.encoder.first_word is not None
    batch = PrefixWindows.from_dataset(ring_world(tmp_path / "again"), 6).collate(np.arange(1))
    batch = replace(batch, history=replace(batch.history, words_BT=torch.tensor([[2, 1, 0]])))
    items, target = batch.history.item_BH[0].tolist(), int(batch.target_BPM[0, 2, 0])
    first = policy.vocabulary.mark(policy.encoder.first_word)
    header = [policy.vocabulary.mark(START), *b"likes: ", first + 1, first]
    told = [token for row in items[:2] for token in f"item {row - 1}".encode()]
    codes = policy.vocabulary.code_tokens(policy.item_tower.codes_IL[target]).tolist()
    expected = sum(cross_entropy(policy, [*header, *told, policy.vocabulary.mark(ANSWER)], codes))
    assert titles_to_id(policy, batch)[2].item() == pytest.approx(expected, rel=1e-4)


def test_weights_and_counts_reach_the_loss(tmp_path: Path) -> None:
    policy = policy_for(tmp_path).train()
    batch = PrefixWindows.from_dataset(ring_world(tmp_path / "again"), 6).collate(np.arange(2))
    losses = policy.auxiliary_losses(batch)
    assert {name: (loss.count, loss.weight) for name, loss in losses.items()} == {
        "title_to_id": (3, 1.0),
        "id_to_title": (3, 0.5),
        "titles_to_id": (len(batch.asked.item_N), 0.25),
    }
    torch.stack([loss.mean for loss in losses.values()]).sum().backward()
    assert policy.vocabulary.text.weight.grad is not None
    assert language_policy_for(ring_world(tmp_path / "plain")).auxiliary_losses(batch) == {}


def test_only_items_with_a_title_are_drawn(tmp_path: Path) -> None:
    policy = policy_for(tmp_path)
    policy.title_IT[1:15] = -1
    assert set(drawn_items(policy, 200).tolist()) == set(range(15, 21))


def test_titles_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    dataset = ring_world(tmp_path)
    dataset.__dict__["items"] = item_table(20)
    with pytest.raises(ConfigError, match="no item of this data set has one"):
        language_policy_for(dataset, auxiliary=TASKS)
