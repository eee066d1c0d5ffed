"""Passes over columns: the kernels give what NumPy gives, and both what a loop in Python gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import repeats
from features.log.order import same_as_before
from features.passes import rows, users
from recsys import native
from recsys.contracts.event_features import gap_buckets

US = 1_000_000


def both(function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """The result of NumPy, and that of the kernel where it is compiled; each gets its own copy of what is written to."""
    ways = (False, True) if native.available() else (False,)
    for compiled in ways:
        copied = [np.copy(argument) if isinstance(argument, np.ndarray) else argument for argument in arguments]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("recsys.native.columns.available", lambda compiled=compiled: compiled)
            yield function(*copied), copied


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int32, np.uint32, np.float32, np.int64])
@given(seed=st.integers(0, 999), count=st.integers(0, 60), added=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_rows_taken_out_and_put_in_between(dtype: type, seed: int, count: int, added: int) -> None:
    rng = np.random.default_rng(seed)
    old, fresh = (rng.integers(0, 100, size).astype(dtype) for size in (count, added))
    keep, at = rng.random(count) < 0.6, np.sort(rng.integers(0, count + 1, added))
    expected = old.tolist()
    for place, value in reversed(list(zip(at.tolist(), fresh.tolist(), strict=True))):
        expected.insert(place, value)
    for found, _ in both(rows.inserted, old, at, fresh):
        assert (found.tolist(), found.dtype) == (expected, old.dtype)
    for found, _ in both(rows.compressed, old, keep):
        assert (found.tolist(), found.dtype) == ([v for v, k in zip(old.tolist(), keep, strict=True) if k], old.dtype)


@given(seed=st.integers(0, 999), count=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_codes_looked_up_ranked_and_counted(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    codes, table = rng.integers(0, 9, count).astype(np.int32), rng.integers(0, 99, 9).astype(np.int32)
    keep = rng.random(count) < 0.5
    holes = np.where(rng.random(count) < 0.3, np.int32(-1), codes)
    for found, _ in both(rows.gathered, table, holes):
        assert found.tolist() == [-1 if code < 0 else int(table[code]) for code in holes]
    ordered = np.sort(codes)
    for found, (_, used) in both(rows.ranked, ordered, np.zeros(9, bool)):
        met = sorted(set(codes.tolist()))
        assert found.tolist() == [met.index(code) for code in ordered]
        assert np.flatnonzero(used).tolist() == met
    for marks in (None, keep):
        for _, (_, _, counts) in both(rows.add_counts, codes, marks, np.arange(9)):
            counted = codes if marks is None else codes[marks]
            assert counts.tolist() == [code + counted.tolist().count(code) for code in range(9)]


@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(0, 6), max_size=8), some=st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_k_core_of_a_run_of_users(seed: int, sizes: list[int], some: bool) -> None:
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    user, item = np.repeat(np.arange(len(sizes)), sizes), rng.integers(0, 5, sum(sizes)).astype(np.int32)
    counts = rng.random(len(item)) < 0.7 if some else None
    sure = (rng.random(len(sizes)) < 0.5, rng.random(5) < 0.5)

    def counted(*run: Any) -> Any:
        sums = (np.full(len(sizes), 2), np.full(5, 3))
        return users.count_open(*run, counts, sure, 70, sums), sums

    rows_that_count = [row for row in range(len(item)) if counts is None or counts[row]]
    is_open = [row for row in rows_that_count if not (sure[0][user[row]] and sure[1][item[row]])]
    for (found, sums), _ in both(counted, starts, item):
        assert found[0].tolist() == [70 + int(user[row]) for row in is_open]
        assert found[1].tolist() == [int(item[row]) for row in is_open]
        open_items = [row for row in rows_that_count if not sure[1][item[row]]]
        for total, codes, of, counted_rows in zip(
            sums, (user, item), (2, 3), (rows_that_count, open_items), strict=True
        ):
            assert total.tolist() == [
                of + sum(int(codes[row]) == code for row in counted_rows) for code in range(len(total))
            ]
    for (keep, kept), _ in both(users.marked, starts, item, *sure):
        assert keep.tolist() == [bool(sure[0][u] and sure[1][i]) for u, i in zip(user, item, strict=True)]
        assert kept == sum(keep.tolist())
    for dtype in (np.uint32, np.int64):
        time = rng.integers(0, 9, len(item)).astype(dtype)
        for (keep, kept, late), _ in both(users.marked_late, starts, item, *sure, time, 4):
            marks = [bool(sure[0][u] and sure[1][i]) for u, i in zip(user, item, strict=True)]
            assert (keep.tolist(), kept) == (marks, sum(marks))
            assert (late.tolist(), late.dtype) == (
                [t for t, m in zip(time.tolist(), marks, strict=True) if m and t >= 4],
                dtype,
            )


@given(seed=st.integers(0, 9999), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), many=st.booleans())
@settings(max_examples=150, deadline=None)
def test_repeats_are_rows_with_user_item_and_time_of_an_earlier_one(seed: int, sizes: list[int], many: bool) -> None:
    """In groups of one instant, by item; into the first of each group."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    item = rng.integers(0, 3 if many else 40, sum(sizes)).astype(np.int32)
    user = np.repeat(np.arange(len(sizes)), sizes)
    time = np.concatenate([np.sort(rng.integers(0, 4, size)) for size in sizes]).astype(np.uint32)
    event = list(zip(user.tolist(), time.tolist(), item.tolist(), strict=True))
    again = sorted((what, row) for row, what in enumerate(event) if event.index(what) < row)
    for dtype in (np.uint32, np.int64):
        for found, _ in both(repeats.repeats_of, starts, item, time.astype(dtype)):
            assert found.rows.tolist() == [row for _, row in again]
            assert found.into.tolist() == [event.index(what) for what, _ in again]


