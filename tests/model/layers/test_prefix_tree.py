"""Candidates as a tree of prefixes: what is decoded once is what every candidate would have been given alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.alignment.rollouts.log_probs import candidate_batch, candidate_log_probs
from recsys.data.batch import HistoryBatch
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.layers.prefix_tree import PrefixTree
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared

SHAPE = {"width": 16, "num_heads": 2, "ffn_width": 32, "expert_width": 16, "max_history": 6, "init_std": 0.5}


def test_a_tree_by_hand() -> None:
    """Two users, three levels of four codes; user 0 has (1, 0, 2), (1, 0, 3), (1, 2, 0), user 1 has (3, 3, 3) alone.

    Roots 0 and 1; one code: user 0's 1 is node 2, user 1's 3 is node 3; two codes: (1, 0) is 4, (1, 2) is 5, (3, 3) is 6.
    User 0 has four nodes, 0, 2, 4, 5; user 1 three, 1, 3, 6; so W is 4.
    """
    codes = torch.tensor([[[1, 0, 2], [1, 0, 3], [1, 2, 0]], [[3, 3, 3], [9, 9, 9], [0, 0, 0]]])
    exists = torch.tensor([[True, True, True], [True, False, False]])
    tree = PrefixTree.from_codes(codes, exists, (4, 4, 4))
    assert [part.tolist() for part in tree.codes] == [[1, 3], [0, 2, 3]]
    assert [part.tolist() for part in tree.lines] == [[[0], [1]], [[0, 2], [1, 3]], [[0, 2, 4], [0, 2, 5], [1, 3, 6]]]
    assert [part.tolist() for part in tree.node_BG] == [
        [[0] * 3, [1] * 3],
        [[0] * 3, [1, 0, 0]],
        [[0, 0, 1], [2, 0, 0]],
    ]
    assert tree.width == 4
    assert tree.place_N.tolist() == [0, 4, 1, 5, 2, 3, 6]


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 2, 0]])
@pytest.mark.parametrize("changes", [{}, {"decoder": "lazy"}, {"encoder_attention": "bidirectional"}])
def test_values_and_gradients_are_those_of_candidates_decoded_one_by_one(
    tmp_path: Path, changes: dict[str, object], lengths: list[int]
) -> None:
    policy, history = policy_and_history(tmp_path, changes, lengths)
    items = torch.tensor([[0, 5, 3, 4, 2, -1], [7, 7, 1, -1, -1, -1], [11, 10, 9, 8, 7, 6]])
    weights = torch.randn(*items.shape, 1, policy.num_levels)

    tree = candidate_log_probs(policy, history, items[..., None])
    (tree.codes * weights).sum().backward()
    own = gradient(policy)
    batch = candidate_batch(history, items[..., None])
    hidden, _ = policy(batch)
    codes = policy.code_log_probs(hidden, batch.target_BPM).masked_fill(~tree.mask, 0.0)
    (codes * weights).sum().backward()

    torch.testing.assert_close(tree.codes, codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own, gradient(policy), atol=1e-4, rtol=1e-4)
    assert (tree.codes[items < 0] == 0).all()


def test_each_prefix_is_decoded_once(tmp_path: Path) -> None:
    """Items 0 to 3 share their first code: two roots of two users and one prefix each reach the experts, not 2 x 4 x 2."""
    policy, history = policy_and_history(tmp_path, {}, [6, 6, 6])
    seen = []
    layer = policy.moe_layers()[0]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    candidate_log_probs(policy, history.take(torch.tensor([0, 1])), torch.tensor([[[0], [1], [2], [3]]] * 2))
    assert seen == [4]


def test_one_level_has_roots_alone() -> None:
    tree = PrefixTree.from_codes(torch.zeros(2, 3, 1, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), (9,))
    assert tree.codes == ()
    assert tree.width == 1


def test_no_candidates_at_all_leave_the_roots() -> None:
    codes, nobody = torch.zeros(2, 3, 2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
    tree = PrefixTree.from_codes(codes, nobody, (4, 4))
    assert [len(line) for line in tree.lines] == [2, 0]


def policy_and_history(
    folder: Path, changes: dict[str, object], lengths: list[int]
) -> tuple[GenerativeRecommender, HistoryBatch]:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**SHAPE, **changes, "dropout": 0.0, "embedding_dropout": 0.0})
    policy = build_policy(ring_prepared(folder, users=10, items=12), ring_ids(), config, None).eval()
    length_B = torch.tensor(lengths)
    zeros = torch.zeros(3, 6, dtype=torch.int64)
    item_BH = torch.arange(18).view(3, 6) % 12 + 1
    item_BH = item_BH.masked_fill(torch.arange(6) >= length_B[:, None], 0)
    return policy, HistoryBatch(torch.tensor([1, 2, 3]), item_BH, zeros, zeros, zeros, length_B)


def gradient(policy: GenerativeRecommender) -> torch.Tensor:
    found = [parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad()
    return torch.cat(found)
