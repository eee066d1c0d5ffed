"""The counts of a preparation: where every row went, and what the kept events are like.

Reads the log, the split, histories and targets; produces parts of ``data_report.json``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl

from features.log.encode import ReadLog
from features.log.event_log import EventLog, KeptEvents
from features.log.quarantine import reasons
from features.sources.base import FILE
from features.sources.columns.cells import SHOWN_VALUES, shown
from features.splits import SplitArray
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.dataset import HistoryArrays

logger = logging.getLogger("recsys.features")

_MANY_TIES: Final = 0.05
_MANY_UNKNOWN: Final = 0.05
_SLICE: Final = 1 << 22


def row_counts(read: ReadLog, quarantine: pl.DataFrame, kept: KeptEvents) -> dict[str, Any]:
    """Say where every row went.

    Returns:
        ``rows_in``, ``quarantined`` (reason -> rows), ``merged``, ``k_core_removed``, ``kept``, and per file the rows read
        and refused.

    Raises:
        RuntimeError: The numbers do not add up: rows in = kept + quarantined + merged + removed by the k-core.
    """
    counts: dict[str, Any] = {
        "rows_in": read.rows_in,
        "quarantined": reasons(quarantine),
        "merged": len(kept.merged),
        "k_core_removed": kept.k_core_removed,
        "kept": len(kept.log),
    }
    accounted = len(quarantine) + counts["merged"] + counts["k_core_removed"] + counts["kept"]
    if accounted != read.rows_in:
        raise RuntimeError(
            f"{read.rows_in} rows were read and {accounted} accounted for ({counts}): rows were lost or made up; "
            "this is a fault of the program, please report it"
        )
    refused = dict(quarantine.group_by(FILE).len().iter_rows())
    files = [
        {"file": name, "rows_in": rows, "quarantined": refused.get(name, 0)}
        for name, rows in zip(read.log.files, read.log.file_records, strict=True)
    ]
    return {**counts, "files": files}


def event_facts(kept: KeptEvents) -> dict[str, Any]:
    """Describe the kept events: dates, equal times, signals, and those that lie in the future.

    Returns:
        ``first_event`` and ``last_event`` (UTC, ``None`` without times), ``future_events``, ``ties``, ``signals``, and
        ``warnings`` where one of them matters.
    """
    log, ties = kept.log, kept.ties
    warnings = []
    if ties["by_file_order_share"] > _MANY_TIES:
        warnings.append(
            f"{ties['by_file_order_share']:.1%} of the events have the same time as the event before them (same user) "
            "and are ordered as they stand in the files; declare source.columns.tie_break if a column says which came first"
        )
    timed = len(log) - int(log.prehistory.sum()) if log.timestamp.max(initial=-1) >= 0 else 0
    first, last, future = None, None, 0
    if timed:
        early = log.timestamp[log.timestamp >= 0].min() if timed < len(log) else log.timestamp.min()
        first, last = _iso(int(early)), _iso(int(log.timestamp.max()))
        future = int((log.timestamp > time.time_ns() // 1000).sum())
    if future:
        warnings.append(
            f"{future} events are later than now, the last at {last}; set features.quarantine.not_after to refuse such rows"
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return {
        "first_event": first,
        "last_event": last,
        "future_events": future,
        "ties": ties,
        "signals": _signal_counts(log),
        "warnings": warnings,
    }


def metadata_warnings(part: str, ids: pl.Series, table: pl.DataFrame | None, conflicting: int) -> list[str]:
    """Tell of a table of items or users that knows few of those in the log, or says two things of one.

    Args:
        part: ``item`` or ``user``.
        ids: Those with events.
        table: As the source gives it, in canonical columns.
        conflicting: Ids whose rows differ.
    """
    if table is None:
        return []
    known, warnings = table[f"{part}_id"], []
    unknown = ids.filter(~ids.is_in(known.drop_nulls().implode()))
    if len(unknown) > _MANY_UNKNOWN * len(ids):
        there = shown(known.head(SHOWN_VALUES)) if known.drop_nulls().len() else "no ids at all"
        warnings.append(
            f"{len(unknown)} of {len(ids)} {part}s ({len(unknown) / len(ids):.1%}) have no row in source.{part}s, such as "
            f"{shown(unknown.head(SHOWN_VALUES))}; the table has {there}: are both written in one way?"
        )
    if conflicting:
        warnings.append(
            f"source.{part}s has several rows that differ for {conflicting} {part}s; of each column the first known value "
            "is taken"
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def spelling_warnings(part: str, ids: pl.Series) -> list[str]:
    """Tell of text ids that are there in two spellings of one: ``7`` and ``7.0``, or an accent composed and apart.

    Both stay, each as it is written.

    Args:
        part: ``item`` or ``user``.
        ids: Distinct ones.

    Example:
        >>> spelling_warnings("user", pl.Series(["7", "7.0", "8.0"]))
        ["1 user ids are there with and without '.0', such as '7.0': if they are one, write the files in one way"]
    """
    if ids.dtype != pl.String:
        return []
    floats = ids.filter(ids.str.ends_with(".0"))
    accents = ids.filter(ids.str.len_bytes() != ids.str.len_chars())
    warnings = []
    for how, written, other in (
        ("with and without '.0'", floats, floats.str.strip_suffix(".0")),
        ("with accents as one character and as two (Unicode)", accents, accents.str.normalize("NFC")),
    ):
        twins = written.filter((other != written) & other.is_in(ids.implode()))
        if len(twins):
            warnings.append(
                f"{len(twins)} {part} ids are there {how}, such as {shown(twins.head(1))}: if they are one, write the files "
                "in one way"
            )
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _signal_counts(log: EventLog) -> dict[str, dict[str, int]]:
    """Count for every signal the events where it is true, false and not known."""
    if not log.signals:
        return {}
    # a table of 128 combinations instead of a pass over the events per signal
    pairs = np.zeros(1 << 16, np.int64)
    for start in range(0, len(log), _SLICE):
        rows = slice(start, start + _SLICE)
        both = log.signal_values[rows].astype(np.uint16) << np.uint16(8) | log.signal_known[rows]
        pairs += np.bincount(both, minlength=1 << 16)
    combination = np.arange(1 << 16)
    result = {}
    for place, name in enumerate(log.signals):
        true = int(pairs[(combination >> (8 + place)) & 1 == 1].sum())
        known = int(pairs[(combination >> place) & 1 == 1].sum())
        result[name] = {"true": true, "false": known - true, "not_known": len(log) - known}
    return result


def history_counts(log: EventLog, split: SplitArray, history: HistoryArrays, targets: pl.DataFrame) -> dict[str, Any]:
    """Count users, events per split, and the rows that will be predicted."""
    lengths = np.diff(history.offsets)
    rows = np.bincount(targets[Columns.SPLIT].to_numpy(), minlength=len(SPLIT_NAMES))
    train, valid = history.train_end - history.offsets[:-1], history.valid_end - history.train_end
    return {
        "users": len(log.user_ids),
        "users_without_positive_events": int((lengths == 0).sum()),
        "positive_events": len(history.item),
        "prehistory_events": int(np.count_nonzero(log.prehistory)),
        "events_per_split": _by_split([int(np.count_nonzero(split == code)) for code in range(len(SPLIT_NAMES))]),
        "positive_events_per_split": _by_split(
            [int(count) for count in (train.sum(), valid.sum(), len(history.item) - train.sum() - valid.sum())]
        ),
        "target_rows": _by_split(rows.tolist()),
        "history_length_quantiles": {
            f"p{percent}": int(np.percentile(lengths, percent, method="lower")) for percent in (0, 10, 50, 90, 99, 100)
        },
    }


def _by_split(counts: Iterable[int]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(SPLIT_NAMES, counts, strict=True)}


def _iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