@given(seed=st.integers(0, 999), count=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_gaps_and_splits(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, 4, count)).astype(np.int32)
    steps = rng.choice([0, 1, US - 1, US, 3 * US, 2**40, -1], count)
    time = np.where(rng.random(count) < 0.2, -1, np.cumsum(np.maximum(steps, 0)))
    last_user, last_time = int(rng.integers(-1, 2)), int(rng.choice([-1, 0, 5]))
    before = list(zip([last_user, *user.tolist()], [last_time, *time.tolist()], strict=True))
    expected = [
        int(gap_buckets(np.array([t - b]))[0]) if u == w and b >= 0 and t >= 0 else 0
        for (w, b), u, t in zip(before, user.tolist(), time.tolist(), strict=False)
    ]
    for found, _ in both(users.gap_codes, user, time, last_user, last_time):
        assert (found.tolist(), found.dtype) == (expected, np.uint8)
    split = rng.integers(0, 3, count).astype(np.int8)
    for found, _ in both(users.split_counts, user, split, 4, 3):
        assert found.tolist() == [[int(((user == u) & (split == s)).sum()) for u in range(4)] for s in range(3)]


@given(seed=st.integers(0, 999), count=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_sessions_by_gap_and_where_they_start(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    user, split = (np.sort(rng.integers(0, 3, count)).astype(dtype) for dtype in (np.int32, np.int8))
    time = np.cumsum(rng.choice([0, 9, 10, 11, -30], count))
    events = list(zip(user.tolist(), split.tolist(), time.tolist(), strict=True))
    starts = [0] + [
        row
        for row in range(1, count)
        if events[row][:2] != events[row - 1][:2] or events[row][2] - events[row - 1][2] > 10
    ]
    sessions = np.searchsorted(starts, np.arange(count), side="right") - 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(users, "_SLICE_ROWS", 7)
        for found, _ in both(users.gap_sessions, user, split, time, 10):
            assert (found.tolist(), found.dtype) == (sessions.tolist(), np.int32)
        for found, _ in both(users.run_starts, sessions.astype(np.int32)):
            assert found.tolist() == [*starts, count]
    same = [False] + [(u, t) == (v, b) for (v, _, b), (u, _, t) in itertools.pairwise(events)]
    for found, _ in both(same_as_before, [user, time]):
        assert found.tolist() == same


def test_gaps_at_the_borders_of_their_buckets() -> None:
    """Less than a second is code 1, one second 2, then a code for each doubling, and 31 at most."""
    time = np.cumsum([0, US - 1, US, 2 * US - 1, 2 * US, 4 * US, 2**29 * US, 2**40 * US])
    for found, _ in both(users.gap_codes, np.zeros(8, np.int32), time, -1, -1):
        assert found.tolist() == [0, 1, 2, 2, 3, 4, 31, 31]


@given(seed=st.integers(0, 999), sizes=st.lists(st.sampled_from([0, 1, 2, 5, 32, 33, 60]), max_size=5))
@settings(max_examples=60, deadline=None)
def test_each_item_of_a_window_once(seed: int, sizes: list[int]) -> None:
    """Windows of more than 32 events are looked through in another way than shorter ones."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([size + 1 for size in sizes]).astype(np.int64)  # one event between two windows belongs to none
    starts = ends - np.array(sizes, np.int64)
    item = rng.integers(0, 40, sum(sizes) + len(sizes)).astype(np.int32)
    expected = [list(dict.fromkeys(item[s:e].tolist())) for s, e in zip(starts, ends, strict=True)]
    for (items, found), _ in both(users.distinct_targets, starts, ends, item):
        assert found.tolist() == [len(window) for window in expected]
        assert items.tolist() == [each for window in expected for each in window]
    inside = [each for s, e in zip(starts, ends, strict=True) for each in item[s:e].tolist()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(users, "_SLICE_USERS", 2)
        for found, _ in both(users.item_counts, starts, ends, item, 40):
            assert found.tolist() == [inside.count(each) for each in range(40)]


@given(
    times=st.lists(st.integers(0, 2**32 - 1).map(lambda second: second * US), max_size=9),
    odd=st.sampled_from([None, -1, -US, 1, US - 1, 2**32 * US, 2**32 * US - 1, -(2**63), 2**63 - 1, 2**62]),
    place=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_whole_seconds(times: list[int], odd: int | None, place: int) -> None:
    """All of them are, or the one that is not says so: below 0, between seconds, or after 2106."""
    if odd is not None:
        times.insert(place, odd)
    for found, _ in both(rows.seconds_of, np.array(times, np.int64)):
        if odd is None:
            assert (found.tolist(), found.dtype) == ([time // US for time in times], np.uint32)
        else:
            assert found is None


@pytest.mark.parametrize("place", [0, 4095, 4096, 65_535, 65_536, 70_000])
def test_whole_seconds_of_many(place: int) -> None:
    """The one odd time is found in whichever block it stands."""
    times = np.arange(70_001) * US
    for found, _ in both(rows.seconds_of, times):
        assert found is not None
        assert (found == np.arange(70_001)).all()
    times[place] += 1
    for found, _ in both(rows.seconds_of, times):
        assert found is None


def test_nothing_is_remembered_from_call_to_call() -> None:
    """Tables that are kept: the same rows repeat nothing of the call before, whatever numbers rows and items had."""
    starts, stored = np.array([0, 40]), np.zeros(40, np.uint32)
    for items in (np.arange(40), np.arange(40)[::-1] * 1000, np.arange(40)):
        item = np.append(items[:39], items[0]).astype(np.int32)
        for _ in range(2):
            for (rows_found, into, _), _ in both(repeats_arrays, starts, item, stored):
                assert (rows_found, into) == ([39], [0])
            for (found, sizes), _ in both(users.distinct_targets, starts[:-1], starts[1:], item):
                assert (found.tolist(), sizes.tolist()) == (item[:39].tolist(), [39])


def repeats_arrays(*arguments: Any) -> tuple[list[int], list[int], list[int]]:
    found = repeats.repeats_of(*arguments)
    return found.rows.tolist(), found.into.tolist(), []


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
def test_memory_that_does_not_fit_is_refused() -> None:
    from recsys.native import columns

    with pytest.raises(AssertionError, match="int64, expected int32"):
        columns.gathered(np.zeros(2, np.int32), np.zeros(2, np.int64))
    with pytest.raises(AssertionError):
        columns.inserted(np.zeros(2, np.int32), np.array([3]), np.zeros(1, np.int32))
    with pytest.raises(AssertionError):
        columns.compressed(np.zeros(4, np.int32)[::2], np.ones(2, bool))


def _codes(*codes: int) -> Any:
    return np.array(codes, np.int32)


def _rows(*rows: int) -> Any:
    return np.array(rows, np.int64)


def _no_items(name: str) -> tuple[int, ...]:
    """Kernels that look nothing up by item know no largest one."""
    return (-1,) if name in ("distinct_targets", "repeats") else (-1, 3)


# three items; one user, whose rows are 0 and 1
_WINDOW, _NO_WINDOWS = (
    [_rows(0), _rows(2)],
    [[_rows(-1), _rows(2)], [_rows(0), _rows(3)], [_rows(2), _rows(1)], [_rows(0), _rows()]],
)
_OVER_WINDOWS: dict[str, list[Any]] = {"count_windows": [np.zeros(3, int)], "distinct_targets": []}
_RUN, _NO_RUNS = _rows(0, 2), [_rows(-1, 2), _rows(0, 3), _rows(2, 1)]
_STAYS = [np.ones(1, bool), np.ones(3, bool)]
_OVER_RUNS: dict[str, list[Any]] = {
    "count_open": [None, tuple(_STAYS), 0, (np.zeros(1, int), np.zeros(3, int))],
    "marked": _STAYS,
    "marked_late": [*_STAYS, np.zeros(2, int), 0],
    "taken": [None, 1, None, np.arange(3, dtype=np.int32)],
    "repeats": [np.zeros(2, int)],
}

WRONG: list[tuple[str, list[Any]]] = [
    ("inserted", [np.arange(3), np.array([3, 0]), np.arange(2)]),
    ("inserted", [np.arange(3), np.array([0, 1]), np.arange(1)]),
    ("inserted", [np.arange(3), np.array([4]), np.arange(1)]),
    ("gap_codes", [np.zeros(2, np.int32), np.zeros(1, np.int64), 0, 0]),
    ("gap_sessions", [np.zeros(2, np.int32), np.zeros(1, np.int8), np.zeros(2, np.int64), 5]),
    ("split_counts", [np.zeros(2, np.int32), np.zeros(1, np.int8), 2, 3]),
    ("whole_seconds", [np.zeros(2, np.int32)]),
    ("run_starts", [np.array([0, 5], np.int32)]),
    ("run_starts", [np.array([5, 0], np.int32)]),
    ("run_starts", [np.array([0, 1, 0, 1, 0, 1], np.int32)]),
    *[("gathered", [np.arange(3, dtype=np.int32), _codes(1, 3)])],
    *[("ranked", [_codes(0, code), np.zeros(3, bool)]) for code in (3, -1)],
    *[
        ("add_counts", [_codes(0, code), keep, np.zeros(3, int)])
        for code in (3, -1)
        for keep in (None, np.zeros(2, bool))
    ],
    *[(name, [*rows, _codes(0, 1), *more]) for name, more in _OVER_WINDOWS.items() for rows in _NO_WINDOWS],
    *[(name, [*_WINDOW, _codes(0, code), *more]) for name, more in _OVER_WINDOWS.items() for code in _no_items(name)],
    *[(name, [starts, _codes(0, 1), *more]) for name, more in _OVER_RUNS.items() for starts in _NO_RUNS],
    *[(name, [_RUN, _codes(0, code), *more]) for name, more in _OVER_RUNS.items() for code in _no_items(name)],
    *[
        (name, [_RUN[:1], _codes(), *more])
        for name, more in _OVER_RUNS.items()
        if name in ("count_open", "marked", "marked_late")
    ],
    *[("labelled", [_codes(0, user), np.zeros(2, int), (1, 2), 5, 2]) for user in (-1, 2)],
    *[("split_counts", [_codes(0, user), np.zeros(2, np.int8), 2, 3]) for user in (-1, 2)],
    *[("split_counts", [_codes(0, 1), np.array([0, split], np.int8), 2, 3]) for split in (-1, 3)],
]


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
@pytest.mark.parametrize(("name", "arguments"), WRONG)
def test_what_would_be_read_or_written_beyond_is_refused(name: str, arguments: list[Any]) -> None:
    """Rows out of order, and columns of other lengths: a kernel reads and writes plain memory."""
    from recsys.native import columns

    with pytest.raises(AssertionError):
        getattr(columns, name)(*arguments)


def test_no_rows_are_no_runs() -> None:
    for found, _ in both(users.run_starts, np.zeros(0, np.int32)):
        assert found.tolist() == [0]
