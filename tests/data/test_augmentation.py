"""Changed histories: what is drawn, what stays, and that rows, epochs and restarts are told apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import validate
from recsys.contracts.errors import ConfigError
from recsys.data.augmentation import Augmentation, scrambled
from recsys.data.histories import Histories
from recsys.data.loader import BucketedLoader
from recsys.data.options import AugmentConfig
from recsys.data.samples import PrefixWindows, TargetRows
from tests.toy.builders import history_lists, in_memory
from tests.toy.dataset import ring_prepared
from tests.toy.histories import histories_of

ALL = AugmentConfig(crop_share=0.5, reorder_share=0.5, mask_share=0.2)
CROP = AugmentConfig(crop_share=1.0)


def windows(
    config: AugmentConfig, lists: list[list[int]], epoch: int = 0, keep: int = 2
) -> tuple[Histories, np.ndarray]:
    histories = histories_of(lists)
    rows = np.arange(len(lists))
    augmentation = Augmentation(config, seed=3, epoch=epoch)
    return augmentation.windows(histories, histories.user_index, rows, histories.start, histories.end, keep)


def test_random_bits_by_their_published_numbers() -> None:
    """SplitMix64 seeded with 0 gives 0xe220a8397b1dcdaf, then 0x6e789e6aa1b965f4: its state moves by the golden gamma."""
    counters = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [hex(int(bits)) for bits in scrambled(counters)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_a_crop_takes_the_front_and_every_length_is_as_likely() -> None:
    """Windows of 5 that keep 2 lose 0, 1, 2 or 3 events: of 4,000 rows about 1,000 each, with a deviation of 27."""
    lists = [[10, 11, 12, 13, 14]] * 4000
    changed, dropped = windows(CROP, lists)
    for row in range(50):
        assert changed.item[changed.start[row] : changed.end[row]].tolist() == lists[row][dropped[row] :]
    counts = np.bincount(dropped, minlength=4)
    assert len(counts) == 4
    assert (abs(counts - 1000) < 110).all()


def test_only_the_chosen_share_is_cropped_and_short_windows_never() -> None:
    _, dropped = windows(AugmentConfig(crop_share=0.25), [[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 4000)
    assert (dropped > 0).mean() == pytest.approx(0.25 * 7 / 8, abs=0.03)
    _, dropped = windows(CROP, [[1, 2], [1], []] * 20)
    assert (dropped == 0).all()


def test_events_stay_near_their_places_and_none_is_lost() -> None:
    lists = [list(range(12))] * 300
    changed, _ = windows(AugmentConfig(reorder_share=1.0, reorder_span=3), lists)
    rows = changed.item.reshape(300, 12)
    assert (np.sort(rows, axis=1) == np.arange(12)).all()
    moved = abs(rows - np.arange(12))
    assert moved.max() == 2
    assert (moved.sum(1) > 0).mean() > 0.95
    half, _ = windows(AugmentConfig(reorder_share=0.5, reorder_span=3), lists)
    assert (half.item.reshape(300, 12) == np.arange(12)).all(1).mean() == pytest.approx(0.5, abs=0.1)


def test_everything_known_of_an_event_moves_with_it() -> None:
    known = {name: np.tile(np.arange(6), 20).astype(np.uint8) for name in ("behaviour", "gap", "watch")}
    events = history_lists([[0, 1, 2, 3, 4, 5]] * 20, **known)
    row = np.arange(20)
    start, end = row * 6, row * 6 + 6
    augmentation = Augmentation(AugmentConfig(crop_share=1, reorder_share=1), seed=1, epoch=4)
    changed, _ = augmentation.windows(events, row.astype(np.int32), row, start, end, keep=2)
    for name in known:
        assert (changed.item == getattr(changed, name)).all()
    assert not (np.diff(changed.item) == 1).all()


def test_a_row_is_the_same_alone_and_among_others_and_differs_between_epochs_and_seeds(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    augmentation = Augmentation(ALL, seed=1, epoch=2)
    whole = samples.collate(np.arange(20), augmentation)
    for row in (0, 7, 19):
        alone = samples.collate(np.array([row]), augmentation)
        width = alone.history.item_BH.shape[1]
        assert torch.equal(alone.history.item_BH[0], whole.history.item_BH[row, :width])
        assert torch.equal(alone.target_BPM[0], whole.target_BPM[row, : width + 1])
    for other in (Augmentation(ALL, seed=1, epoch=3), Augmentation(ALL, seed=2, epoch=2)):
        changed = samples.collate(np.arange(20), other)
        assert changed.history.lengths_B.tolist() != whole.history.lengths_B.tolist()


def test_a_cropped_window_begins_with_an_event_that_is_not_asked_for() -> None:
    """What is left is predicted from its second event on; an uncropped window from its first."""
    samples = PrefixWindows.from_dataset(in_memory(history_lists([[5, 6, 7, 8]] * 40), 10), 8)
    batch = samples.collate(np.arange(40), Augmentation(CROP, seed=3, epoch=0))
    targets = batch.target_BPM[..., 0]
    for row, length in enumerate(batch.history.lengths_B.tolist()):
        kept = [6, 7, 8, 9][3 - length :]  # rows of the item table; the last event is a target alone
        expected = kept if length == 3 else [0, *kept[1:]]
        assert targets[row, : len(kept)].tolist() == expected
        assert batch.history.item_BH[row, :length].tolist() == kept[:-1]
    assert set(batch.history.lengths_B.tolist()) == {1, 2, 3}


def test_every_target_follows_the_events_that_the_model_sees() -> None:
    """Histories and targets are one sequence: the target of point p is the event that the next point sees last."""
    samples = PrefixWindows.from_dataset(in_memory(history_lists([list(range(9))] * 30), 10), 8)
    batch = samples.collate(np.arange(30), Augmentation(AugmentConfig(crop_share=1, reorder_share=1), seed=3, epoch=0))
    shifted = batch.target_BPM[:, :-1, 0]
    asked = (shifted > 0) & (torch.arange(shifted.shape[1]) < batch.history.lengths_B[:, None])
    assert asked.sum() > 30
    assert torch.equal(shifted[asked], batch.history.item_BH[asked])


def test_hidden_items_stay_targets(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    rows = np.arange(len(samples))
    plain = samples.collate(rows)
    masked = samples.collate(rows, Augmentation(AugmentConfig(mask_share=0.3), seed=3, epoch=0))
    assert torch.equal(masked.target_BPM, plain.target_BPM)
    real = plain.history.item_BH > 0
    hidden = real & (masked.history.item_BH == 0)
    assert hidden.sum() / real.sum() == pytest.approx(0.3, abs=0.06)
    kept = real & ~hidden
    assert torch.equal(masked.history.item_BH[kept], plain.history.item_BH[kept])


def test_pairs_keep_their_targets_and_at_least_an_event(tmp_path: Path) -> None:
    samples = TargetRows.from_dataset(ring_prepared(tmp_path, task="session", session_length=2), 4)
    rows = np.arange(len(samples))
    plain, changed = samples.collate(rows), samples.collate(rows, Augmentation(CROP, seed=3, epoch=0))
    assert torch.equal(changed.target_BPM, plain.target_BPM)
    before, after = plain.history.lengths_B, changed.history.lengths_B
    assert (after >= before.clamp(max=1)).all()
    assert (after < before).any()
    assert torch.equal(changed.visible_BP[:, 0], after)


def test_a_resumed_loader_changes_the_rest_alike_and_processes_share_the_rows(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    undisturbed = BucketedLoader(samples, 7, seed=1, augment=ALL)
    batches = [*undisturbed, *undisturbed]
    resumed = BucketedLoader(samples, 7, seed=1, augment=ALL)
    resumed.load_state_dict({"epoch": 1, "position": 3})
    rest = batches[len(undisturbed) + 3 :]
    for ours, theirs in zip(resumed, rest, strict=True):
        assert torch.equal(ours.history.item_BH, theirs.history.item_BH)
        assert torch.equal(ours.target_BPM, theirs.target_BPM)
    parts = [list(BucketedLoader(samples, 7, seed=1, augment=ALL, rank=rank, world=2)) for rank in (0, 1)]
    for whole, first, second in zip(batches, *parts, strict=False):
        assert torch.equal(whole.history.item_BH[::2], first.history.item_BH)
        if len(whole) > 1:
            assert torch.equal(whole.history.item_BH[1::2], second.history.item_BH)
        else:
            assert second.target_BPM.sum() == 0


def test_all_off_changes_nothing(tmp_path: Path) -> None:
    samples = PrefixWindows.from_dataset(ring_prepared(tmp_path), 8)
    assert BucketedLoader(samples, 7, seed=1, augment=AugmentConfig()).augment is None
    rows = np.arange(10)
    off = samples.collate(rows, Augmentation(AugmentConfig(), seed=1, epoch=0))
    assert torch.equal(off.history.item_BH, samples.collate(rows).history.item_BH)
    assert torch.equal(off.target_BPM, samples.collate(rows).target_BPM)


@pytest.mark.parametrize("settings", [{"crop_share": 1.5}, {"mask_share": 1}, {"reorder_span": 1}, {"crop": 0.5}])
def test_shares_outside_their_range_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(AugmentConfig, settings, "my.yaml")
