"""Prepare a data set: raw logs in, the files of :mod:`recsys.contracts.dataset` out.

Order: read -> quarantine -> encode, sort, repeats, k-core -> split -> sessions -> item table -> histories and targets
-> write. Counts are kept at every step, and rows in = quarantined + k-core removed + kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from features.events import EventLog, KCoreConfig, build_event_log
from features.histories import EvalRows, Task, build_histories, build_targets, event_behaviour, event_watch_ratio
from features.items import ItemsConfig, ItemTable, build_item_table
from features.quarantine import QuarantineConfig, check_share, reasons, refuse_rows
from features.sessions import SessionConfig, session_index, session_rule, session_table
from features.sources.base import RawTables, Source
from features.splits import SplitArray, SplitConfig, check_not_empty, split_events
from recsys.config import FrozenConfig
from recsys.contracts.columns import SPLIT_NAMES, TRAIN, Columns
from recsys.contracts.dataset import (
    DatasetSpec,
    HistoryArrays,
    write_dataset_spec,
    write_history_arrays,
)
from recsys.contracts.errors import DataError
from recsys.contracts.event_features import NUM_GAP_BUCKETS, NUM_WATCH_BUCKETS
from recsys.contracts.manifest import write_json

logger = logging.getLogger("recsys.features")


class FeaturesConfig(FrozenConfig):
    """How raw logs become a prepared data set.

    Attributes:
        task: ``next_item``, or ``session`` (OneRec: m items at once).
        session_length: Items per prediction, ``m``; 1 for ``next_item``.
        duplicates: ``drop`` moves rows with the same user, item and time (or position) to the quarantine.
        eval_rows: Rows of validation and test. ``per_user`` asks once per user for everything in the window, as a nightly
            job does; ``per_event`` asks before every event of the window, as benchmarks that split samples in time do.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"judged_rows": "eval_rows"}

    task: Task = "next_item"
    session_length: int = Field(1, ge=1)
    k_core: KCoreConfig = KCoreConfig()
    duplicates: Literal["keep", "drop"] = "drop"
    eval_rows: EvalRows = "per_user"
    split: SplitConfig = SplitConfig()
    sessions: SessionConfig = SessionConfig()
    items: ItemsConfig = ItemsConfig()
    quarantine: QuarantineConfig = QuarantineConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task == "next_item" and self.session_length != 1:
            raise ValueError(
                f"session_length is {self.session_length}, but task next_item predicts 1 item; use task: session"
            )
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


