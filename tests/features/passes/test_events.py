"""Events taken out and labelled in one pass: the kernels give what NumPy gives, and both what a loop in Python gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.passes import events
from features.passes.tally import Tally
from recsys import native
from recsys.contracts.event_features import gap_buckets
from tests.features.passes.test_passes import both
from tests.toy.logs import START, US, log_of


@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    some=st.booleans(),
    stored=st.sampled_from([None, np.uint32, np.int64]),
)
@settings(max_examples=150, deadline=None)
def test_events_are_taken_under_new_numbers(seed: int, sizes: list[int], some: bool, stored: Any) -> None:
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows, owner = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    item, table = rng.integers(0, 5, rows).astype(np.int32), rng.permutation(5).astype(np.int32)
    time = None if stored is None else rng.integers(0, 2**32 - 1, rows).astype(stored)
    keep = rng.random(rows) < 0.4 if some else None
    kept = np.arange(rows) if keep is None else np.flatnonzero(keep)
    met = sorted(set(owner[kept].tolist()))
    scale = 1_000_000 if stored is np.uint32 else 1
    for found, _ in both(events.taken, starts, item, time, scale, keep, table):
        assert found.user.tolist() == [met.index(owner[row]) for row in kept]
        assert found.item.tolist() == [table[item[row]] for row in kept]
        assert np.flatnonzero(found.used).tolist() == met
        assert found.user.dtype == found.item.dtype == np.int32
        if time is None:
            assert found.timestamp is None
        else:
            assert found.timestamp.tolist() == [int(time[row]) * scale for row in kept]
            assert found.timestamp.dtype == np.int64


@given(
    seed=st.integers(0, 9999), sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8), low=st.sampled_from([-3, 0])
)
@settings(max_examples=200, deadline=None)
def test_events_are_labelled_as_one_by_one(seed: int, sizes: list[int], low: int) -> None:
    """Seconds from a small range, so that ties, borders of splits and pauses of every length are met; some are not known."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    if not len(user):
        return
    time = np.concatenate([np.sort(rng.integers(low, 12, size)) for size in sizes]) * (US // 2)
    cuts, longest = (3 * US, 5 * US), 2 * US
    split, session, gap, ties = [], [], [], 0
    for row, (owner, now) in enumerate(zip(user.tolist(), time.tolist(), strict=True)):
        split.append(0 if now < cuts[0] else 1 if now < cuts[1] else 2)
        same = row > 0 and user[row - 1] == owner
        pause = now - int(time[row - 1]) if same else None
        goes_on = pause is not None and pause <= longest and split[-1] == split[-2]
        session.append(session[-1] + (not goes_on) if row else 0)
        gap.append(pause if pause is not None and time[row - 1] >= 0 else -1)
        ties += pause == 0
    starts = [row for row in range(len(user)) if row == 0 or session[row] != session[row - 1]]
    known = [now for now in time.tolist() if now >= 0]
    for found, _ in both(events.labels_of, user, time, cuts, longest, len(sizes)):
        assert found.split.tolist() == split
        assert found.session.tolist() == session
        assert found.starts.tolist() == [*starts, len(user)]
        assert found.gap.tolist() == gap_buckets(np.array(gap)).tolist()
        assert found.split_counts.tolist() == [
            [sum(u == owner and s == part for u, s in zip(user, split, strict=True)) for owner in range(len(sizes))]
            for part in range(3)
        ]
        assert found.ties == ties
        sizes_of_sessions = np.diff([*starts, len(user)]).tolist()
        assert found.session_lengths.tolist() == [
            sum(size.bit_length() == bits for size in sizes_of_sessions) for bits in range(64)
        ]
        assert (found.first, found.last) == ((min(known), max(known)) if known else (None, None))
        kinds = [getattr(found, name).dtype for name in ("split", "session", "starts", "gap", "split_counts")]
        assert kinds == [np.int8, np.int32, np.int64, np.uint8, np.int64]


@pytest.mark.parametrize("seed", range(4))
def test_many_events_are_labelled_alike(seed: int) -> None:
    """Users whose events go over the thousands that are worked on together, and pauses at every border of a bucket."""
    rng = np.random.default_rng(seed)
    borders = np.concatenate([2 ** np.arange(31) * US + step for step in (-1, 0, 1)])
    sizes = rng.choice([1, 3, 40, 2040, 2047, 2048, 2049, 5000], 6)
    user = np.repeat(np.arange(6, dtype=np.int32), sizes)
    pauses = rng.choice(np.concatenate([borders[borders < 2**24], rng.integers(0, 3 * US, 40), [0]]), len(user))
    pauses[rng.integers(0, len(user), 60)] = rng.choice(borders, 60)
    time = np.cumsum(pauses)
    cuts = (int(np.quantile(time, 0.5)), int(np.quantile(time, 0.8)))
    found = [each for each, _ in both(events.labels_of, user, time, cuts, US, 6)]
    for name in ("split", "session", "starts", "gap", "split_counts", "session_lengths"):
        assert [getattr(each, name).tolist() for each in found[1:]] == [getattr(found[0], name).tolist()] * len(
            found[1:]
        )
    assert {(each.ties, each.first, each.last) for each in found} == {(found[0].ties, found[0].first, found[0].last)}
    assert len(set(found[0].gap.tolist())) > 25


def test_a_tally_of_labelled_events_is_that_of_the_events() -> None:
    """Three users; what one pass counted is not counted again."""
    log = log_of(
        {"user_id": [1, 1, 2, 3], "item_id": [1, 2, 1, 1], "timestamp": [START, START, START + US, START + 9 * US]}
    )
    labels = events.labels_of(log.user, log.timestamp, (START + US, START + 2 * US), US, 3)
    counted = [Tally.of(log, labels.split, (1, 1), given) for given in (None, labels)]
    for name in ("events", "prehistory", "first", "last", "future", "ties", "per_split"):
        assert getattr(counted[0], name) == getattr(counted[1], name)
    assert counted[1].per_split == (2, 1, 1)
    assert (counted[1].first, counted[1].last) == (START, START + 9 * US)


@pytest.mark.parametrize("plays", [[True, True, True], [True, False, True]])
def test_signals_that_never_change_are_counted_as_those_that_do(plays: list[bool]) -> None:
    """Of three events all were seen, none was liked, and all or two were played."""
    rows = {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "timestamp": [START, START + US, START + 2 * US]}
    log = log_of(rows | {"view": [True] * 3, "like": [False] * 3, "play": plays}, ("view", "like", "play"))
    signals = Tally.of(log, np.zeros(3, np.int8), (0, 0)).signals
    expected = np.zeros(1 << 16, np.int64)
    for play in plays:
        expected[(0b101 if play else 0b001) << 8 | 0b111] += 1
    assert np.array_equal(signals, expected)


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
def test_marks_and_times_of_another_length_are_refused() -> None:
    run = (np.array([0, 2]), np.zeros(2, np.int32))
    table = np.zeros(1, np.int32)
    with pytest.raises(AssertionError):
        events.taken(*run, np.zeros(3, np.int64), 1, None, table)
    with pytest.raises(AssertionError):
        events.taken(*run, None, 1, np.ones(3, bool), table)
    with pytest.raises(AssertionError):
        events.taken(*run, np.zeros(2, np.float64), 1, None, table)
    with pytest.raises(AssertionError):
        events.labels_of(np.zeros(2, np.int32), np.zeros(3, np.int64), (0, 1), 1, 1)
