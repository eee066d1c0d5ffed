"""The borders of the audit's comparisons: equal instants, a share that is exactly the limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.dataset import Dataset
from tests.features.audit.leakage.test_audit import DAY, LAST_OUT, data_of, findings, sound_rows


def redated(dataset: Dataset, user: int, times: dict[int, int]) -> Dataset:
    """Give events of a user, by their place in the history, other times."""
    written = np.array(dataset.history.timestamp)
    for place, time in times.items():
        written[dataset.history.offsets[user] + place] = time
    np.save(dataset.path / "history" / "timestamp.npy", written)
    return Dataset.open(dataset.path)


def test_an_event_at_the_instant_of_the_target_is_not_later(tmp_path: Path) -> None:
    """User 4's history goes backwards, and an early event has the target's own time: a tie, and no later event."""
    sound = data_of(tmp_path, sound_rows(), {"split": {"valid_share": 0.2, "test_share": 0.2}})
    target = int(sound.history.timestamp[sound.history.valid_end[4]])
    tied = redated(sound, 4, {1: target})
    assert ("future_events", "test") not in findings(tied, "global_temporal", quick=True)
    later = redated(tied, 4, {0: target + 1})
    found = findings(later, "global_temporal", quick=True)[("future_events", "test")]
    assert found["rows"] == 1
    assert "hold 1 events" in found["words"]


@pytest.mark.parametrize(("ties", "severity"), [(1, "warning"), (0, None)])
def test_a_tie_in_one_of_a_hundred_targets_is_worth_a_warning(tmp_path: Path, ties: int, severity: str | None) -> None:
    """At exactly one per cent; with 101 users one tie is a note."""
    for users, expected in ((100, severity), (101, "note" if ties else None)):
        rows = [(user, 3 * user + step, step * DAY + user) for user in range(users) for step in range(3)]
        rows += [(user, 900 + user % 7, (2 if user < ties else 3) * DAY + user) for user in range(users)]
        found = findings(data_of(tmp_path / str(users), rows, LAST_OUT), quick=True).get(("ties", "test"))
        assert (found and found["severity"]) == expected


@pytest.mark.parametrize(("trained", "rows"), [(1, 1), (2, 0)])
def test_users_of_whom_half_are_trained_on_are_not_held_out(tmp_path: Path, trained: int, rows: int) -> None:
    """Of four asked users one has a train event, which is an oversight; or two, which is how the split is made."""
    events = [(user, 10 * user + step, step * DAY + user, "train") for user in range(4) for step in range(3)]
    for user in range(10, 14):
        events += [(user, 50 + step, (5 + step) * DAY + user, "test") for step in range(2)]
    events += [(user, 60 + user, 5 * DAY + user, "valid") for user in (20, 21)]
    events += [(10 + user, 50, DAY, "train") for user in range(trained)]
    dataset = data_of(tmp_path, events, {"split": {"kind": "given"}}, names=["split"], columns={"split": "split"})
    found = findings(dataset, "given").get(("users_on_both_sides", "test"))
    assert (found["rows"] if found else 0) == rows
