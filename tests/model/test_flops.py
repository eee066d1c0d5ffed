"""Counted FLOPs beside those that torch's own counter sees in the real modules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recsys.data.batch import HistoryBatch, TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.model.summary import decoding_flops, fed_widths, training_flops
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared


def attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Two products of ``[N, A, T, C]`` with ``[N, A, S, C]``."""
    return 4 * q.numel() * k[2]


def grouped(rows: torch.Size, weights: torch.Size, *_: object, **__: object) -> int:
    return 2 * rows.numel() * weights[-1]


CPU_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._grouped_mm: grouped,
}


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=CPU_KERNELS)


def policy_of(tmp_path: Path, preset: str, **changes: object) -> GenerativeRecommender:
    torch.manual_seed(0)
    prepared = ring_prepared(tmp_path, users=6, items=12)
    shape = {"short_events": 3, "positive_events": 4} if preset == "tiny_pathways" else {}
    config = ModelConfig.model_validate({"preset": preset, "max_history": 8, **shape, **changes})
    return build_policy(prepared, ring_ids(), config, None).eval().requires_grad_(False)


def history_of(lengths: list[int]) -> HistoryBatch:
    width = max(lengths)
    lengths_B = torch.tensor(lengths)
    items = torch.where(torch.arange(width) < lengths_B[:, None], 3, 0)
    zeros = torch.zeros_like(items)
    return HistoryBatch(torch.ones_like(lengths_B), items, zeros, zeros, zeros, lengths_B)


def own_attention(policy: GenerativeRecommender, tokens: int, positions: int) -> int:
    """Self-attention over few positions is computed by elementwise products, which torch's counter does not count."""
    config = policy.spec.model
    return 2 * config.num_decoder_layers * tokens * 2 * config.width * positions


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_a_training_step_without_padding_counts_what_torch_counts(tmp_path: Path, preset: str) -> None:
    policy = policy_of(tmp_path, preset)
    history, points = history_of([6, 6]), 1 if preset == "tiny_pathways" else 7
    target = torch.ones(2, points, 1, dtype=torch.int64)
    visible = torch.full((2, points), 6) if points == 1 else torch.arange(7).expand(2, 7)
    batch = TrainingBatch(history, target, visible.contiguous())
    with (
        counter() as seen
    ):  # with gradients: without them few rows are filled up to whole tiles, which is no useful work
        hidden, _ = policy(batch)
        policy.code_losses(hidden, batch.target_BPM)
    ours = training_flops(policy, batch.asked.counts, dense_targets=2 * points, scored_items=0)
    levels = policy.num_levels
    assert ours == 3 * (seen.get_total_flops() + own_attention(policy, 2 * points * levels, levels))


def test_padding_is_no_useful_work(tmp_path: Path) -> None:
    """Histories of 1 to 6 events: what is counted is less than what runs, and the sum of the rows alone."""
    policy = policy_of(tmp_path, "tiny")
    points, lengths = torch.arange(7), [1, 3, 6]

    def batch_of(rows: list[int]) -> TrainingBatch:
        history = history_of(rows)
        asked = points[: max(rows) + 1] <= history.lengths_B[:, None]
        return TrainingBatch(history, asked.long()[..., None], points[: max(rows) + 1].repeat(len(rows), 1))

    batch = batch_of(lengths)
    with counter() as seen, torch.no_grad():
        hidden, _ = policy(batch)
        policy.code_losses(batch.asked.items(hidden), batch.asked.items(batch.target_BPM))
    ours = training_flops(policy, batch.asked.counts, 0, 0)
    assert ours < 0.9 * 3 * seen.get_total_flops()
    assert ours == pytest.approx(sum(training_flops(policy, batch_of([row]).asked.counts, 0, 0) for row in lengths))


@pytest.mark.parametrize("preset", ["tiny", "tiny_lazy", "tiny_pathways"])
def test_decoding_counts_what_torch_counts(tmp_path: Path, preset: str) -> None:
    """Three users of 6 events, 1 and then 3 beams; the dense query of each, D^2, is counted as part of ranking."""
    policy = policy_of(tmp_path, preset)
    history = history_of([6, 6, 6])
    with counter() as seen:  # as above
        state = policy.start(history)
        first = policy.next_codes(state, None)
        assert first is not None
        state.cache.reorder(torch.zeros(3, 3, dtype=torch.int64))
        policy.next_codes(state, first[:, 0].topk(3).indices)
    ours = decoding_flops(policy, np.array([6, 6, 6]), [1, 3])
    elementwise = own_attention(policy, 3, 1) + own_attention(policy, 9, 2)
    assert ours == seen.get_total_flops() + elementwise - 3 * 2 * policy.spec.model.width**2


def test_beams_are_no_more_than_prefixes() -> None:
    """A catalogue with 4 first codes of 3 second ones has 12 prefixes, whatever the beam width."""
    assert fed_widths(50, (4, 3, 9)) == [1, 4, 12]
    assert fed_widths(2, (4, 3, 9)) == [1, 2, 2]


def test_counts_are_those_of_the_batch(tmp_path: Path) -> None:
    """Sessions of 2, 0 and 1 items: rows 0 and 2 are asked, for 2 and 1 items."""
    batch = TrainingBatch(
        history_of([3, 1, 2]), torch.tensor([[[5, 4]], [[0, 0]], [[2, 0]]]), torch.tensor([[3], [1], [2]])
    )
    counts = batch.asked.counts
    assert counts.events_N.tolist() == [3, 1, 2]
    assert counts.row_G.tolist() == [0, 2]
    assert counts.items_G.tolist() == [2, 1]


def test_real_histories_of_a_data_set_are_counted(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path / "c", users=6, items=12)
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    policy = policy_of(tmp_path, "tiny")
    read = collate_histories(histories, 8).lengths_B.numpy()
    longest = decoding_flops(policy, np.full(len(read), 8), [1, 3])
    assert decoding_flops(policy, read, [1, 3]) <= longest
    assert decoding_flops(policy, read // 2, [1, 3]) < longest
