"""Sessions with feedback: labels by hand, histories without leaks, cuts that do not depend on labels."""

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.reward.config import FeedbackConfig, RewardSignal
from recsys.reward.feedback.dataset import session_feedback
from recsys.reward.feedback.labels import rank_among
from tests.toy.reward import colour_prepared, event, prepared_from

LENIENT = FeedbackConfig(min_positives=1)


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """User 0: ``a+ b- c+ | d- e+`` with M = 2; user 1: one session of each kind."""
    rows = [
        event(0, 0, 10, 0, watch=100, view=True),
        event(0, 1, 20, 0, watch=0),
        event(0, 2, 30, 0, watch=300, view=True, like=True),
        event(0, 3, 99, 1, watch=50),
        event(0, 4, 100, 1, watch=200, view=True),
        event(1, 0, 15, 2, watch=0),
        event(1, 1, 500, 3, split=VALID, watch=1000, view=True, like=True),
        event(1, 2, 900, 4, split=TEST, watch=None, view=True, like=None),
    ]
    return prepared_from(tmp_path / "small", rows, items=5)


def test_sessions_labels_and_histories_by_hand(small: Dataset) -> None:
    """Watch times of the train sessions: 100, 300, 250, 0; ranks among [0, 100, 250, 300], ties counted half.

    swt = (3/8, 7/8, 5/8, 1/8); the validation session with 1000 ms is above all: 1. vtr is the share of items viewed:
    (1/2, 1, 1/2, 0, 1, 1); ltr whether any was liked: (0, 1, 0, 0, 1, not known).
    """
    feedback = session_feedback(small, LENIENT)
    assert feedback.names == ("swt", "vtr", "ltr")
    assert feedback.padded_items(2).tolist() == [[0, 1], [2, -1], [3, 4], [0, -1], [1, -1], [2, -1]]
    nan = np.nan
    expected = [[3 / 8, 0.5, 0], [7 / 8, 1, 1], [5 / 8, 0.5, 0], [1 / 8, 0, 0], [1, 1, 1], [nan, 1, nan]]
    np.testing.assert_allclose(feedback.labels, expected)
    # the positive events are 0 2 4 | 1 2: a row sees those before its first item
    assert [seen.tolist() for seen in feedback.histories.seen_items()] == [[], [0], [0, 2], [], [], [1]]
    assert feedback.split.tolist() == [TRAIN] * 4 + [VALID, TEST]
    assert feedback.of(TRAIN).of_users(np.array([False, True])).padded_items(2).tolist() == [[0, -1]]


def test_ranks_count_ties_half() -> None:
    """Below 2 lie 1, at 2 lie two of four: (1 + 3) / 8 = 0.5."""
    assert rank_among(np.array([2.0, np.nan]), np.array([1.0, 2.0, 2.0, 5.0])).tolist()[0] == 0.5


def test_a_user_rank_compares_a_user_with_himself(small: Dataset) -> None:
    """User 0 has three train sessions, 100, 300, 250 ms: ranks 1/6, 5/6, 3/6; user 1 has one and is ranked among all."""
    feedback = session_feedback(small, FeedbackConfig(min_positives=1, watch_scale="user_rank", min_user_sessions=2))
    np.testing.assert_allclose(feedback.labels[:5, 0], [1 / 6, 5 / 6, 3 / 6, 1 / 8, 1])
    for least, first in ((3, 1 / 6), (4, 3 / 8)):  # three sessions are enough for 3, and user 0 is among all for 4
        config = FeedbackConfig(min_positives=1, watch_scale="user_rank", min_user_sessions=least)
        assert session_feedback(small, config).labels[0, 0] == pytest.approx(first)


def test_no_history_contains_an_event_of_the_session_or_later(tmp_path: Path) -> None:
    prepared = colour_prepared(tmp_path / "colours", users=30)
    feedback = session_feedback(prepared, LENIENT)
    times = np.asarray(prepared.history.timestamp)
    events = prepared.events
    first = {}
    for row in events.iter_rows(named=True):
        first.setdefault(row["session_index"], (row["user_index"], row["timestamp"]))
    begin = np.array([first[number][1] for number in sorted(first)])
    assert len(feedback) == len(begin)
    for row in range(len(feedback)):
        seen = times[feedback.histories.start[row] : feedback.histories.end[row]]
        assert (seen < begin[row]).all()
        owner = feedback.user_index[row]
        assert feedback.histories.start[row] == prepared.history.offsets[owner]


