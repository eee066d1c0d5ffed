"""Histories and training targets by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories import TargetRows, build_histories, build_targets, event_watch_ratio
from features.log.event_log import EventLog
from features.sessions import SessionConfig, session_index
from features.tables import write_targets
from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import HistoryArrays
from recsys.contracts.event_features import gap_buckets
from tests.toy.logs import START, US, log_of

MINUTE = 60 * US


def histories_of(log: EventLog, split: list[int]) -> HistoryArrays:
    behaviour = np.ones(len(log), np.uint8)
    return build_histories(log, np.array(split, np.int8), behaviour, event_watch_ratio(log))


def written(folder: Path, parts: Sequence[TargetRows]) -> pl.DataFrame:
    write_targets(folder / "targets.parquet", parts)
    return pl.read_parquet(folder / "targets.parquet")


def test_no_gap_is_counted_from_an_event_without_a_time() -> None:
    """Two early events, then two timed ones 5 minutes apart: only the last gap is known. User 8 begins anew."""
    rows = {
        "user_id": [7, 7, 7, 7, 8],
        "item_id": [1, 2, 3, 4, 1],
        "prehistory": [True, True, False, False, False],
        "timestamp": [None, None, START, START + 5 * MINUTE, START + 6 * MINUTE],
        "position": [1, 2, None, None, None],
    }
    known = int(gap_buckets(np.array([5 * MINUTE]))[0])
    assert known != 0
    assert histories_of(log_of(rows), [TRAIN] * 5).gap.tolist() == [0, 0, 0, known, 0]


@pytest.mark.parametrize("split_rows", [1, 2, 100])
def test_gaps_go_on_from_slice_to_slice(split_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.histories._SLICE_ROWS", split_rows)
    times = [START + minutes * MINUTE for minutes in (0, 1, 30, 600)]
    log = log_of({"user_id": [7] * 4, "item_id": [1, 2, 3, 4], "timestamp": times})
    expected = gap_buckets(np.array([-1, MINUTE, 29 * MINUTE, 570 * MINUTE]))
    assert histories_of(log, [TRAIN] * 4).gap.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("min_positive", "good", "expected"),
    [
        (1, None, [(0, [1, 2]), (2, [3]), (4, [4, 5])]),
        (2, None, [(0, [1, 2]), (4, [4, 5])]),
        (3, None, []),
        (1, [False, True, True, True], [(4, [4, 5])]),
    ],
)
def test_sessions_are_cut_into_targets_of_m_items(
    tmp_path: Path, min_positive: int, good: list | None, expected: list
) -> None:
    """Sessions 1 2 3 1 and 4 5 of train, 6 of valid, 7 of test, m = 2: an item is asked for once per session."""
    items = [1, 2, 3, 1, 4, 5, 6, 7]
    log = log_of({"user_id": [7] * 8, "item_id": items, "timestamp": [START + place * US for place in range(8)]})
    history = histories_of(log, [TRAIN] * 6 + [VALID, TEST])
    parts = build_targets(
        history,
        task="session",
        session_length=2,
        min_positive=min_positive,
        positive_sessions=np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int32),
        good=None if good is None else np.array(good),
    )
    rows = [
        (split, end, [item + 1 for item in found])
        for split, end, found in written(tmp_path, parts).select("split", "history_end", "targets").iter_rows()
    ]
    assert rows == [*((TRAIN, end, found) for end, found in expected), (VALID, 6, [6]), (TEST, 7, [7])]


def test_the_prehistory_is_cut_by_count_and_from_what_follows() -> None:
    """Three early events, then two timed ones at once, two positives to a chunk: a b | c | d e under each rule."""
    rows = {
        "user_id": [7] * 5,
        "item_id": [1, 2, 3, 4, 5],
        "prehistory": [True] * 3 + [False] * 2,
        "timestamp": [None] * 3 + [START] * 2,
        "position": [1, 2, 3, 4, 5],
        "session_id": ["s"] * 5,
    }
    log, split = log_of(rows), np.zeros(5, np.int8)
    for rule in ("gap", "given"):
        assert session_index(log, split, rule, SessionConfig(), 2).tolist() == [0, 0, 1, 2, 2]
    assert session_index(log, split, "chunk", SessionConfig(), 4).tolist() == [0, 0, 0, 1, 2]


def test_chunks_count_positive_events_only() -> None:
    """A view, then three likes, two to a chunk: view like like | like; the next view stays with the last like."""
    rows = {
        "user_id": [7] * 5,
        "item_id": [1, 2, 3, 4, 5],
        "timestamp": [START + place for place in range(5)],
        "like": [False, True, True, True, False],
    }
    log = log_of(rows, ("like",))
    assert session_index(log, np.zeros(5, np.int8), "chunk", SessionConfig(), 2).tolist() == [0, 0, 0, 1, 1]
