"""Memory of histories of unequal length, and the catalogue's vectors: what is read, what is masked, how much is held."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.data.batch import HistoryBatch, TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.model import encoder
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared

FORMS = ["causal", "bidirectional"]


def policy_of(tmp_path: Path, attention: str) -> GenerativeRecommender:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"encoder_attention": attention, "max_history": 6, "init_std": 0.5})
    return build_policy(ring_prepared(tmp_path), ring_ids(), config, None).eval()


def history_of(*rows: list[int]) -> HistoryBatch:
    """Items of each row; what the padding holds is no zero, so that whoever reads it is found out."""
    width = max(map(len, rows))
    items = torch.tensor([[*row, *[9] * (width - len(row))] for row in rows])
    ones = torch.ones_like(items)
    return HistoryBatch(
        torch.ones(len(rows), dtype=torch.int64), items, ones, ones, ones, torch.tensor([*map(len, rows)])
    )


@pytest.mark.parametrize("attention", FORMS)
def test_a_short_history_is_the_same_beside_a_longer_one(tmp_path: Path, attention: str) -> None:
    """Two events are read alike alone and padded to five: no real position looks at padding."""
    policy = policy_of(tmp_path, attention)
    alone, together = history_of([1, 2]), history_of([1, 2], [3, 4, 5, 6, 7])
    with torch.no_grad():
        torch.testing.assert_close(policy.encoder(together)[:1, :3], policy.encoder(alone))
        a, b = policy.start(alone), policy.start(together)
        first, second = policy.next_codes(a, None), policy.next_codes(b, None)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second[:1], first)
    torch.testing.assert_close(b.dense_query_BD[:1], a.dense_query_BD)


@pytest.mark.parametrize("attention", FORMS)
def test_the_newest_event_is_seen_by_whoever_may(tmp_path: Path, attention: str) -> None:
    """Another newest event changes the user's position where attention looks both ways, and its own position always."""
    policy = policy_of(tmp_path, attention)
    with torch.no_grad():
        before, after = policy.encoder(history_of([1, 2, 3], [4, 5])), policy.encoder(history_of([1, 2, 8], [4, 8]))
    for row, newest in ((0, 3), (1, 2)):
        moved = (before[row] - after[row]).abs().amax(-1)
        assert moved[newest] > 1e-3
        assert bool(moved[0] > 1e-4) == (attention == "bidirectional")


@pytest.mark.parametrize("attention", FORMS)
def test_without_padding_no_mask_is_needed(tmp_path: Path, attention: str) -> None:
    """Equally long histories are known as such where the batch is made, and give the same with and without the mask."""
    policy = policy_of(tmp_path, attention)
    full, ragged = history_of([1, 2, 3], [4, 5, 6]), history_of([1, 2, 3], [4, 5])
    visible = torch.tensor([[3], [3]])
    batch = TrainingBatch(full, torch.tensor([[[2]], [[3]]]), visible)
    assert batch.asked.full
    assert not TrainingBatch(ragged, batch.target_BPM, visible).asked.full
    with torch.no_grad():
        torch.testing.assert_close(policy.encoder(full, full=True), policy.encoder(full))
        unmasked = policy.log_prob(batch)
        object.__setattr__(batch.asked, "full", False)
        torch.testing.assert_close(policy.log_prob(batch), unmasked)


def test_users_stand_one_row_below_their_index() -> None:
    """user_index 0 has row 1 of the user table; -1, nobody that training met, has row 0."""
    empty = np.zeros(0, np.int32)
    nothing = np.zeros(2, np.int64)
    histories = Histories(np.array([0, -1], np.int32), nothing, nothing, empty, empty, empty, empty)
    assert collate_histories(histories, 5).user_B.tolist() == [1, 0]


class _Largest(TorchDispatchMode):
    """Rows of the largest result of a lookup."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default:
            self.rows = max(self.rows, result.numel() // result.shape[-1])
        return result


def test_the_catalogue_is_embedded_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """13 rows, five at a time: beside the result only five rows are ever held, and never a row per code."""
    policy = policy_of(tmp_path, "causal")
    whole = policy.item_vectors().detach()
    monkeypatch.setattr(encoder, "ROWS_AT_A_TIME", 5)
    with torch.no_grad(), _Largest() as largest:
        assert torch.equal(policy.item_vectors(), whole)
    assert largest.rows == 5