@dataclass(frozen=True)
class LabelledEvents:
    """Kept events with what the later steps found out about each.

    Attributes:
        log: Users, items and times, ``E`` events sorted by user and time.
        split: ``[E]`` 0 train, 1 validation, 2 test.
        session: ``[E]`` session_index.
        behaviour: ``[E]`` packed signals, 0 not known.
        watch_ratio: ``[E]`` watched time / duration, NaN not known.
    """

    log: EventLog
    split: SplitArray
    session: npt.NDArray[np.int32]
    behaviour: npt.NDArray[np.uint8]
    watch_ratio: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A data set in memory, ready to be written.

    Attributes:
        raw: What the source gave.
        events: The kept rows of it.
        items: Their items, and items without events where the configuration keeps them.
        history: The positive events as arrays.
        targets: ``targets.parquet``.
        quarantine: Refused rows, with the reason.
        spec: Sizes and task.
        report: Counts of every step.
    """

    raw: RawTables
    events: LabelledEvents
    items: ItemTable
    history: HistoryArrays
    targets: pl.DataFrame
    quarantine: pl.DataFrame
    spec: DatasetSpec
    report: dict[str, Any]


def prepare(source: Source, config: FeaturesConfig, out_dir: Path, seed: int) -> dict[str, Any]:
    """Write a prepared data set that :meth:`recsys.contracts.dataset.Dataset.open` opens.

    Args:
        source: Where the logs come from.
        config: What to make of them.
        out_dir: Folder to write into; created when missing.
        seed: Used by the simulator only.

    Returns:
        The data report: every count, also written to ``data_report.json``.

    Raises:
        DataError: Unreadable files, missing columns, a wrong unit, too many bad rows, an empty split.
        ConfigError: The configuration asks for something the source does not have.
    """
    data = _assemble(source, config, seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    _events_table(data).write_parquet(out_dir / "events.parquet")
    _items_table(data).write_parquet(out_dir / "items.parquet")
    _users_table(data).write_parquet(out_dir / "users.parquet")
    session_table(data.events.log, data.events.split, data.events.session).write_parquet(out_dir / "sessions.parquet")
    data.targets.write_parquet(out_dir / "targets.parquet")
    data.quarantine.write_parquet(out_dir / "quarantine.parquet")
    write_history_arrays(out_dir / "history", data.history)
    write_dataset_spec(out_dir, data.spec)
    write_json(out_dir / "data_report.json", data.report)
    logger.info(
        "prepared %d users, %d items, %d events (%d positive)",
        data.spec.num_users,
        data.spec.num_items,
        len(data.events.log),
        len(data.history.item),
    )
    return data.report


def validate_source(source: Source, config: FeaturesConfig, seed: int = 0) -> dict[str, Any]:
    """Look for data problems without writing anything.

    Returns:
        ``problems``: what would stop `prepare`, empty when nothing would; ``report``: the data report, or ``None``.
    """
    try:
        data = _assemble(source, config, seed)
    except DataError as error:
        return {"problems": [str(error)], "report": None}
    return {"problems": [], "report": data.report}


def _assemble(source: Source, config: FeaturesConfig, seed: int) -> Assembled:
    raw = source.read(seed)
    rule = session_rule(
        config.sessions,
        has_session_id=Columns.SESSION_ID in raw.interactions.schema,
        has_timestamps=raw.has_timestamps,
    )
    good, refused = refuse_rows(raw, need_session_id=rule == "given")
    rows_in = len(good) + len(refused)
    if rows_in == 0:
        raise DataError("the source has no interactions at all; check source.path and the column map")
    check_share(refused, rows_in, config.quarantine)
    log = build_event_log(raw, good, config.k_core, config.duplicates)
    quarantine = pl.concat([refused, log.duplicates])
    check_share(quarantine, rows_in, config.quarantine)

    split, split_facts = split_events(log, config.split, has_timestamps=raw.has_timestamps)
    sessions = session_index(log, split, rule, config.sessions, config.session_length)
    items = build_item_table(log.item_ids, raw.items, config.items)
    log = _with_items(log, items)
    events = LabelledEvents(log, split, sessions, event_behaviour(log.frame, raw.signals), event_watch_ratio(log.frame))
    history = build_histories(log, split, events.behaviour, events.watch_ratio)
    targets = build_targets(
        history,
        task=config.task,
        session_length=config.session_length,
        min_positive=config.sessions.min_positive,
        positive_sessions=sessions[log.positive],
        eval_rows=config.eval_rows,
    )
    report: dict[str, Any] = {
        "rows_in": rows_in,
        "quarantined": reasons(quarantine),
        "k_core_removed": log.k_core_removed,
        "kept": len(log),
        "split": split_facts,
        "sessions": {"by": rule, "chunked_prehistory": bool(log.prehistory.any()), "count": int(sessions[-1]) + 1},
        **_counts(log, split, history, targets),
        **items.facts,
        **raw.notes,
    }
    check_not_empty(report["target_rows"])
    return Assembled(
        raw=raw,
        events=events,
        items=items,
        history=history,
        targets=targets,
        quarantine=quarantine,
        spec=_spec(raw, log, items, config),
        report=report,
    )


def _spec(raw: RawTables, log: EventLog, items: ItemTable, config: FeaturesConfig) -> DatasetSpec:
    return DatasetSpec(
        num_users=len(log.user_ids),
        num_items=len(items.table),
        num_authors=items.num_authors,
        num_categories=items.num_categories,
        num_behaviours=1 + 2 ** len(raw.signals),
        num_gap_buckets=NUM_GAP_BUCKETS,
        num_watch_buckets=NUM_WATCH_BUCKETS,
        task=config.task,
        session_length=config.session_length,
        signals=raw.signals,
        has_timestamps=raw.has_timestamps,
    )


def _with_items(log: EventLog, items: ItemTable) -> EventLog:
    """Renumber the log's items when the item table has more of them."""
    if len(items.table) == len(log.item_ids):
        return log
    return replace(log, item=items.event_item_index[log.item])


