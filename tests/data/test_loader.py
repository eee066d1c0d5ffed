"""Batches: padding by hand, every row once per epoch, and the same order after a resume."""

from pathlib import Path

import numpy as np

from recsys.data.batch import collate_all_prefixes, collate_histories
from recsys.data.histories import Histories
from recsys.data.loader import BucketedLoader
from recsys.data.samples import PrefixWindows
from tests.toy import ring_prepared


def test_all_prefix_batch_by_hand(tmp_path: Path) -> None:
    """User 0 walks 0 1 2 3 4 5 6 in training; a window [0, 3) predicts items 0, 1, 2 (rows 1, 2, 3) from 0, 1, 2 events."""
    history = ring_prepared(tmp_path).history
    one = np.array([0])
    batch = collate_all_prefixes(history, one.astype(np.int32), one, np.array([3]), one)
    assert batch.history.item_BH.tolist() == [[1, 2]]
    assert batch.target_BPM[..., 0].tolist() == [[1, 2, 3]]
    assert batch.visible_BP.tolist() == [[0, 1, 2]]
    later = collate_all_prefixes(history, one.astype(np.int32), one, np.array([3]), np.array([2]))
    assert later.target_BPM[..., 0].tolist() == [[0, 0, 3]]


def test_the_most_recent_events_are_kept(tmp_path: Path) -> None:
    prepared = ring_prepared(tmp_path)
    histories = Histories.of_targets(prepared.history, prepared.all_users()).take(np.array([0]))
    batch = collate_histories(histories, 3)
    assert batch.item_BH.tolist() == [(prepared.history.item[6:9] + 1).tolist()]
    assert batch.lengths_B.tolist() == [3]


def test_an_epoch_is_every_row_once_and_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    loader = BucketedLoader(PrefixWindows.of(ring_prepared(tmp_path), 8), 7, seed=1)
    first = loader.batches(0)
    assert sorted(np.concatenate(first)) == list(range(60))
    assert len(first) == len(loader)
    again = BucketedLoader(loader.samples, 7, seed=1).batches(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(loader.batches(1)))


def test_a_resumed_loader_hands_out_the_rest(tmp_path: Path) -> None:
    samples = PrefixWindows.of(ring_prepared(tmp_path), 8)
    whole = BucketedLoader(samples, 16, seed=1)
    expected = [b.target_BPM for b in whole] + [b.target_BPM for b in whole]
    broken = BucketedLoader(samples, 16, seed=1)
    iterator = iter(broken)
    taken = [next(iterator).target_BPM for _ in range(3)]
    resumed = BucketedLoader(samples, 16, seed=1)
    resumed.load_state_dict(broken.state_dict())
    rest = [b.target_BPM for b in resumed] + [b.target_BPM for b in resumed]
    assert all(a.equal(b) for a, b in zip(expected, taken + rest, strict=True))
