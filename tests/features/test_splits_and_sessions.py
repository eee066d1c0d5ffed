"""Splits and sessions on logs small enough to do by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from features.sessions import SessionConfig, session_index, session_rule
from features.splits import SplitConfig, leave_last_out, split_events
from recsys.contracts.errors import ConfigError, DataError
from tests.toy.logs import START, US, log_of


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


def test_a_pause_of_exactly_the_gap_ends_no_session() -> None:
    """30 minutes to the microsecond stay one session, as "longer than" says; one microsecond more begins another."""
    half_hour = 30 * 60 * US
    times = [START, START + half_hour, START + 2 * half_hour + 1]
    log = log_of({"user_id": [7] * 3, "item_id": [1, 2, 3], "timestamp": times})
    assert session_index(log, np.zeros(3, np.int8), "gap", SessionConfig(), 2).tolist() == [0, 0, 1]


def test_session_rule_is_recorded_or_refused() -> None:
    assert session_rule(SessionConfig(), has_session_id=True, has_timestamps=True) == "given"
    assert session_rule(SessionConfig(), has_session_id=False, has_timestamps=True) == "gap"
    assert session_rule(SessionConfig(), has_session_id=False, has_timestamps=False) == "chunk"
    with pytest.raises(ConfigError, match="no timestamps"):
        session_rule(SessionConfig(by="gap"), has_session_id=False, has_timestamps=False)
    with pytest.raises(ConfigError, match="no session_id is mapped"):
        session_rule(SessionConfig(by="given"), has_session_id=False, has_timestamps=True)
