"""The files of a prepared data set, written some users at a time, from a saved log and the rows of it that are kept.

Does for each run of users what :func:`features.build.assemble` does for all of them, by the same functions, and adds up what
it counts; no array of all events is ever in memory. What looks at all events before it can say anything of one, derived
signals and sessions of high quality, is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from features.appended.event_arrays import EventArrayWriter
from features.appended.kept_rows import NO_REPEATS, KeptRows
from features.build import FeaturesConfig
from features.histories import TargetRows, build_histories, build_targets, event_watch_ratio
from features.items import ItemTable
from features.log.encoded_log import StoredLog
from features.log.event_log import EventLog, count_ties, event_log, selected, settle
from features.log.repeats import Repeats
from features.log.signal_bits import behaviour_bytes
from features.number_tables.writer import NumberTableWriter
from features.passes.events import Labels, Taken, doubling_counts, labels_of, taken
from features.passes.tally import Tally
from features.passes.users import add_window_counts
from features.sessions import SessionRule, session_columns, session_index, session_starts
from features.sources.base import MergeRule
from features.splits import SplitArray, leave_last_out, split_at
from features.tables import ASCENDING, LabelledEvents, event_columns, train_counts
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import HistoryArrays, OffsetArray

TAKEN: Final = ("user", "item", "record", "timestamp")
"""Columns of the log that one pass takes the kept rows of, beside the one that nobody asks for."""

PER_EVENT: Final = ("item", "behaviour", "gap", "watch", "timestamp")


@dataclass(frozen=True)
class Rules:
    """What the runs of users share.

    Attributes:
        config: What to make of the log.
        merge_rules: How signals of repeats are merged.
        sessions: How sessions are cut.
        cuts: First instants of validation and test; ``None``: each user's last two positive events.
        items: The item table.
        item_of_code: ``[distinct items of usable rows]`` their item_index.
        repeats: First user of a run -> its repeats.
    """

    config: FeaturesConfig
    merge_rules: Mapping[str, MergeRule]
    sessions: SessionRule
    cuts: tuple[int, int] | None
    items: ItemTable
    item_of_code: npt.NDArray[np.int32]
    repeats: Mapping[int, Repeats]


@dataclass(frozen=True)
class HistoryBorders:
    """Where histories begin and end, as in :class:`~recsys.contracts.dataset.HistoryArrays`.

    Attributes:
        offsets: ``[U + 1]``.
        train_end, valid_end: ``[U]``.
    """

    offsets: OffsetArray
    train_end: OffsetArray
    valid_end: OffsetArray


@dataclass
class Written:
    """How far the files are written, and what was counted on the way.

    Attributes:
        users, events, positive, sessions: Rows so far.
        session_lengths: Sessions by their events, as :func:`~features.passes.events.doubling_counts` gives them.
        train_count: ``[I]`` positive events in the train split.
        tally: Counts that add up; ``None`` before the first run.
        train_end, valid_end, ends: Borders of the histories, run by run.
        targets: Code of each split -> its rows, run by run.
    """

    train_count: npt.NDArray[np.int64]
    users: int = 0
    events: int = 0
    positive: int = 0
    sessions: int = 0
    session_lengths: npt.NDArray[np.int64] = field(default_factory=lambda: doubling_counts(np.empty(0, np.int64)))
    tally: Tally | None = None
    train_end: list[OffsetArray] = field(default_factory=list)
    valid_end: list[OffsetArray] = field(default_factory=list)
    ends: list[OffsetArray] = field(default_factory=list)
    targets: dict[int, list[TargetRows]] = field(default_factory=dict)

    @cached_property
    def borders(self) -> HistoryBorders:
        """Where histories begin and end; asked for once all runs are written."""
        offsets = np.concatenate([np.zeros(1, np.int64), *self.ends])
        return HistoryBorders(offsets, np.concatenate(self.train_end), np.concatenate(self.valid_end))

    def all_targets(self) -> list[TargetRows]:
        """Return the rows of ``targets.parquet``, split by split."""
        return [TargetRows.joined(parts) for _, parts in sorted(self.targets.items())]


def write_by_users(log: StoredLog, kept: KeptRows, rules: Rules, out_dir: Path) -> Written:
    """Write events, sessions and histories, and gather the rest.

    Args:
        log: Usable rows.
        kept: Those of them that are kept.
        rules: What is made of them.
        out_dir: Folder to write into.
    """
    found = Written(np.zeros(len(rules.items.table), np.int64))
    (out_dir / "history").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        events = stack.enter_context(NumberTableWriter(out_dir / "events.parquet", ASCENDING))
        sessions = stack.enter_context(NumberTableWriter(out_dir / "sessions.parquet", ASCENDING))
        arrays = {
            name: stack.enter_context(EventArrayWriter(out_dir / "history" / f"{name}.npy")) for name in PER_EVENT
        }
        for (first, end), marks in zip(kept.runs, kept.marks, strict=True):
            run = _events_of(log, first, end, marks, rules)
            if not len(run.log):
                continue
            history = build_histories(run.log, run.split, run.behaviour, run.watch_ratio, run.labels)
            for name, writer in arrays.items():
                writer.write(getattr(history, name))
            _gather(found, run, history, rules)
            _write_tables(found, run, events, sessions)
    for name, borders in vars(found.borders).items():
        np.save(out_dir / "history" / f"{name}.npy", borders)
    return found


@dataclass(frozen=True)
class _Run(LabelledEvents):
    """Kept events of some users, users and sessions numbered from 0.

    Attributes:
        ties: As :func:`~features.log.event_log.count_ties` gives them.
        labels: What one pass told of the events; ``None``: split or sessions are not by time alone.
    """

    ties: tuple[int, int]
    labels: Labels | None


def _events_of(log: StoredLog, first: int, end: int, marks: npt.NDArray[np.bool_] | None, rules: Rules) -> _Run:
    config, rows = rules.config, log.of_users(first, end, TAKEN)
    settled = settle(rows, config.duplicates, rules.merge_rules, rules.repeats.get(first, NO_REPEATS))
    found = _taken(log, first, end, marks, rules)
    user_ids = rows.user_ids if found.used.all() else rows.user_ids.filter(found.used)
    arrays = {**selected(settled, marks), "user": found.user, "item": found.item}
    if found.timestamp is not None:
        arrays["timestamp"] = found.timestamp
    kept = event_log(rows, arrays, user_ids, rules.items.table[Columns.ITEM_ID])
    labels = _labels(kept, rules) if len(kept) else None
    split = labels.split if labels is not None else _split(kept, rules)
    if labels is None:
        session = session_index(kept, split, rules.sessions, config.sessions, config.session_length)
    else:
        session = labels.session
    alone = labels is not None and not {"position", "tie_break"} & set(arrays)
    return _Run(
        log=kept,
        split=split,
        session=session,
        behaviour=behaviour_bytes(kept.signal_values, kept.signal_known, len(kept.signals)),
        watch_ratio=event_watch_ratio(kept),
        ties=(labels.ties, labels.ties) if labels is not None and alone else count_ties(arrays),
        labels=labels,
    )


def _taken(log: StoredLog, first: int, end: int, marks: npt.NDArray[np.bool_] | None, rules: Rules) -> Taken:
    starts = log.starts[first : end + 1]
    rows = slice(int(starts[0]), int(starts[-1]))
    time = log.columns.get("timestamp")
    stored, scale = (None, 1) if time is None else (time.stored(rows), time.layout.scale)
    return taken(starts - rows.start, log.columns["item"][rows], stored, scale, marks, rules.item_of_code)


def _labels(log: EventLog, rules: Rules) -> Labels | None:
    """Label events in one pass, where all have times that decide both their split and their session."""
    if rules.cuts is None or rules.sessions != "gap" or log.prehistory.any():
        return None
    return labels_of(log.user, log.timestamp, rules.cuts, rules.config.sessions.longest_pause, len(log.user_ids))


def _split(log: EventLog, rules: Rules) -> SplitArray:
    if rules.cuts is None:
        return leave_last_out(log.user, log.positive, len(log.user_ids))
    return split_at(log.timestamp, rules.cuts)


def _gather(found: Written, run: _Run, history: HistoryArrays, rules: Rules) -> None:
    """Count a run, and make its rows of ``targets.parquet``."""
    config, log = rules.config, run.log
    tally = Tally.of(log, run.split, run.ties, run.labels)
    found.tally = tally if found.tally is None else found.tally + tally
    if run.labels is not None:  # the train events of a user are then the first ones of the history
        add_window_counts(history.offsets[:-1], history.train_end, history.item, found.train_count)
    else:
        found.train_count += train_counts(run, len(found.train_count))
    found.train_end.append(history.train_end + found.positive)
    found.valid_end.append(history.valid_end + found.positive)
    found.ends.append(history.offsets[1:] + found.positive)
    no_sessions = run.session[:0]
    rows = build_targets(
        history,
        task=config.task,
        session_length=config.session_length,
        min_positive=config.sessions.min_positive,
        positive_sessions=run.session[log.positive] if config.task == "session" else no_sessions,
        eval_rows=config.eval_rows,
    )
    for part in rows:
        found.targets.setdefault(part.split, []).append(part.behind(found.users, found.positive))


def _write_tables(found: Written, run: _Run, events: NumberTableWriter, sessions: NumberTableWriter) -> None:
    """Write the run's rows of the large tables under their final numbers, and go on behind them."""
    log = replace(run.log, user=run.log.user + np.int32(found.users))
    numbered = replace(run, log=log, session=run.session + np.int32(found.sessions))
    events.write(event_columns(numbered, slice(None)))
    starts = run.labels.starts if run.labels is not None else session_starts(run.session)
    sessions.write(session_columns(log, run.split, starts, before=(found.sessions, found.events)))
    found.users += len(log.user_ids)
    found.events += len(log)
    found.positive += int(np.count_nonzero(log.positive))
    found.sessions += len(starts) - 1
    lengths = doubling_counts(np.diff(starts)) if run.labels is None else run.labels.session_lengths
    found.session_lengths += lengths
