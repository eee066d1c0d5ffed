"""Roll-outs: groups of legal candidates, by beam and by sampling, and their log-probabilities from one encoder pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.config import RolloutConfig
from recsys.alignment.rollouts.constrained_sampling import ConstrainedSampler
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler, _fill_group
from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.data.samples import TargetRows
from recsys.decoding.prefix_index import PrefixIndex
from tests.toy.alignment import QUIET, next_item_ring, ring_policy, session_ring
from tests.toy.dataset import ring_ids, toy_ids


@pytest.fixture(scope="module", params=["next_item", "session"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    make = next_item_ring if request.param == "next_item" else session_ring
    return make(tmp_path_factory.mktemp(request.param))


def some_requests(prepared: Dataset, count: int = 9) -> Requests:
    return RequestStream(prepared, 6, 16, seed=0).requests(np.arange(count))


def test_shared_encoder_equals_separate_passes_in_loss_and_gradients(prepared: Dataset) -> None:
    """G candidates as G prediction points of one pass against G passes of one candidate each."""
    policy = ring_policy(prepared)
    requests = some_requests(prepared)
    length = prepared.spec.session_length
    items = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (9, 5, length)))
    items[2, 4] = -1
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 5))).float()
    history = collate_histories(requests.histories, 6)

    shared = candidate_log_probs(policy, history, items)
    (shared.sessions * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    separate = [candidate_log_probs(policy, history, items[:, [g]]).sessions for g in range(5)]
    (torch.cat(separate, dim=1) * weights).sum().backward()

    torch.testing.assert_close(shared.sessions, torch.cat(separate, dim=1), atol=1e-5, rtol=1e-5)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3)
    assert shared.sessions[2, 4] == 0
    assert shared.lengths[2].tolist() == [2 * length] * 4 + [0]
    plain = TrainingBatch(history, items[:, :1] + 1, history.lengths_B[:, None])
    torch.testing.assert_close(policy.log_prob(plain).sum(-1)[:, 0], shared.sessions[:, 0], atol=1e-5, rtol=1e-5)


def test_a_beam_is_a_group_of_distinct_legal_candidates_best_first(prepared: Dataset) -> None:
    policy, requests = ring_policy(prepared), some_requests(prepared)
    sampler = RolloutSampler(ring_ids(), RolloutConfig(num_generations=8))
    group = sampler.roll_out(policy, requests, seeded(0))
    assert group.valid.all()
    assert (group.scores.diff(dim=1) <= 1e-6).all()
    for row in group.items.tolist():
        assert len({tuple(session) for session in row}) == 8
        assert all(len(set(session)) == len(session) for session in row)
    codes = torch.from_numpy(ring_ids().codes).long()
    assert torch.equal(group.codes, codes[group.items])
    scored = candidate_log_probs(policy, group.history, group.items)
    torch.testing.assert_close(scored.sessions, group.scores, atol=1e-4, rtol=1e-4)


def test_guided_rollouts_keep_the_log_probability_of_the_policy(prepared: Dataset) -> None:
    """Guided by its own dense head, a group's rewards are compared under the policy's own probabilities, as ever."""
    policy, requests = ring_policy(prepared), some_requests(prepared)
    groups = {
        strength: RolloutSampler(ring_ids(), RolloutConfig(num_generations=8, guided=True, guidance=strength)).roll_out(
            policy, requests, seeded(0)
        )
        for strength in (1e-6, 50.0)
    }
    plain = RolloutSampler(ring_ids(), RolloutConfig(num_generations=8)).roll_out(policy, requests, seeded(0))
    assert torch.equal(groups[1e-6].items, plain.items)
    assert not torch.equal(groups[50.0].items, plain.items)
    scored = candidate_log_probs(policy, groups[50.0].history, groups[50.0].items)
    torch.testing.assert_close(scored.sessions, groups[50.0].scores, atol=1e-4, rtol=1e-4)
    state = policy.start(groups[50.0].history)
    dense = state.dense_query_BD @ policy.item_vectors()[1:].T
    first = [dense[row, group[:, 0, 0]].mean() for row, group in enumerate(groups[50.0].items[:, :, None])]
    others = [dense[row, group[:, 0, 0]].mean() for row, group in enumerate(plain.items[:, :, None])]
    assert sum(first) > sum(others)


def test_only_a_beam_is_guided() -> None:
    with pytest.raises(ValidationError, match="guided needs strategy: beam, not sampling"):
        RolloutConfig(strategy="sampling", guided=True)


def test_targets_travel_with_their_request(prepared: Dataset) -> None:
    """Equal histories may have different targets; each row keeps its own."""
    samples = TargetRows.from_dataset(prepared, 6)
    requests = some_requests(prepared)
    for row in range(len(requests)):
        start, end = samples.targets.item_offsets[row : row + 2]
        assert requests.targets_NM[row].tolist() == samples.targets.items[start:end].tolist()
    group = RolloutSampler(ring_ids(), RolloutConfig(num_generations=3)).roll_out(
        ring_policy(prepared), requests.take(np.array([4, 1])), seeded(0)
    )
    assert torch.equal(group.target, requests.targets_NM[[4, 1]])


def test_a_small_catalogue_gives_fewer_candidates_never_an_illegal_one(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path)
    sampler = RolloutSampler(ring_ids(), RolloutConfig(num_generations=16))
    group = sampler.roll_out(ring_policy(prepared), some_requests(prepared, 2), seeded(0))
    assert group.items.shape == (2, 16, 1)
    assert group.valid.sum(1).tolist() == [12, 12]
    assert sorted(group.items[0, :12, 0].tolist()) == list(range(12))
    assert (group.scores[:, 12:] == -torch.inf).all()


@pytest.mark.parametrize("strategy", ["beam", "sampling", "dynamic"])
def test_seen_items_can_be_left_out(prepared: Dataset, strategy: str) -> None:
    policy, requests = ring_policy(prepared), some_requests(prepared)
    config = RolloutConfig(strategy=strategy, num_generations=6, exclude_seen=True)
    group = RolloutSampler(ring_ids(), config).roll_out(policy, requests, seeded(5))
    for seen, row in zip(requests.histories.seen_items(), group.items, strict=True):
        assert not set(seen.tolist()) & set(row.flatten().tolist())
        assert (row >= 0).all()
        assert all(len(set(session)) == len(session) for session in row.tolist())


def test_samples_follow_the_renormalised_policy(tmp_path: Path) -> None:
    """Codes (i // 4, i % 4) are the whole 3 x 4 grid, so renormalising changes nothing: sampled shares are probabilities."""
    prepared = next_item_ring(tmp_path)
    policy, requests = ring_policy(prepared), some_requests(prepared, 1)
    history = collate_histories(requests.histories, 6)
    sampler = ConstrainedSampler(PrefixIndex.build(ring_ids().codes, (3, 4)))
    items, scores = sampler.sample(policy, history, 20_000, temperature=1.0, generator=seeded(1))
    shares = np.bincount(items.flatten().numpy(), minlength=12) / 20_000
    expected = candidate_log_probs(policy, history, torch.arange(12)[None, :, None]).sessions[0].exp().detach()
    np.testing.assert_allclose(shares, expected.numpy(), atol=0.01)
    torch.testing.assert_close(scores[0, 0].exp(), expected[items[0, 0, 0]], atol=1e-5, rtol=1e-4)
    cold, _ = sampler.sample(policy, history, 50, temperature=1e-3, generator=seeded(1))
    assert set(cold.flatten().tolist()) <= {int(expected.argmax())} | {int(i) for i in expected.topk(2).indices}


def test_samples_are_legal_in_a_sparse_catalogue_and_repeat_with_the_seed(tmp_path: Path) -> None:
    """12 of 8 x 8 codes exist; sessions of 3 different items, of which two prefixes lead to a single item each."""
    prepared = session_ring(tmp_path)
    codes = np.array([[0, i] for i in range(5)] + [[1, i] for i in range(5)] + [[2, 7], [7, 0]])
    ids = toy_ids(codes, (8, 8))
    policy = ring_policy(prepared, seed=0, ids=ids)
    config = RolloutConfig(strategy="sampling", num_generations=40)
    groups = [RolloutSampler(ids, config).roll_out(policy, some_requests(prepared), seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(groups[0].items, groups[1].items)
    assert not torch.equal(groups[0].items, groups[2].items)
    assert groups[0].items.min() >= 0
    assert groups[0].items.max() <= 11
    for session in groups[0].items.flatten(0, 1).tolist():
        assert len(set(session)) == 3
    assert (groups[0].scores.diff(dim=1) <= 0).all()


def test_a_group_of_dynamic_sampling_by_hand() -> None:
    """Draws 4 2 4 9 7 7, target 7: both copies of 7, then 4 (twice drawn), then 2 (more probable than 9), then again."""
    draws = torch.tensor([[4], [2], [4], [9], [7], [7]])
    scores = torch.tensor([-1.0, -1.5, -1.0, -3.0, -2.0, -2.0])
    assert _fill_group(draws, scores, torch.tensor([7]), 4).tolist() == [4, 5, 0, 1]
    assert _fill_group(draws, scores, torch.tensor([5]), 6).tolist() == [0, 4, 1, 3, 0, 4]
    assert _fill_group(torch.full((3, 1), 5), torch.zeros(3), torch.tensor([5]), 2).tolist() == [0, 1]


def test_ground_truth_takes_the_last_place_of_groups_that_lack_it(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path)
    policy, requests = ring_policy(prepared), some_requests(prepared, 40)
    plain = RolloutSampler(ring_ids(), RolloutConfig(num_generations=3)).roll_out(policy, requests, seeded(0))
    config = RolloutConfig(num_generations=3, add_ground_truth=True)
    group = RolloutSampler(ring_ids(), config).roll_out(policy, requests, seeded(0))
    had = (plain.items == plain.target[:, None]).all(-1).any(1)
    assert 0 < int(had.sum()) < 40
    assert torch.equal(group.items[had], plain.items[had])
    assert torch.equal(group.items[~had][:, 2], plain.target[~had])
    assert torch.equal(group.items[~had][:, :2], plain.items[~had][:, :2])
    own = candidate_log_probs(policy, group.history, group.items).sessions.detach()
    torch.testing.assert_close(group.scores, own, atol=1e-4, rtol=1e-4)


def test_many_requests_are_answered_in_blocks_as_in_one(prepared: Dataset) -> None:
    policy, requests = ring_policy(prepared), some_requests(prepared)
    small = RolloutSampler(ring_ids(), RolloutConfig(num_generations=4, rows_per_batch=8))
    items, scores = small.all_items(policy, requests, seeded(0), QUIET)
    whole = RolloutSampler(ring_ids(), RolloutConfig(num_generations=4)).roll_out(policy, requests, seeded(0))
    assert torch.equal(items, whole.items)
    torch.testing.assert_close(scores, whole.scores, atol=1e-5, rtol=1e-5)


def test_refuses_a_policy_of_other_semantic_ids(tmp_path: Path) -> None:
    prepared = next_item_ring(tmp_path)
    other = toy_ids(np.stack([np.arange(12) % 3, np.arange(12) // 3], 1), (3, 4))
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        RolloutSampler(other, RolloutConfig()).roll_out(ring_policy(prepared), some_requests(prepared), seeded(0))


def test_requests_of_a_split_pad_short_sessions(prepared: Dataset) -> None:
    requests = Requests.from_targets(prepared, prepared.targets(VALID))
    assert requests.targets_NM.shape[1] == prepared.spec.session_length
    assert (requests.targets_NM[:, 0] >= 0).all()
    assert (requests.targets_NM[:, 1:] == -1).all()


@pytest.mark.parametrize("make", [next_item_ring, session_ring])
def test_nobodys_candidates_have_log_probabilities_of_their_shape(tmp_path: Path, make) -> None:
    prepared = make(tmp_path)
    policy, length = ring_policy(prepared), prepared.spec.session_length
    history = collate_histories(Histories.from_targets(prepared.history, prepared.targets(1)), 6)
    nobody = history.take(torch.empty(0, dtype=torch.int64))
    scored = candidate_log_probs(policy, nobody, torch.empty(0, 5, length, dtype=torch.int64))
    assert scored.codes.shape == scored.mask.shape == (0, 5, length, 2)
    assert scored.sessions.shape == scored.lengths.shape == (0, 5)


def test_any_step_is_found_again_whatever_was_read_before(tmp_path: Path) -> None:
    """Steps of the second epoch, then of the first: a function of seed and step alone."""
    stream, other = (RequestStream(next_item_ring(tmp_path / name), 6, 64, seed=1) for name in ("a", "b"))
    steps = 2 * stream.steps_for(None)
    forwards = [stream.rows(step).tolist() for step in range(steps)]
    assert [other.rows(step).tolist() for step in reversed(range(steps))] == forwards[::-1]
    assert forwards[: steps // 2] != forwards[steps // 2 :]


def test_requests_of_like_length_are_answered_together(tmp_path: Path) -> None:
    """Histories longer than the policy reads cost as much as the longest that it does."""
    stream = RequestStream(next_item_ring(tmp_path), 6, 64, seed=1)
    requests = stream.requests(np.arange(len(stream)))
    lengths = [np.minimum(requests.histories.lengths[block], 4) for block in requests.blocks(7, 4)]
    assert (np.diff(np.concatenate(lengths)) >= 0).all()
    assert sorted(np.concatenate(list(requests.blocks(7, 4))).tolist()) == list(range(len(stream)))
