"""One pass over a prompt and many answers gives what one pass per answer gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.samples import PrefixWindows, TargetRows
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.language_model import prompt
from recsys.language_model.language_policy import LanguagePolicy
from recsys.language_model.transformers_form import padded_prompts, transformers_model
from recsys.language_model.vocabulary import START
from tests.toy.language_model import language_policy_for, ring_ids_of_three_levels, ring_world, uneven_histories

TITLES = {"titles": True, "title_tokens": 5, "instruction": "likes: "}


@pytest.mark.parametrize("settings", [{}, {"softmax": "vocabulary"}, TITLES], ids=["level", "vocabulary", "titles"])
def test_candidates_as_a_tree_and_one_by_one(tmp_path: Path, settings: dict[str, object]) -> None:
    """Six candidates per user, of which some share prefixes, one is doubled and one does not exist."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset, model={"features": ("codes", "behaviour")}, **settings)
    history = collate_histories(uneven_histories(dataset), 6)
    items = torch.tensor([[3, 4, 12, 4, -1, 0]]).expand(len(history), -1).contiguous()
    items[2] = torch.tensor([-1, 19, 18, 17, 3, -1])
    found = candidate_log_probs(policy, history, items[..., None])
    for place in range(items.shape[1]):
        target = items[:, place, None, None].clamp(min=0) + 1
        hidden, _ = policy(TrainingBatch(history, target, history.lengths_B[:, None]))
        expected = policy.code_log_probs(hidden, target)[:, 0]
        exists = items[:, place] >= 0
        torch.testing.assert_close(found.codes[exists, place], expected[exists], atol=1e-5, rtol=1e-4)
    assert not found.mask[:, 4:5][:2].any()


def test_all_prefixes_in_one_pass_are_the_pairs_one_by_one(tmp_path: Path) -> None:
    dataset = ring_world(tmp_path, users=4)
    policy = language_policy_for(dataset, **TITLES)
    windows = PrefixWindows.from_dataset(dataset, 6)
    together = policy.log_prob(windows.collate(np.arange(len(windows))))
    pairs = TargetRows.from_dataset(dataset, 6)
    alone = policy.log_prob(pairs.collate(np.arange(len(pairs))))
    asked = windows.collate(np.arange(len(windows))).target_BPM > 0
    order = np.argsort(windows.user_index, kind="stable")
    assert (np.diff(windows.user_index[order]) > 0).all()  # a window per user, so both are in order of user and time
    torch.testing.assert_close(together[asked], alone[alone != 0], atol=1e-5, rtol=1e-4)


