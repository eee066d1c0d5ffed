"""SASRec: its loss against the plain form, its masks, its batches, and its early stopping."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import SASRecConfig
from recsys.evaluation.baselines.sasrec import PooledDropout, SASRecNetwork
from recsys.evaluation.baselines.sasrec_training import SASRec, SequenceBatches, rank_with_network, train_sasrec
from recsys.metrics.ranking import row_metrics
from recsys.training.losses import full_softmax_loss
from tests.toy.dataset import ring_prepared

SMALL = SASRecConfig(width=16, num_heads=2, num_blocks=2, max_len=6, batch_size=16, max_epochs=3, dropout=0.1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


@pytest.fixture
def network() -> SASRecNetwork:
    torch.manual_seed(0)
    return SASRecNetwork(12, SMALL).eval()


def test_loss_by_hand() -> None:
    """One position of width 1, state 1, items 0 and ln 3: softmax (1/4, 3/4); the first is wanted: loss ln 4."""
    items = torch.tensor([[0.0], [math.log(3.0)]])
    loss = full_softmax_loss(torch.tensor([[1.0]]), items, torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(4.0))


def test_loss_and_gradients_equal_the_plain_form() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(150, 8, generator=generator, requires_grad=True)  # 150: two whole blocks and a part
    items = torch.randn(40, 8, generator=generator, requires_grad=True)
    wanted = torch.randint(40, (150,), generator=generator)
    plain = F.cross_entropy(states @ items.T, wanted)
    expected = torch.autograd.grad(3 * plain, (states, items))
    ours = full_softmax_loss(states, items, wanted)
    assert isinstance(ours, Tensor)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, (states, items)), expected)


def test_padding_changes_nothing(network: SASRecNetwork) -> None:
    history = torch.tensor([[3, 4, 5]])
    padded = torch.tensor([[0, 0, 0, 3, 4, 5]])
    torch.testing.assert_close(network(padded)[:, -1], network(history)[:, -1])


def test_a_position_sees_no_later_event(network: SASRecNetwork) -> None:
    first, second = network(torch.tensor([[1, 2, 3, 4, 5]])), network(torch.tensor([[1, 2, 3, 9, 9]]))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])


def test_pooled_dropout_keeps_the_expectation_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    dropout = PooledDropout(0.4, pool_size=1 << 16)
    ones = torch.ones(100, 100)
    dropped = dropout(ones)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(dropped, dropout(ones))
    assert torch.equal(dropout.eval()(ones), ones)


def test_every_transition_is_supervised_once_per_epoch(prepared: Dataset) -> None:
    """Also those of sequences longer than ``max_len``, which are cut into chunks."""
    config = SMALL.model_copy(update={"max_len": 3})
    batches = SequenceBatches(prepared, "train", config, seed=0)
    found = []
    for items, following in batches:
        assert items.shape == following.shape
        assert items.shape[1] <= 3
        has_next = following >= 0
        found += list(zip((items[has_next] - 1).tolist(), following[has_next].tolist(), strict=True))
    history = prepared.history
    expected = [
        (int(history.item[event]), int(history.item[event + 1]))
        for start, end in zip(history.offsets[:-1], history.train_end, strict=True)
        for event in range(start, end - 1)
    ]
    assert sorted(found) == sorted(expected)
    assert len(batches) == math.ceil(len(batches.last) / config.batch_size)


def test_cropping_takes_contiguous_parts_and_reordering_keeps_the_items(prepared: Dataset) -> None:
    """Cropped to at least half: every chunk is a stretch of its sequence, of at least two events, most of them shorter. With
    all of a sequence as the window, reordering changes the order of the events and nothing else."""
    whole = SequenceBatches(prepared, "train", SMALL, seed=0)
    cropped = SequenceBatches(prepared, "train", SMALL.model_copy(update={"crop": 1.0, "crop_least": 0.5}), seed=0)
    first, last = cropped._cropped(np.random.default_rng(0))
    assert (first >= whole.first).all()
    assert (last <= whole.last).all()
    length, full = last - first, whole.last - whole.first
    assert (length >= np.maximum(2, np.ceil(full / 2))).all()
    assert (length < full).mean() > 0.5
    assert (first > whole.first).any()
    assert (last < whole.last).any()

    shuffled = SequenceBatches(
        prepared, "train", SMALL.model_copy(update={"reorder": 1.0, "reorder_window": 1.0}), seed=0
    )
    item = shuffled._reordered(whole.first, whole.last, np.random.default_rng(0))
    kept, history = np.array(whole.item), prepared.history
    assert (item != kept).any()
    for start, end in zip(history.offsets[:-1], history.train_end, strict=True):
        assert sorted(item[start:end]) == sorted(kept[start:end])
        assert (item[end : end + 2] == kept[end : end + 2]).all()  # validation and test events stay in their places
    for batches in (cropped, shuffled):
        for items, following in batches:
            assert items.shape == following.shape
            assert ((items > 0) == (following >= 0)).all()


def test_epochs_differ_and_the_seed_repeats_them(prepared: Dataset) -> None:
    first, second = (SequenceBatches(prepared, "train", SMALL, seed=3) for _ in range(2))
    epochs = [[items for items, _ in batches] for batches in (first, second, first)]
    assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(epochs[0], epochs[2], strict=True))


def test_training_keeps_the_best_epoch(prepared: Dataset) -> None:
    ranker = SASRec(SMALL.model_copy(update={"max_epochs": 6, "learning_rate": 0.02, "patience": 2}))
    ranker.fit(prepared, 0, "train")
    evaluated = [point.value for point in ranker.curves if point.name == "ndcg@10"]
    losses = [point.value for point in ranker.curves if point.name == "train_loss"]
    assert losses[-1] < losses[0]
    targets = prepared.targets(VALID)
    ranked = ranker.rank(Histories.from_targets(prepared.history, targets), 10, exclude_seen=True)
    assert row_metrics(ranked, targets, [10])["ndcg@10"].mean() == pytest.approx(max(evaluated))
    assert len(evaluated) < 6 or evaluated[-1] > max(evaluated[:-2])


def test_the_test_split_decides_nothing(prepared: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only validation rows are asked for, and other items in the test events leave curves and weights as they are."""
    asked, original = [], Dataset.targets
    monkeypatch.setattr(Dataset, "targets", lambda self, split: asked.append(split) or original(self, split))
    config = SMALL.model_copy(update={"learning_rate": 0.02})
    network, curves = train_sasrec(prepared, config, 0, "train")
    history = prepared.history
    item = np.array(history.item)
    for start, end in zip(history.valid_end, history.offsets[1:], strict=True):
        item[start:end] = (item[start:end] + 5) % prepared.spec.num_items
    changed = Dataset(prepared.path, prepared.spec, replace(history, item=item))
    other, other_curves = train_sasrec(changed, config, 0, "train")
    assert asked == [VALID, VALID]
    assert other_curves == curves
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))


