"""Which event belongs to train, validation and test.

Reads the event log; produces one code per event (:data:`recsys.contracts.columns.TRAIN` …). A user's train events are
always a prefix of their events, the valid events follow, then test: no history can contain what it is to predict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from features.log.event_log import EventLog
from recsys.config import FrozenConfig, an_instant
from recsys.contracts.columns import SPLIT_NAMES, TEST, TRAIN, VALID, Columns
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_times import microseconds

logger = logging.getLogger("recsys.features")
SplitArray = npt.NDArray[np.int8]
_SLICE_ROWS: Final = 1 << 20
_BIN_BITS: Final = 14

_GIVEN = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "dev": VALID, "test": TEST}
_GIVEN |= {str(code): code for code in (TRAIN, VALID, TEST)}


class SplitConfig(FrozenConfig):
    """How to split.

    Attributes:
        kind: ``global_temporal`` cuts all users at the same two instants; ``leave_last_out`` takes each user's last
            positive event for test and the one before for validation (it leaks across time: one user's train events
            may be later than another's test event); ``given`` takes the source's ``split`` column.
        valid_share: Share of timed events in the validation window, when no dates are given.
        test_share: Share of timed events in the test window, when no dates are given.
        valid_from: First instant of validation, UTC unless it carries an offset; needs ``test_from``.
        test_from: First instant of test.
    """

    kind: Literal["global_temporal", "leave_last_out", "given"] = "global_temporal"
    valid_share: float = Field(0.1, gt=0.0, lt=1.0)
    test_share: float = Field(0.1, gt=0.0, lt=1.0)
    valid_from: datetime | date | None = None
    test_from: datetime | date | None = None

    _instants = field_validator("valid_from", "test_from", mode="wrap")(an_instant)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("valid_from and test_from go together: give both or neither")
        if self.valid_from is not None and self.test_from is not None:
            if self.kind != "global_temporal":
                raise ValueError(f"valid_from and test_from have no meaning for kind '{self.kind}'")
            if microseconds(self.valid_from) >= microseconds(self.test_from):
                raise ValueError(f"valid_from {self.valid_from} is not before test_from {self.test_from}")
        if self.valid_share + self.test_share >= 1.0:
            raise ValueError("valid_share and test_share together leave nothing to train on")
        return self


def split_events(log: EventLog, config: SplitConfig, *, has_timestamps: bool) -> tuple[SplitArray, dict[str, object]]:
    """Give every event its split.

    Returns:
        ``[E]`` codes, and facts for the data report.

    Raises:
        ConfigError: The split needs timestamps or a ``split`` column that the source does not have.
        DataError: The given split is not in time order, or has unknown names.
    """
    if config.kind == "leave_last_out":
        logger.warning(
            "split leave_last_out leaks across time: some users' train events are later than other users' test events"
        )
        split = leave_last_out(log.user, log.positive, len(log.user_ids))
        return split, {"kind": config.kind, "leaks_across_time": True}
    if config.kind == "given":
        return given_split(log), {"kind": config.kind}
    if not has_timestamps:
        raise ConfigError(
            "features.split.kind is 'global_temporal' but the source has no timestamps; "
            "use leave_last_out, or given with a split column"
        )
    timed = log.timestamp[~log.prehistory] if log.prehistory.any() else log.timestamp
    cuts = given_cuts(config) or cut_times(timed, config.valid_share, config.test_share)
    return split_at(log.timestamp, cuts), cut_facts(cuts)


def given_cuts(config: SplitConfig) -> tuple[int, int] | None:
    """Return the first instants of validation and test that a configuration names; ``None`` where it names none."""
    if config.valid_from is None or config.test_from is None:
        return None
    return microseconds(config.valid_from), microseconds(config.test_from)


def split_at(timestamp: npt.NDArray[np.int64], cuts: tuple[int, int]) -> SplitArray:
    """Return the split of events by their time."""
    split = (timestamp >= cuts[0]).astype(np.int8)  # VALID, and TEST is the next
    split += timestamp >= cuts[1]
    return split


def cut_facts(cuts: tuple[int, int]) -> dict[str, object]:
    """Say where the splits begin, for the data report."""
    return {
        "kind": "global_temporal",
        "valid_from": datetime.fromtimestamp(cuts[0] / 1e6, UTC).isoformat(),
        "test_from": datetime.fromtimestamp(cuts[1] / 1e6, UTC).isoformat(),
    }


def cut_times(timestamps: npt.NDArray[np.int64], valid_share: float, test_share: float) -> tuple[int, int]:
    """Return the first instants of validation and test, so that these shares of the events come after.

    Example:
        >>> cut_times(np.arange(10), 0.2, 0.1)
        (7, 9)
    """
    first_valid, first_test = cut_ranks(len(timestamps), valid_share, test_share)
    return kth_smallest(timestamps, first_valid), kth_smallest(timestamps, first_test)


def cut_ranks(count: int, valid_share: float, test_share: float) -> tuple[int, int]:
    """Return the places of the first events of validation and test among ``count`` events in order of time."""
    first_test = min(count - 1, count - max(1, round(test_share * count)))
    first_valid = min(first_test, count - max(2, round((valid_share + test_share) * count)))
    return max(first_valid, 0), first_test


def kth_smallest(values: npt.NDArray[np.int64], rank: int) -> int:
    """Return the value that stands at place ``rank`` when all are sorted: counted into bins, and sorted in one bin only.

    Example:
        >>> kth_smallest(np.array([30, 10, 20]), 1)
        20
    """
    low, high = int(values.min()), int(values.max())
    shift = max((high - low).bit_length() - _BIN_BITS, 0)
    pieces = [values[start : start + _SLICE_ROWS] for start in range(0, len(values), _SLICE_ROWS)]
    counts = sum(np.bincount((piece - low) >> shift, minlength=(1 << _BIN_BITS) + 1) for piece in pieces)
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, rank, side="right"))
    first, after = low + (place << shift), low + ((place + 1) << shift)
    inside = np.concatenate([piece[(piece >= first) & (piece < after)] for piece in pieces])
    rank -= int(ends[place - 1]) if place else 0
    return int(np.partition(inside, rank)[rank])


def leave_last_out(user: npt.NDArray[np.int32], positive: npt.NDArray[np.bool_], num_users: int) -> SplitArray:
    """Split each user with three or more positive events at their last two; the others are train only.

    Args:
        user: ``[E]`` user_index, ascending.
        positive: ``[E]``; exposures between the two targets belong to the window they fall in.

    Example:
        >>> leave_last_out(np.zeros(5, np.int32), np.array([1, 0, 1, 0, 1], bool), 1).tolist()
        [0, 0, 1, 1, 2]
    """
    rows = np.flatnonzero(positive)
    counts = np.bincount(user[rows], minlength=num_users)
    last = np.cumsum(counts) - 1
    enough = counts >= 3
    never = len(user)
    valid_from, test_from = np.full(num_users, never), np.full(num_users, never)
    valid_from[enough], test_from[enough] = rows[last[enough] - 1], rows[last[enough]]
    place = np.arange(len(user))
    return ((place >= valid_from[user]).astype(np.int8) + (place >= test_from[user]).astype(np.int8)).astype(np.int8)


def given_split(log: EventLog) -> SplitArray:
    """Read the source's ``split`` column; the prehistory is train.

    Raises:
        ConfigError: No such column is mapped.
        DataError: Unknown names, nulls, or a user whose train events come after valid or test events.
    """
    if log.split is None or log.split_names is None:
        raise ConfigError("features.split.kind is 'given' but no split column is mapped; set source.columns.split")
    # the last entry is for null, whose code is -1
    table = np.array([_GIVEN.get(name.lower(), -1) for name in log.split_names] + [-1], np.int8)
    split: SplitArray = table[log.split]
    split[log.prehistory] = TRAIN
    if (split == -1).any():
        names = [*log.split_names, None]
        unknown = [names[code] for code in np.unique(log.split[split == -1])]
        raise DataError(f"column '{Columns.SPLIT}' holds {unknown[:5]}, expected {', '.join(_GIVEN)}")
    backwards = (np.diff(split) < 0) & (np.diff(log.user) == 0)
    if backwards.any():
        users = np.unique(log.user[:-1][backwards])
        raise DataError(
            f"the given split is not in order of time for {len(users)} users, the first is "
            f"{log.user_ids[int(users[0])]!r}: train events must come before valid, and valid before test; "
            "use another features.split.kind"
        )
    return split


def check_not_empty(report: Mapping[str, Any], positive: Sequence[str]) -> None:
    """Refuse a data set on which nothing can be validated or tested.

    Args:
        report: Counts of the data set.
        positive: Signals that make an event positive.

    Raises:
        DataError: ``valid`` or ``test`` has no row in ``targets.parquet``, or no event is positive.
    """
    if not report["positive_events"]:
        seen = [warning for warning in report.get("warnings", ()) if "is true in none" in warning]
        raise DataError(
            f"none of {report['kept']} events is positive: source.positive asks for {' or '.join(positive)}; "
            f"{'; '.join(seen) or 'their values are missing'}; mend the rules in source.signals, or source.positive"
        )
    target_rows = report["target_rows"]
    for name in SPLIT_NAMES[1:]:
        if not target_rows.get(name):
            raise DataError(
                f"empty split '{name}': no user has a positive event there ({target_rows}); "
                "change features.split (shares, dates or kind) or lower features.k_core"
            )