def _counts(log: EventLog, split: SplitArray, history: HistoryArrays, targets: pl.DataFrame) -> dict[str, Any]:
    lengths = np.diff(history.offsets)
    rows = np.bincount(targets[Columns.SPLIT].to_numpy(), minlength=len(SPLIT_NAMES))
    return {
        "users": len(log.user_ids),
        "users_without_positive_events": int((lengths == 0).sum()),
        "positive_events": int(log.positive.sum()),
        "prehistory_events": int(log.prehistory.sum()),
        "events_per_split": _by_split(np.bincount(split, minlength=len(SPLIT_NAMES))),
        "positive_events_per_split": _by_split(np.bincount(split[log.positive], minlength=len(SPLIT_NAMES))),
        "target_rows": _by_split(rows),
        "history_length_quantiles": {
            f"p{percent}": int(np.percentile(lengths, percent, method="lower")) for percent in (0, 10, 50, 90, 99, 100)
        },
    }


def _by_split(counts: npt.NDArray[np.integer]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(SPLIT_NAMES, counts, strict=True)}


def _events_table(data: Assembled) -> pl.DataFrame:
    """Every kept event in contract columns, and the raw signals that feed the reward model."""
    events, log = data.events, data.events.log
    extra = [name for name in (Columns.WATCH_TIME_MS, Columns.DURATION_MS) if name in log.frame.columns]
    table = pl.DataFrame(
        {
            Columns.USER_INDEX: log.user,
            Columns.ITEM_INDEX: log.item,
            Columns.TIMESTAMP: log.timestamp,
            Columns.SESSION_INDEX: events.session,
            Columns.SPLIT: events.split,
            Columns.POSITIVE: log.positive,
            Columns.BEHAVIOUR: events.behaviour,
            Columns.WATCH_RATIO: events.watch_ratio,
        }
    )
    return table.with_columns(
        pl.when(pl.col(Columns.TIMESTAMP) >= 0).then(pl.col(Columns.TIMESTAMP)).alias(Columns.TIMESTAMP),
        pl.col(Columns.WATCH_RATIO).fill_nan(None),
        *(log.frame[name] for name in (*extra, *data.raw.signals)),
    )


def _items_table(data: Assembled) -> pl.DataFrame:
    log = data.events.log
    in_train = log.item[log.positive & (data.events.split == TRAIN)]
    counts = np.bincount(in_train, minlength=len(data.items.table)).astype(np.int64)
    table = data.items.table.with_columns(pl.Series(Columns.TRAIN_COUNT, counts))
    return table.select(
        Columns.ITEM_INDEX,
        Columns.ITEM_ID,
        Columns.TITLE,
        Columns.TEXT,
        Columns.CATEGORIES,
        Columns.AUTHOR_INDEX,
        Columns.CATEGORY_INDEX,
        Columns.HAS_METADATA,
        Columns.TRAIN_COUNT,
        Columns.AUTHOR_ID,
    )


def _users_table(data: Assembled) -> pl.DataFrame:
    user_ids = data.events.log.user_ids
    table = pl.DataFrame(
        {
            Columns.USER_INDEX: np.arange(len(user_ids), dtype=np.int32),
            Columns.USER_ID: user_ids,
        }
    )
    if data.raw.users is None:
        return table
    attributes = data.raw.users.unique(Columns.USER_ID, keep="first", maintain_order=True)
    return table.join(attributes, on=Columns.USER_ID, how="left", maintain_order="left")
