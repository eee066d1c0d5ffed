"""Passes that go slice by slice give what one pass gives, wherever the slices are cut."""

import numpy as np
import pytest

from features import histories, sessions, splits
from features.histories import build_histories
from features.log import order, repeats
from features.log.event_log import keep_events
from features.log.k_core import KCoreConfig
from features.log.order import in_order, same_as_before
from features.sessions import SessionConfig, SessionRule, session_index, session_starts
from features.splits import kth_smallest
from recsys.contracts.dataset import HISTORY_ARRAYS
from tests.toy.logs import START, US, read_rows

SLICES = pytest.mark.parametrize("rows", [1, 2, 7, 64])


def some_rows(count: int = 300) -> dict[str, list]:
    """Twelve users, ten items, many equal times and many repeats."""
    rng = np.random.default_rng(8)
    return {
        "user_id": rng.integers(0, 12, count).tolist(),
        "item_id": rng.integers(0, 10, count).tolist(),
        "timestamp": (START + rng.integers(0, 9, count) * 100 * US).tolist(),
        "like": [None if draw == 0 else draw == 1 for draw in rng.integers(0, 3, count)],
    }


@SLICES
def test_histories(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_events(read_rows(some_rows(), ("like",)).log, KCoreConfig(), "merge", {}).log
    split = (kept.timestamp > START + 500 * US).astype(np.int8) + (kept.timestamp > START + 700 * US).astype(np.int8)
    arguments = (kept, split, kept.signal_values + np.uint8(1), np.full(len(kept), np.nan, np.float32))
    whole = build_histories(*arguments)
    monkeypatch.setattr(histories, "_SLICE_ROWS", rows)
    sliced = build_histories(*arguments)
    assert 0 < len(whole.item) < len(kept)
    assert whole.offsets[-1] == len(whole.item)
    assert 0 < (whole.gap == 0).sum() <= len(kept.user_ids)
    for name in HISTORY_ARRAYS:
        assert getattr(sliced, name).tolist() == getattr(whole, name).tolist(), name


@SLICES
def test_repeats(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = read_rows(some_rows(), ("like",)).log
    whole = repeats.find_repeats(log)
    monkeypatch.setattr(repeats, "_PIECE", rows)
    sliced = repeats.find_repeats(log)
    assert len(whole) > 20
    assert sliced.rows.tolist() == whole.rows.tolist()
    assert sliced.into.tolist() == whole.into.tolist()


@SLICES
def test_order_and_equality_with_the_row_before(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_SLICE", rows)
    keys = [np.array([0, 0, 0, 1, 1, 2]), np.array([3, 3, 4, 1, 1, 1])]
    assert same_as_before(keys).tolist() == [False, True, False, False, True, False]
    assert in_order(keys)
    assert not in_order([keys[0], -keys[1]])


@SLICES
@pytest.mark.parametrize("rule", ["gap", "given"])
def test_sessions(rows: int, rule: SessionRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are multiples of 100 s, and two minutes are allowed."""
    sessions_of = {"session_id": [None if place % 5 == 0 else f"s{place % 3}" for place in range(300)]}
    log = keep_events(read_rows(some_rows() | sessions_of, ("like",)).log, KCoreConfig(), "merge", {}).log
    split = (log.timestamp > START + 500 * US).astype(np.int8)
    config = SessionConfig(gap_minutes=2)
    whole = session_index(log, split, rule, config, 3)
    monkeypatch.setattr(sessions, "_SLICE_ROWS", rows)
    monkeypatch.setattr(order, "_SLICE", rows)
    assert session_index(log, split, rule, config, 3).tolist() == whole.tolist()
    naive = 0
    for place in range(1, len(log)):
        same = log.user[place] == log.user[place - 1] and split[place] == split[place - 1]
        if rule == "gap":
            same = same and log.timestamp[place] - log.timestamp[place - 1] <= 120 * US
        else:
            same = same and log.session[place] == log.session[place - 1] and log.session[place] >= 0
        naive += not same
        assert whole[place] == naive


@SLICES
def test_first_events_of_sessions(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SLICE_ROWS", rows)
    index = np.array([0, 0, 0, 1, 2, 2, 3], np.int32)
    assert session_starts(index).tolist() == [0, 3, 4, 6, 7]


@SLICES
@pytest.mark.parametrize("spread", [1, 50, 1 << 50])
def test_the_value_at_a_rank(rows: int, spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal values, of values in one bin each, and of values in a few of all bins."""
    monkeypatch.setattr(splits, "_SLICE_ROWS", rows)
    values = -40 + np.random.default_rng(2).integers(0, spread, 40)
    assert [kth_smallest(values, rank) for rank in range(40)] == sorted(values.tolist())