def test_training_leaves_the_global_generator_alone(prepared: Dataset) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    SASRec(SMALL.model_copy(update={"max_epochs": 1})).fit(prepared, 0, "train")
    assert torch.equal(torch.rand(3), expected)


def test_time_limit_ends_training_after_an_epoch(prepared: Dataset) -> None:
    ranker = SASRec(SMALL.model_copy(update={"max_epochs": 50, "max_minutes": 1e-6, "patience": 50}))
    ranker.fit(prepared, 0, "train")
    assert {point.epoch for point in ranker.curves} == {0}


def test_ranking_does_not_leave_training_mode(prepared: Dataset, network: SASRecNetwork) -> None:
    network.train()
    histories = Histories.from_targets(prepared.history, prepared.targets(VALID))
    rank_with_network(network, histories, 3, exclude_seen=True)
    assert network.training


def test_refusals(prepared: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="width 10 cannot be split into 4 heads"):
        SASRecConfig(width=10, num_heads=4)
    short = ring_prepared(tmp_path, users=4, events=5)
    lonely = Dataset(short.path, short.spec, short.history)
    ends = np.asarray(lonely.history.offsets[:-1]) + 1
    history = type(lonely.history)(**{**vars(lonely.history), "train_end": ends})
    with pytest.raises(DataError, match="no user has two events"):
        SASRec(SMALL).fit(Dataset(short.path, short.spec, history), 0, "train")