def test_an_answers_hidden_states_are_those_of_transformers(tmp_path: Path) -> None:
    """Log-probabilities by a plain forward pass of the ordinary model over prompt and answer."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset, softmax="vocabulary", **TITLES)
    history = collate_histories(uneven_histories(dataset), 6)
    codes = torch.from_numpy(ring_ids_of_three_levels().codes[[7]].astype(np.int64)).expand(len(history), -1)
    tokens, mask = padded_prompts(policy, history)
    answer = policy.vocabulary.code_tokens(codes)
    everything = torch.cat([tokens, answer], dim=1)
    seen = torch.cat([mask, torch.ones_like(answer)], dim=1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = transformers_model(policy)(input_ids=everything, attention_mask=seen, position_ids=positions).logits
    expected = logits.log_softmax(-1)[:, -4:-1].gather(2, answer[..., None])[..., 0]
    found = candidate_log_probs(policy, history, torch.full((len(history), 1, 1), 7)).codes[:, 0, 0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_prompt_is_read_once_for_all_beams(tmp_path: Path) -> None:
    """Twelve users and 20 beams: the layers see 12 prompts, and then only the newest token of each beam."""

    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset)
    seen: list[tuple[int, ...]] = []
    policy.base.model.layers[0].mlp.register_forward_hook(lambda _, x, __: seen.append(tuple(x[0].shape[:2])))
    histories = Histories.from_targets(dataset.history, dataset.all_users())
    recommender = Recommender(policy, ring_ids_of_three_levels(), DecodeConfig(beam_width=20, rescore="none"))
    recommender.recommend(histories, 20, exclude_seen=False)
    assert seen == [(12, 19), (12, 1), (12, 3), (12, 12)]  # 3 first codes, and places for 3 x 4 prefixes


def test_checkpointing_and_dropout_leave_gradients_and_answers_as_they_are(tmp_path: Path) -> None:
    dataset = ring_world(tmp_path, users=4)
    gradients = []
    for again in (False, True):
        policy: LanguagePolicy = language_policy_for(dataset, gradient_checkpointing=again).train()
        windows = PrefixWindows.from_dataset(dataset, 6)
        policy.log_prob(windows.collate(np.arange(len(windows)))).sum().backward()
        gradients.append({name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    dropping = language_policy_for(dataset, model={"dropout": 0.5, "embedding_dropout": 0.5})
    batch = windows.collate(np.arange(len(windows)))
    torch.testing.assert_close(dropping.log_prob(batch), policy.eval().log_prob(batch))
    dropping.train()
    assert not torch.equal(dropping.log_prob(batch), dropping.log_prob(batch))


def test_a_masked_item_is_not_read_as_another(tmp_path: Path) -> None:
    """Item 0 has the codes 0, 0, 0, which padding has, too; a masked second event has the start mark three times."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset)
    history = collate_histories(Histories.from_targets(dataset.history, dataset.all_users()), 6)
    told, hidden = (
        policy._prompts(replace(history, item_BH=history.item_BH.index_fill(1, torch.tensor([1]), row)))
        for row in (1, 0)
    )
    start, codes = policy.vocabulary.mark(START), policy.vocabulary.code_tokens(policy.item_tower.codes_IL[1])
    assert hidden.token_BS[:, 4:7].tolist() == [[start] * 3] * len(history)
    assert told.token_BS[:, 4:7].tolist() == [codes.tolist()] * len(history)
    others = [place for place in range(told.token_BS.shape[1]) if not 4 <= place < 7]
    assert torch.equal(hidden.token_BS[:, others], told.token_BS[:, others])
    assert torch.equal(hidden.length_BV, told.length_BV)


def test_prompts_of_a_recorded_search_read_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph cannot know how long its titles are: what stands behind a prompt's end is of no account."""
    policy = language_policy_for(ring_world(tmp_path), **TITLES)
    history = collate_histories(uneven_histories(ring_world(tmp_path / "again")), 6)
    policy.title_IT[3:9] = -1
    short = policy._prompts(history)
    plain = policy.next_codes(policy.start(history), None)
    monkeypatch.setattr(prompt, "_is_recorded", lambda tensor: True)
    wide = policy._prompts(history)
    assert wide.token_BS.shape[1] == policy.encoder.longest(history.item_BH.shape[1], 3, 5) > short.token_BS.shape[1]
    assert torch.equal(wide.length_BV, short.length_BV)
    recorded = policy.next_codes(policy.start(history), None)
    assert plain is not None
    assert recorded is not None
    torch.testing.assert_close(recorded, plain)


def test_new_tokens_start_near_the_mean_of_trained_words(tmp_path: Path) -> None:
    """A tenth of the spread around the words' mean: 1.5 and 2.5 become 0.15 + 4 and 0.25 + 4 beside words of mean 4."""
    vocabulary = language_policy_for(ring_world(tmp_path)).vocabulary
    with torch.no_grad():
        vocabulary.text.weight.copy_(
            torch.tensor([3.0, 5.0]).repeat(len(vocabulary.text.weight) // 2)[:, None].expand(-1, 16)
        )
        vocabulary.marks.fill_(1.5)
        vocabulary.codes.weight.fill_(2.5)
    vocabulary.start_near_words()
    torch.testing.assert_close(vocabulary.marks, torch.full_like(vocabulary.marks, 4.15))
    torch.testing.assert_close(vocabulary.codes.weight, torch.full_like(vocabulary.codes.weight, 4.25))
