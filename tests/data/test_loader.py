"""Batches: padding by hand, every row once per epoch, and the same order after a resume."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.batch import collate_all_prefixes, collate_histories
from recsys.data.datamodule import validation_rows
from recsys.data.histories import Histories
from recsys.data.loader import BucketedLoader
from recsys.data.options import BatchBy
from recsys.data.samples import PrefixWindows
from tests.toy.dataset import ring_prepared


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
    histories = Histories.from_targets(prepared.history, prepared.all_users()).take(np.array([0]))
    batch = collate_histories(histories, 3)
    assert batch.item_BH.tolist() == [(prepared.history.item[6:9] + 1).tolist()]
    assert batch.lengths_B.tolist() == [3]


def test_an_epoch_is_every_row_once_and_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    loader = BucketedLoader(PrefixWindows.from_dataset(ring_prepared(tmp_path), 8), 7, seed=1)
    first = loader.batches(0)
    assert sorted(np.concatenate(first)) == list(range(60))
    assert len(first) == len(loader)
    again = BucketedLoader(loader.samples, 7, seed=1).batches(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(loader.batches(1)))


@dataclass
class Counted:
    """Rows of which only the numbers of targets are known; as long as they have targets."""

    targets_per_row: np.ndarray

    def __len__(self) -> int:
        return len(self.targets_per_row)

    @property
    def lengths(self) -> np.ndarray:
        return self.targets_per_row


def test_batches_of_equal_targets_by_hand() -> None:
    """Six rows of 1 target, one of 2, one of 4: by rows 4 and 8 targets, by targets 6 and 6. Rows are sorted by length."""
    samples = Counted(np.array([4, 1, 1, 1, 2, 1, 1, 1]))

    def targets(batch_by: BatchBy) -> list[int]:
        batches = BucketedLoader(samples, 4, seed=0, batch_by=batch_by).batches(0)  # type: ignore[arg-type]
        return sorted(int(samples.targets_per_row[rows].sum()) for rows in batches)

    assert targets("rows") == [4, 8]
    assert targets("targets") == [6, 6]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=300), st.integers(1, 9))
def test_batches_of_equal_targets_hold_every_row_once_and_none_is_empty(targets: list[int], batch_size: int) -> None:
    samples = Counted(np.array(targets))
    by_targets = BucketedLoader(samples, batch_size, seed=3, batch_by="targets")  # type: ignore[arg-type]
    batches = by_targets.batches(0)
    assert sorted(np.concatenate(batches)) == list(range(len(targets)))
    assert len(batches) == len(by_targets)
    assert min(map(len, batches)) > 0
    even = BucketedLoader(Counted(np.ones(len(targets), int)), batch_size, seed=3, batch_by="targets")  # type: ignore[arg-type]
    sizes = [len(rows) for rows in even.batches(0)]
    assert max(sizes) <= batch_size


def test_a_resumed_loader_hands_out_the_rest(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    whole = BucketedLoader(samples, 16, seed=1)
    expected = [b.target_BPM for b in whole] + [b.target_BPM for b in whole]
    broken = BucketedLoader(samples, 16, seed=1)
    iterator = iter(broken)
    taken = [next(iterator).target_BPM for _ in range(3)]
    resumed = BucketedLoader(samples, 16, seed=1)
    resumed.load_state_dict(broken.state_dict())
    rest = [b.target_BPM for b in resumed] + [b.target_BPM for b in resumed]
    assert all(a.equal(b) for a, b in zip(expected, taken + rest, strict=True))


def test_processes_share_every_batch_and_pad_like_one(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    whole = list(BucketedLoader(samples, 7, seed=1))
    parts = [list(BucketedLoader(samples, 7, seed=1, rank=rank, world=3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {share.target_BPM.shape[1] for share in shares} == {batch.target_BPM.shape[1]}
        asked = [share.target_BPM[(share.target_BPM > 0).any((1, 2))] for share in shares]
        assert sorted(torch.cat(asked).flatten(1).tolist()) == sorted(batch.target_BPM.flatten(1).tolist())


def test_a_process_without_rows_asks_for_nothing(tmp_path: Path) -> None:
    """60 rows in batches of 59 leave one row over; of two processes the second has none."""
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    loaders = [BucketedLoader(samples, 59, seed=1, rank=rank, world=2) for rank in range(2)]
    (small,) = (number for number, rows in enumerate(loaders[0].batches(0)) if len(rows) == 1)
    first, second = (list(loader)[small] for loader in loaders)
    assert (first.target_BPM > 0).any()
    assert not (second.target_BPM > 0).any()
    assert len(second) == 1


def test_a_position_means_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    one = BucketedLoader(samples, 16, seed=1)
    iterator = iter(one)
    next(iterator)
    moved = BucketedLoader(samples, 16, seed=1, rank=1, world=2)
    moved.load_state_dict(one.state_dict())
    for batch, share in zip(iterator, moved, strict=True):
        assert torch.equal(batch.history.user_B[1::2], share.history.user_B)


def test_a_rank_outside_the_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 2 of 2 processes"):
        BucketedLoader(PrefixWindows.from_dataset(ring_prepared(tmp_path), 8), 7, seed=1, rank=2, world=2)


def test_validation_rows_are_shared_out(tmp_path: Path) -> None:
    rows = validation_rows(ring_prepared(tmp_path), 20, seed=1)
    parts = [rows.part(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [7, 7, 6]
    assert sorted(np.concatenate([part.targets.user_index for part in parts])) == sorted(rows.targets.user_index)
    assert len(rows.part(0, 30)) == 1
    assert len(rows.part(25, 30)) == 0