def test_an_event_of_the_same_instant_is_no_history(tmp_path: Path) -> None:
    rows = [event(0, 0, 10, 0, view=True), event(0, 1, 20, 0, view=True), event(0, 2, 20, 1, watch=9, like=True)]
    feedback = session_feedback(prepared_from(tmp_path / "tie", rows, 3), LENIENT.model_copy(update={"max_items": 5}))
    assert [seen.tolist() for seen in feedback.histories.seen_items()] == [[], [0]]


def test_events_without_time_are_cut_by_count_whatever_their_labels(tmp_path: Path) -> None:
    """Sessions of timeless events were cut at positives (0 | 1 2 | 3 4): taken as they are, a first item would always
    be positive. Ours are pairs from the start: (0 1) (2 3) (4), and a timed event begins a new one."""
    flags = [True, True, False, True, False]
    sessions = [0, 1, 1, 2, 2]
    rows = [event(0, item, None, sessions[item], view=flags[item], watch=item) for item in range(5)]
    rows.append(event(0, 5, 77, 3, like=True))
    feedback = session_feedback(prepared_from(tmp_path / "timeless", rows, 6), LENIENT)
    assert feedback.padded_items(2).tolist() == [[0, 1], [2, 3], [4, -1], [5, -1]]


def test_a_timeline_ignores_session_borders_and_short_ones_are_left_out(tmp_path: Path) -> None:
    rows = [event(0, item, 10 * item, item, view=item % 2 == 0, like=item == 1, watch=item) for item in range(5)]
    prepared = prepared_from(tmp_path / "timeline", rows, 5)
    config = FeedbackConfig(min_positives=1, span="timeline", min_items=2)
    assert session_feedback(prepared, config).padded_items(2).tolist() == [[0, 1], [2, 3]]


def test_unexposed_items_get_no_feedback_and_leave_the_rest_as_it_is(tmp_path: Path) -> None:
    prepared = colour_prepared(tmp_path / "colours", users=60)
    feedback = session_feedback(prepared, LENIENT)
    other = feedback.with_unexposed_items(seed=3)
    changed = (other.event_values != feedback.event_values).any(1) | (other.items != feedback.items)
    assert (other.event_values[changed] == 0).all()
    assert (other.event_values[~changed] == feedback.event_values[~changed]).all()
    # one or both of two items, with equal chance: 3/4 of the items; a few stay equal by chance
    assert 0.65 < changed.mean() < 0.78
    assert np.add.reduceat(changed, other.item_offsets[:-1]).min() >= 0
    view = feedback.names.index("vtr")
    expected = np.add.reduceat(other.event_values[:, view], other.item_offsets[:-1]) / other.lengths
    np.testing.assert_allclose(other.labels[:, view], expected)
    assert (other.labels[:, view] <= feedback.labels[:, view]).all()
    again = feedback.with_unexposed_items(seed=3)
    assert (again.items == other.items).all()


def test_refusals(tmp_path: Path, small: Dataset) -> None:
    rows = [event(0, 0, 10, 0, view=True), event(0, 1, 20, 0)]
    bare = prepared_from(tmp_path / "bare", rows, 2, drop=("watch_time_ms", "long_view", "like"), signals=())
    with pytest.raises(DataError, match=r"no feedback .* needs 'watch_time_ms' or at least one declared signal"):
        session_feedback(bare, FeedbackConfig())
    share = (RewardSignal(name="sharing", column="share", kind="any"),)
    with pytest.raises(DataError, match=r"column 'share', which events.parquet does not have"):
        session_feedback(small, FeedbackConfig(signals=share))
    like = (RewardSignal(name="ltr", column="like", kind="any"),)
    with pytest.raises(DataError, match=r"ltr .* 1 of 4 train sessions .* at least 2"):
        session_feedback(small, FeedbackConfig(signals=like, min_positives=2))
    with pytest.raises(DataError, match="no session has min_items 9"):
        session_feedback(small, FeedbackConfig(min_items=9))


def test_a_signal_that_hardly_occurs_gets_no_tower_and_is_named(small: Dataset) -> None:
    feedback = session_feedback(small, FeedbackConfig(min_positives=2))
    assert feedback.names == ("swt",)
    assert [reason.split(" ")[0] for reason in feedback.left_out] == ["vtr", "ltr"]
