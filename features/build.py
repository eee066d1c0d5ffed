"""Prepare a data set: raw logs in, the files of :mod:`recsys.contracts.dataset` out.

Order: read, sift and encode batch by batch -> sort -> repeats, k-core -> split -> sessions -> item table -> histories and
targets -> write. Counts are kept at every step, and rows in = kept + quarantined + merged + removed by the k-core.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from pydantic import Field, model_validator

from features.data_report import (
    all_facts,
    event_facts,
    history_counts,
    row_counts,
    session_facts,
)
from features.derived.watch_percentile import DerivedSignal, with_derived_signals
from features.histories import EvalRows, Task, build_histories, build_targets, event_watch_ratio, in_seconds
from features.items import ItemsConfig, ItemTable, build_item_table
from features.log.encode import ReadLog, read_log
from features.log.event_log import EventLog, KeptEvents, keep_events
from features.log.k_core import KCoreConfig
from features.log.quarantine import QuarantineConfig, and_duplicates, check_share
from features.log.read_state import ReadState
from features.log.repeats import Duplicates
from features.log.signal_bits import behaviour_bytes
from features.passes.events import doubling_counts
from features.passes.tally import Tally
from features.session_quality import good_sessions
from features.sessions import SessionConfig, SessionRule, session_index, session_rule, session_starts
from features.sources.as_of import as_of
from features.sources.base import RawTables, Source, merge_facts
from features.splits import SplitConfig, check_not_empty, split_events
from features.tables import (
    LabelledEvents,
    Prepared,
    Rest,
    train_counts,
    users_table,
    write_events,
    write_rest,
    write_sessions,
)
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import (
    DatasetSpec,
    HistoryArrays,
    write_history_arrays,
)
from recsys.contracts.event_features import NUM_GAP_BUCKETS, NUM_WATCH_BUCKETS

logger = logging.getLogger("recsys.features")

LOG_FOLDER: Final = "log"
"""Where a prepared data set keeps its log."""


class FeaturesConfig(FrozenConfig):
    """How raw logs become a prepared data set.

    Attributes:
        task: ``next_item``, or ``session`` (OneRec: m items at once).
        session_length: Items per prediction, ``m``; 1 for ``next_item``.
        duplicates: Rows with the same user, item and time (or position). ``merge`` makes one event of them that knows what
            all of them know: each signal by its ``merge`` rule, the longest watch time; ``drop`` moves all but the first to
            the quarantine; ``keep`` keeps all.
        derived_signals: Signals that are computed once the split is known, such as a percentile of watch time; the model
            and the reward model read them like the source's own.
        as_of: The last day whose events are seen, UTC; ``None``: all that stand in the files.
        eval_rows: Rows of validation and test. ``per_user`` asks once per user for everything in the window, as a nightly
            job does; ``per_event`` asks before every event of the window, as benchmarks that split samples in time do.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"judged_rows": "eval_rows"}

    as_of: date | None = None
    task: Task = "next_item"
    session_length: int = Field(1, ge=1)
    k_core: KCoreConfig = KCoreConfig()
    duplicates: Duplicates = "merge"
    eval_rows: EvalRows = "per_user"
    split: SplitConfig = SplitConfig()
    sessions: SessionConfig = SessionConfig()
    derived_signals: tuple[DerivedSignal, ...] = ()
    items: ItemsConfig = ItemsConfig()
    quarantine: QuarantineConfig = QuarantineConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task == "next_item" and self.session_length != 1:
            raise ValueError(
                f"session_length is {self.session_length}, but task next_item predicts 1 item; use task: session"
            )
        if self.task == "next_item" and self.sessions.high_quality is not None:
            raise ValueError("sessions.high_quality chooses what is generated in task session; the task is next_item")
        if self.task == "session" and self.session_length < 2:
            raise ValueError("task session needs session_length >= 2; use task: next_item for one item")
        if self.task == "session" and self.eval_rows == "per_event":
            raise ValueError("eval_rows 'per_event' asks for single items; use task: next_item, or per_user")
        if self.task == "session" and self.sessions.min_positive > self.session_length:
            raise ValueError(
                f"sessions.min_positive {self.sessions.min_positive} exceeds session_length {self.session_length}: "
                "no training row could have so many items"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Assembled(Rest):
    """A data set in memory, ready to be written.

    Attributes:
        events: The kept events.
        history: The positive events as arrays.
    """

    events: LabelledEvents
    history: HistoryArrays


def prepare(source: Source, config: FeaturesConfig, out_dir: Path, seed: int) -> dict[str, Any]:
    """Write a prepared data set as :func:`build` does, and return the data report alone."""
    return build(source, config, out_dir, seed).report


def build(source: Source, config: FeaturesConfig, out_dir: Path, seed: int) -> Prepared:
    """Write a prepared data set that :meth:`recsys.contracts.dataset.Dataset.open` opens.

    Args:
        source: Where the logs come from.
        config: What to make of them.
        out_dir: Folder to write into; created when missing.
        seed: Used by the simulator only.

    Returns:
        What was written, with the data report: every count, also written to ``data_report.json``.

    Raises:
        DataError: Unreadable files, missing columns, a wrong unit, too many bad rows, an empty split.
        ConfigError: The configuration asks for something the source does not have.
    """
    raw, fingerprints = open_source(source, config, seed)
    return prepare_from_log(raw, read_events(raw, config), config, out_dir, fingerprints)


def prepare_from_log(
    raw: RawTables, read: ReadLog, config: FeaturesConfig, out_dir: Path, fingerprints: Mapping[str, str]
) -> Prepared:
    """Write the prepared data set of a log that has been read, and the log beside it, so that a day can be added to it.

    Args:
        raw: For the items, the users and what the source declared; its events are not read.
        read: The log.
        config: What to make of it.
        out_dir: Folder to write into; created when missing.
        fingerprints: Of the source's files.

    Returns:
        What was written, with the data report.
    """
    with nothing_left_behind(out_dir):
        read.log.save(out_dir / LOG_FOLDER)
        ReadState.of(raw.interactions, fingerprints, read.facts).save(out_dir / LOG_FOLDER)
        kept = keep_events(read.log, config.k_core, config.duplicates, raw.merge_rules)
        kept.core.save(out_dir / LOG_FOLDER)
        read = read.without_events()  # a fifth of the memory at its peak, where the caller holds the rows no longer
        data = assemble(raw, read, kept, config)
    write_events(out_dir / "events.parquet", data.events)
    write_sessions(out_dir / "sessions.parquet", data.events)
    write_history_arrays(out_dir / "history", in_seconds(data.history))
    write_rest(out_dir, data, train_counts(data.events, data.spec.num_items))
    return Prepared.of(data)


@contextmanager
def nothing_left_behind(out_dir: Path) -> Iterator[None]:
    """Remove the log of a folder, or the whole folder where it was not there before, when the log is refused."""
    was_there = out_dir.exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(out_dir / LOG_FOLDER if was_there else out_dir, ignore_errors=True)
        raise


def foresee(source: Source, config: FeaturesConfig, seed: int) -> Assembled:
    """Do what :func:`build` does up to the first byte that it would write.

    Args:
        source, config, seed: As of :func:`build`.

    Returns:
        What would be written.

    Raises:
        DataError, ConfigError: As of :func:`build`.
    """
    raw, _ = open_source(source, config, seed)
    read = read_events(raw, config)
    kept = keep_events(read.log, config.k_core, config.duplicates, raw.merge_rules)
    read = read.without_events()  # the rows need no memory any longer, as in :func:`prepare_from_log`
    return assemble(raw, read, kept, config)


def open_source(source: Source, config: FeaturesConfig, seed: int) -> tuple[RawTables, dict[str, str]]:
    """Return the tables of a source, events yet to be read, and the hashes of its files.

    The hashes come first: a file that is rewritten meanwhile differs from its hash, and is read again; and what is no file,
    such as a pipe, or may not be read, is refused before anything else is said.
    """
    fingerprints = source.fingerprint()
    return as_of(source.read(seed), config.as_of), fingerprints


def read_events(raw: RawTables, config: FeaturesConfig) -> ReadLog:
    """Read the events of a source and refuse too many bad ones.

    Args:
        raw: The source.
        config: Its quarantine, and whether sessions are the source's.

    Raises:
        DataError: There is no row at all, or too many are unusable.
    """
    read = read_log(raw, config.quarantine, need_session_id=need_session_id(raw, config))
    check_read(raw, read, config)
    return read


def check_read(raw: RawTables, read: ReadLog, config: FeaturesConfig) -> None:
    """Say what was strange in the files, and refuse too many bad rows.

    Raises:
        DataError: Too many are unusable.
    """
    met = merge_facts([raw.notes, read.facts])
    for column, markers in met.get("null_markers", {}).items():
        listed = ", ".join(f"{marker} ({count} rows)" for marker, count in markers.items())
        logger.warning("column '%s' holds texts that stand for nothing: %s", column, listed)
    for column, files in met.get("rows_without_column", {}).items():
        name, rows = next(iter(files.items()))
        more = f", and {len(files) - 1} more files" if len(files) > 1 else ""
        logger.warning("column '%s' is not in '%s' (%d rows)%s; they have no value there", column, name, rows, more)
    for warning in met.get("warnings", ()):
        logger.warning("%s", warning)
    check_share(read.refused, read.rows_in, config.quarantine)


def need_session_id(raw: RawTables, config: FeaturesConfig) -> bool:
    """Whether sessions are the source's, so that an event without one cannot be used."""
    return cut_rule(raw, config) == "given"


def assemble(raw: RawTables, read: ReadLog, kept: KeptEvents, config: FeaturesConfig) -> Assembled:
    """Make everything that is written of a log that has been read.

    Args:
        raw: For the items, the users and what the source declared.
        read: For what was met in the files; its events are not looked at.
        kept: Its events after repeats and the k-core.
        config: What to make of them.
    """
    rule = cut_rule(raw, config)
    quarantine = and_duplicates(read.refused, kept.dropped)
    check_share(quarantine, read.rows_in, config.quarantine)
    log = kept.log
    split, split_facts = split_events(log, config.split, has_timestamps=raw.has_timestamps)
    sessions = session_index(log, split, rule, config.sessions, config.session_length)
    items = build_item_table(log.item_ids, raw.items, config.items)
    log = _with_items(log, items)
    log, derived = with_derived_signals(log, split, config.derived_signals)
    tally = Tally.of(log, split, kept.ties)  # derived signals are counted with the others
    facts = event_facts(tally, log.signals)
    behaviour = behaviour_bytes(log.signal_values, log.signal_known, len(log.signals))
    events = LabelledEvents(log, split, sessions, behaviour, event_watch_ratio(log))
    history = build_histories(log, split, events.behaviour, events.watch_ratio)
    quality = config.sessions.high_quality
    good, good_facts = good_sessions(log, split, sessions, quality) if quality is not None else (None, None)
    targets = build_targets(
        history,
        task=config.task,
        session_length=config.session_length,
        min_positive=config.sessions.min_positive,
        positive_sessions=sessions[log.positive],
        eval_rows=config.eval_rows,
        good=good,
    )
    users, user_facts = users_table(log.user_ids, raw.users)
    report = {
        **row_counts(read, quarantine, kept),
        "split": split_facts,
        "sessions": session_facts(rule, tally, doubling_counts(np.diff(session_starts(sessions)))),
        **({"derived_signals": derived} if derived else {}),
        **({"high_quality_sessions": good_facts} if good_facts is not None else {}),
        **history_counts(tally, history, targets),
        **items.facts,
        **user_facts,
        **all_facts(raw, read, quarantine, facts, (log.user_ids, log.item_ids), {**items.facts, **user_facts}),
    }
    check_not_empty(report, raw.positive)
    return Assembled(
        events=events,
        items=items,
        users=users,
        history=history,
        targets=targets,
        quarantine=quarantine,
        merged=kept.merged,
        spec=dataset_spec(raw, len(log.user_ids), log.signals, items, config),
        report=report,
    )


def cut_rule(raw: RawTables, config: FeaturesConfig) -> SessionRule:
    """Decide how sessions are cut."""
    return session_rule(
        config.sessions,
        has_session_id=Columns.SESSION_ID in raw.interactions.schema,
        has_timestamps=raw.has_timestamps,
    )


def dataset_spec(
    raw: RawTables, num_users: int, signals: tuple[str, ...], items: ItemTable, config: FeaturesConfig
) -> DatasetSpec:
    """Return the sizes of a data set."""
    return DatasetSpec(
        num_users=num_users,
        num_items=len(items.table),
        num_authors=items.num_authors,
        num_categories=items.num_categories,
        num_behaviours=1 + 2 ** len(signals),
        num_gap_buckets=NUM_GAP_BUCKETS,
        num_watch_buckets=NUM_WATCH_BUCKETS,
        task=config.task,
        session_length=config.session_length,
        signals=tuple(signals),
        has_timestamps=raw.has_timestamps,
    )


def _with_items(log: EventLog, items: ItemTable) -> EventLog:
    """Renumber the log's items when the item table has more of them."""
    if len(items.table) == len(log.item_ids):
        return log
    return replace(log, item=items.event_item_index[log.item])
