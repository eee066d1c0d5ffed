"""Sessions: the runs of events that belong together, by given id, by gap, or by count where there is no time.

Reads the event log and the split; produces one session_index per event and the table ``sessions.parquet``.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.log.arrays import NO_CODE
from features.log.event_log import EventLog
from features.log.order import same_as_before
from features.passes.users import gap_sessions, run_starts
from features.session_quality import HighQualityConfig
from features.splits import SplitArray
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError

_SLICE_ROWS: Final = 1 << 20
SessionRule = Literal["given", "gap", "chunk"]


class SessionConfig(FrozenConfig):
    """How to cut a user's events into sessions.

    Attributes:
        by: ``given``: the source's session id; ``gap``: a pause longer than ``gap_minutes``; ``chunk``: every
            ``session_length`` positive events; ``auto``: given if mapped, else gap if there are timestamps, else chunk
            (the data report says which). Events of a prehistory have no time and are always chunked.
        gap_minutes: For ``gap``.
        high_quality: What a session needs so that training targets come from it (task session); ``None`` takes all. The
            reward model reads all sessions either way.
        min_positive: A training target needs at least this many distinct positive items (OneRec §3.2 uses 5); shorter
            ones stay in the histories.
    """

    by: Literal["auto", "given", "gap", "chunk"] = "auto"
    gap_minutes: float = Field(30.0, gt=0.0)
    min_positive: int = Field(1, ge=1)
    high_quality: HighQualityConfig | None = None

    @property
    def longest_pause(self) -> int:
        """Pause after which a session still goes on, in whole microseconds."""
        return math.floor(self.gap_minutes * 60_000_000)


def session_rule(config: SessionConfig, *, has_session_id: bool, has_timestamps: bool) -> SessionRule:
    """Decide how sessions are cut.

    Raises:
        ConfigError: The configured way needs a column that the source does not have.
    """
    if config.by == "auto":
        return "given" if has_session_id else "gap" if has_timestamps else "chunk"
    if config.by == "given" and not has_session_id:
        raise ConfigError("features.sessions.by is 'given' but no session_id is mapped; set source.columns.session_id")
    if config.by == "gap" and not has_timestamps:
        raise ConfigError("features.sessions.by is 'gap' but the source has no timestamps; use 'chunk' or 'given'")
    return config.by


def session_index(
    log: EventLog, split: SplitArray, rule: SessionRule, config: SessionConfig, session_length: int
) -> npt.NDArray[np.int32]:
    """Number the sessions of all users in the order of the events.

    A session never crosses a user, a split, or the border between prehistory and timed events, so each has one split. A
    given session that another one interrupts counts as two, because a session is a run of rows.

    Returns:
        ``[E]``, ascending from 0.
    """
    longest = config.longest_pause
    if rule == "gap" and not log.prehistory.any():
        return gap_sessions(log.user, split, log.timestamp, longest)
    starts = ~same_as_before([log.user, split, log.prehistory])
    chunked = log.prehistory if rule != "chunk" else np.ones(len(log), bool)
    if rule == "given":
        assert log.session is not None  # the rule is 'given' only where the source has sessions
        changes = ~same_as_before([log.session])
        changes |= log.session == NO_CODE
        starts |= changes & ~chunked
    elif rule == "gap":
        for begin in range(1, len(log), _SLICE_ROWS):
            end = min(begin + _SLICE_ROWS, len(log))
            pause = log.timestamp[begin:end] - log.timestamp[begin - 1 : end - 1]
            late = pause > longest
            starts[begin:end] |= late & ~chunked[begin:end]
    if chunked.any():
        chunk = _chunk_numbers(log, session_length)
        starts[1:] |= (chunk[1:] != chunk[:-1]) & chunked[1:]
    return np.cumsum(starts, dtype=np.int32) - np.int32(1)


def _chunk_numbers(log: EventLog, session_length: int) -> npt.NDArray[np.int64]:
    """Number of full chunks of positive events before each event of its user; the (m+1)-th positive opens a new one."""
    before: npt.NDArray[np.int64] = np.cumsum(log.positive, dtype=np.int64) - log.positive
    user_starts = np.searchsorted(log.user, np.arange(len(log.user_ids), dtype=log.user.dtype))
    chunk: npt.NDArray[np.int64] = (before - before[user_starts][log.user]) // session_length
    return chunk


def session_starts(sessions: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return ``[S + 1]`` the first event of every session, and behind them the number of events."""
    return run_starts(sessions)


def session_columns(
    log: EventLog,
    split: SplitArray,
    starts: npt.NDArray[np.int64],
    wanted: slice = slice(None),
    before: tuple[int, int] = (0, 0),
) -> dict[str, npt.NDArray[Any]]:
    """Return a run of the rows of ``sessions.parquet``: user, rows of ``events.parquet`` and split of each session.

    Args:
        log: All kept events.
        split: ``[E]``.
        starts: As :func:`session_starts` gives them.
        wanted: Which sessions.
        before: Sessions and events of the tables in front of this log's.
    """
    first = starts[:-1][wanted]
    begin, events = before[0] + (wanted.start or 0), before[1]
    places = starts + events if events else starts
    return {
        Columns.SESSION_INDEX: np.arange(begin, begin + len(first), dtype=np.int32),
        Columns.USER_INDEX: log.user.take(first),
        Columns.EVENT_START: places[:-1][wanted],
        Columns.EVENT_END: places[1:][wanted],
        Columns.SPLIT: split.take(first),
    }
