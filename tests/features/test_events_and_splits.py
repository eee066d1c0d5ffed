"""Order, repeats, k-core, splits and sessions on logs small enough to do by hand."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.events import EventLog, KCoreConfig, build_event_log, encode_ids, k_core_mask
from features.quarantine import QuarantineConfig, check_share, refuse_rows
from features.sessions import SessionConfig, session_index, session_rule
from features.sources.base import EventStream, RawTables
from features.splits import SplitConfig, leave_last_out, split_events
from recsys.contracts.errors import ConfigError, DataError

US = 1_000_000
START = 1_650_000_000 * US


def raw_tables(rows: dict, signals: tuple[str, ...] = (), *, timed: bool = True) -> RawTables:
    frame = pl.DataFrame(rows).with_row_index("row")
    if "prehistory" not in frame.columns:
        frame = frame.with_columns(prehistory=pl.lit(False))
    return RawTables(EventStream.from_frame(frame, "log"), None, None, signals, signals, timed)


def log_of(rows: dict, signals: tuple[str, ...] = (), duplicates: str = "drop", **k_core: int) -> EventLog:
    raw = raw_tables(rows, signals, timed="timestamp" in rows)
    return build_event_log(raw, raw.interactions.collect(), KCoreConfig(**k_core), duplicates)


def test_events_are_sorted_by_user_then_time_and_ties_keep_the_source_order() -> None:
    log = log_of(
        {"user_id": [8, 7, 7, 7], "item_id": [1, 5, 4, 3], "timestamp": [START, START + US, START + US, START]}
    )
    assert log.user_ids.to_list() == [7, 8]
    assert log.item_ids.to_list() == [1, 3, 4, 5]
    assert log.user.tolist() == [0, 0, 0, 1]
    assert log.item_ids[log.item].to_list() == [3, 5, 4, 1]  # 5 before 4: same instant, order of the source


def test_prehistory_comes_before_all_timed_events_in_the_order_of_its_positions() -> None:
    log = log_of(
        {
            "user_id": [7, 7, 7],
            "item_id": [1, 2, 3],
            "timestamp": [START, None, None],
            "position": [None, 9, 4],
            "prehistory": [False, True, True],
        }
    )
    assert log.item_ids[log.item].to_list() == [3, 2, 1]
    assert log.timestamp.tolist() == [-1, -1, START]


def test_repeated_rows_go_to_quarantine_and_the_first_stays() -> None:
    """Rows 0 and 2 are the same user, item and instant, with another item between; row 3 is a later repeat visit."""
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 1, 1], "timestamp": [START, START, START, START + US]}
    log = log_of(rows)
    assert log.item_ids[log.item].to_list() == [1, 2, 1]
    assert log.duplicates.select("row", "reason").rows() == [(2, "duplicate")]
    assert len(log_of(rows, duplicates="keep")) == 4


def test_string_and_sparse_integer_ids_get_ascending_codes() -> None:
    for ids in (["z", "a", "m", "a"], [9_000_000_000, -5, 12, -5]):
        codes, distinct = encode_ids(pl.Series(ids))
        assert codes.tolist() == [2, 0, 1, 0]
        assert distinct.to_list() == sorted(set(ids))


def test_k_core_equals_repeated_filtering() -> None:
    """The bincount version keeps what filtering users and items in turn, until nothing changes, keeps."""
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, 60, 600).astype(np.int32), rng.integers(0, 50, 600).astype(np.int32)
    positive = rng.random(600) < 0.7
    frame = pl.DataFrame({"u": user, "i": item, "p": positive})
    slow = frame.with_row_index()
    while True:
        good = slow.filter("p")
        users = good.group_by("u").len().filter(pl.col("len") >= 5)["u"]
        items = good.group_by("i").len().filter(pl.col("len") >= 5)["i"]
        smaller = slow.filter(pl.col("u").is_in(users.implode()) & pl.col("i").is_in(items.implode()))
        if len(smaller) == len(slow):
            break
        slow = smaller
    mask = k_core_mask(user, item, positive, KCoreConfig(user=5, item=5))
    assert 0 < mask.sum() < 600
    assert np.flatnonzero(mask).tolist() == slow["index"].to_list()


def test_k_core_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no event is left"):
        log_of({"user_id": [7], "item_id": [1], "timestamp": [START]}, user=2)


def test_bad_rows_get_the_first_reason_that_applies() -> None:
    raw = raw_tables(
        {
            "user_id": [None, 7, 7, 7, 7, 7],
            "item_id": [None, None, 1, 1, 1, 1],
            "timestamp": [START, START, None, 12, START, START],
            "watch_time_ms": [1.0, 1.0, 1.0, 1.0, -1.0, None],
        }
    )
    good, bad = refuse_rows(raw, need_session_id=False)
    assert good["row"].to_list() == [5]
    expected = ["null user_id", "null item_id", "null timestamp", "implausible timestamp", "negative watch_time_ms"]
    assert bad["reason"].to_list() == expected
    with pytest.raises(DataError, match=r"5 of 6 rows \(83.3%\) are unusable, allowed are 5.0%.*null user_id: 1"):
        check_share(bad, 6, QuarantineConfig())


def test_leave_last_out_by_hand() -> None:
    """User 0 has three positives at rows 0, 2, 3: train, valid, test; user 1 has two: train only."""
    user = np.array([0, 0, 0, 0, 1, 1], np.int32)
    positive = np.array([1, 0, 1, 1, 1, 1], bool)
    assert leave_last_out(user, positive, 2).tolist() == [0, 0, 1, 2, 0, 0]


def test_global_split_cuts_every_user_at_the_same_instants() -> None:
    """Ten events, a second apart; shares 0.2 and 0.2 put seconds 6, 7 in valid and 8, 9 in test."""
    log = log_of({"user_id": [7, 8] * 5, "item_id": list(range(10)), "timestamp": [START + k * US for k in range(10)]})
    split, facts = split_events(log, SplitConfig(valid_share=0.2, test_share=0.2), has_timestamps=True)
    seconds = (log.timestamp - START) // US
    assert {int(s): int(c) for s, c in zip(seconds, split, strict=True)} == dict(
        enumerate([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    )
    assert facts["valid_from"] == "2022-04-15T05:20:06+00:00"


def test_global_split_by_date_and_its_refusals() -> None:
    config = SplitConfig(valid_from="2022-04-15T05:20:01+00:00", test_from="2022-04-15T07:20:02+02:00")
    log = log_of({"user_id": [7] * 3, "item_id": [1, 2, 3], "timestamp": [START, START + US, START + 2 * US]})
    assert split_events(log, config, has_timestamps=True)[0].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="the source has no timestamps"):
        split_events(log, SplitConfig(), has_timestamps=False)
    with pytest.raises(ValidationError, match="is not before test_from"):
        SplitConfig(valid_from="2022-05-02", test_from="2022-05-01")
    with pytest.raises(ValidationError, match="give both or neither"):
        SplitConfig(valid_from="2022-05-02")


def test_given_split_must_be_in_order_of_time() -> None:
    rows = {"user_id": [7, 7], "item_id": [1, 2], "timestamp": [START, START + US], "split": ["train", "Test"]}
    assert split_events(log_of(rows), SplitConfig(kind="given"), has_timestamps=True)[0].tolist() == [0, 2]
    with pytest.raises(DataError, match="not in order of time for 1 users, the first is 7"):
        split_events(log_of(rows | {"split": ["test", "train"]}), SplitConfig(kind="given"), has_timestamps=True)
    with pytest.raises(DataError, match=r"holds \['later'\]"):
        split_events(log_of(rows | {"split": ["train", "later"]}), SplitConfig(kind="given"), has_timestamps=True)


def test_sessions_by_gap_by_id_and_by_count() -> None:
    """Pauses of 10 and 31 minutes: one session, then another. Chunks of 2 positives: a b | c."""
    minute = 60 * US
    rows = {
        "user_id": [7, 7, 7, 8],
        "item_id": [1, 2, 3, 1],
        "timestamp": [START, START + 10 * minute, START + 41 * minute, START],
        "session_id": [5, 6, 6, 6],
    }
    log, split = log_of(rows), np.zeros(4, np.int8)
    config = SessionConfig()
    assert session_index(log, split, "gap", config, 2).tolist() == [0, 0, 1, 2]
    assert session_index(log, split, "given", config, 2).tolist() == [0, 1, 1, 2]
    assert session_index(log, split, "chunk", config, 2).tolist() == [0, 0, 1, 2]
    crossing = np.array([0, 1, 1, 0], np.int8)
    assert session_index(log, crossing, "gap", config, 2).tolist() == [0, 1, 2, 3]


def test_session_rule_is_recorded_or_refused() -> None:
    assert session_rule(SessionConfig(), has_session_id=True, has_timestamps=True) == "given"
    assert session_rule(SessionConfig(), has_session_id=False, has_timestamps=True) == "gap"
    assert session_rule(SessionConfig(), has_session_id=False, has_timestamps=False) == "chunk"
    with pytest.raises(ConfigError, match="no timestamps"):
        session_rule(SessionConfig(by="gap"), has_session_id=False, has_timestamps=False)
    with pytest.raises(ConfigError, match="no session_id is mapped"):
        session_rule(SessionConfig(by="given"), has_session_id=False, has_timestamps=True)
