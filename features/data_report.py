"""The counts of a preparation: where every row went, and what the kept events are like.

Reads the log, the split, histories and targets; produces parts of ``data_report.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from features.histories import TargetRows
from features.log.encode import ReadLog
from features.log.event_log import Outcome
from features.passes.tally import Tally
from features.refused import RefusedRows
from features.sessions import SessionRule
from features.sources.base import RawTables, merge_facts
from features.sources.columns.cells import SHOWN_VALUES, shown
from recsys.contracts.columns import SPLIT_NAMES
from recsys.contracts.dataset import OffsetArray

logger = logging.getLogger("recsys.features")

_MANY_TIES: Final = 0.05
_MANY_UNKNOWN: Final = 0.05
_MOST_REFUSED: Final = 0.5
_NAMED_FILES: Final = 3
_PERCENTS: Final = (0, 10, 50, 90, 99, 100)


def row_counts(read: ReadLog, quarantine: RefusedRows, kept: Outcome) -> dict[str, Any]:
    """Say where every row went.

    Returns:
        ``rows_in``, ``quarantined`` (reason -> rows), ``merged``, ``k_core_removed``, ``kept``, and per file the rows read
        and refused.

    Raises:
        RuntimeError: The numbers do not add up: rows in = kept + quarantined + merged + removed by the k-core.
    """
    counts: dict[str, Any] = {
        "rows_in": read.rows_in,
        "quarantined": {text: reason.rows for text, reason in sorted(quarantine.reasons.items())},
        "merged": len(kept.merged),
        "k_core_removed": kept.k_core_removed,
        "kept": kept.events,
    }
    accounted = len(quarantine) + counts["merged"] + counts["k_core_removed"] + counts["kept"]
    if accounted != read.rows_in:
        raise RuntimeError(
            f"{read.rows_in} rows were read and {accounted} accounted for ({counts}): rows were lost or made up; "
            "this is a fault of the program, please report it"
        )
    files = [
        {"file": name, "rows_in": rows, "quarantined": quarantine.per_file.get(name, 0)}
        for name, rows in zip(read.log.files, read.log.file_records, strict=True)
    ]
    return {**counts, "files": files}


def all_facts(
    raw: RawTables,
    read: ReadLog,
    quarantine: RefusedRows,
    events: Mapping[str, Any],
    ids: tuple[pl.Series, pl.Series],
    tables: Mapping[str, Any],
) -> dict[str, Any]:
    """Put together what was met in the files, in the kept ``events``, the ``ids`` of users and items, and the ``tables``."""
    return merge_facts([raw.notes, read.facts, refused_files(read, quarantine), events, id_warnings(raw, *ids, tables)])


def refused_files(read: ReadLog, quarantine: RefusedRows) -> dict[str, Any]:
    """Name the files of several of which more than half is refused: in a long log a lost day is no large share.

    Returns:
        ``warnings``, one for all such files; nothing where there are none.
    """
    counts = list(zip(read.log.files, read.log.file_records, strict=True))
    bad = [
        (name, quarantine.per_file.get(name, 0), rows)
        for name, rows in counts
        if quarantine.per_file.get(name, 0) > rows * _MOST_REFUSED
    ]
    if not bad or len(counts) < 2:
        return {}
    listed = ", ".join(f"{refused} of {rows} rows of '{name}'" for name, refused, rows in bad[:_NAMED_FILES])
    more = f", and of {len(bad) - _NAMED_FILES} more files" if len(bad) > _NAMED_FILES else ""
    warning = f"{listed}{more} are refused: most of a file; quarantine.parquet says why"
    logger.warning("%s", warning)
    return {"warnings": [warning]}


class Borders(Protocol):
    """Where histories begin and end, as in :class:`~recsys.contracts.dataset.HistoryArrays`."""

    @property
    def offsets(self) -> OffsetArray:
        """``[U + 1]``."""

    @property
    def train_end(self) -> OffsetArray:
        """``[U]``."""

    @property
    def valid_end(self) -> OffsetArray:
        """``[U]``."""


def event_facts(tally: Tally, signals: Sequence[str]) -> dict[str, Any]:
    """Describe the kept events: dates, equal times, signals, and those that lie in the future.

    Returns:
        ``first_event`` and ``last_event`` (UTC, ``None`` without times), ``future_events``, ``ties``, ``signals``, and
        ``warnings`` where one of them matters.
    """
    ties, warnings = tie_counts(tally.ties, tally.events), []
    if ties["by_file_order_share"] > _MANY_TIES:
        warnings.append(
            f"{ties['by_file_order_share']:.1%} of the events have the same time as the event before them (same user) "
            "and are ordered as they stand in the files; declare source.columns.tie_break if a column says which came first"
        )
    timed = tally.events > tally.prehistory and tally.first is not None and tally.last is not None
    first, last = (_iso(tally.first), _iso(tally.last)) if timed else (None, None)
    future = tally.future if timed else 0
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
        "signals": _signal_counts(tally, signals),
        "warnings": warnings,
    }


def doubling_labels(counts: npt.NDArray[np.int64]) -> list[list[Any]]:
    """Return pairs of label and count, without the empty ones behind the last.

    Example:
        >>> doubling_labels(np.array([1, 2, 1, 1, 0]))
        [['0', 1], ['1', 2], ['2–3', 1], ['4–7', 1]]
    """
    labels = ["0", "1", *(f"{2 ** (b - 1)}–{2**b - 1}" for b in range(2, len(counts)))]
    last = int(np.flatnonzero(counts).max(initial=-1))
    return [[label, int(count)] for label, count in zip(labels[: last + 1], counts[: last + 1], strict=True)]


def session_facts(rule: SessionRule, tally: Tally, lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Say how sessions are cut, and how many there are of which length.

    Args:
        rule: How they are cut.
        tally: Of the events.
        lengths: Sessions by their events, as :func:`~features.passes.events.doubling_counts` gives them.
    """
    return {
        "by": rule,
        "chunked_prehistory": tally.prehistory > 0,
        "count": int(lengths.sum()),
        "lengths": doubling_labels(lengths),
    }


def tie_counts(ties: tuple[int, int], events: int) -> dict[str, Any]:
    """Say how many events have the instant of their predecessor.

    Returns:
        ``events`` and ``share`` of those; ``by_file_order`` and ``by_file_order_share``: of those whose order no column
        decides, so that they stand as in the files.

    Example:
        >>> tie_counts((1, 0), 3)
        {'events': 1, 'share': 0.333333, 'by_file_order': 0, 'by_file_order_share': 0.0}
    """
    rows = max(events, 1)
    return {
        "events": ties[0],
        "share": round(ties[0] / rows, 6),
        "by_file_order": ties[1],
        "by_file_order_share": round(ties[1] / rows, 6),
    }


def id_warnings(
    raw: RawTables, user_ids: pl.Series, item_ids: pl.Series, facts: Mapping[str, int]
) -> dict[str, list[str]]:
    """Warn of ids in two spellings, and of tables of items and users that do not fit the log.

    Args:
        raw: For those tables.
        user_ids, item_ids: Distinct ones of kept events.
        facts: Counts of the tables.
    """
    warnings = [
        *spelling_warnings("item", item_ids),
        *spelling_warnings("user", user_ids),
        *metadata_warnings("item", item_ids, raw.items, facts["catalogue_ids_that_conflict"]),
        *metadata_warnings("user", user_ids, raw.users, facts.get("user_ids_that_conflict", 0)),
    ]
    return {"warnings": warnings}


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
        differ = other != written
        if not differ.any():  # most often: then no table of all ids has to be made
            continue
        twins = written.filter(differ & other.is_in(ids.implode()))
        if len(twins):
            warnings.append(
                f"{len(twins)} {part} ids are there {how}, such as {shown(twins.head(1))}: if they are one, write the files "
                "in one way"
            )
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _signal_counts(tally: Tally, signals: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count for every signal the events where it is true, false and not known."""
    combination = np.arange(1 << 16)
    result = {}
    for place, name in enumerate(signals):
        true = int(tally.signals[(combination >> (8 + place)) & 1 == 1].sum())
        known = int(tally.signals[(combination >> place) & 1 == 1].sum())
        result[name] = {"true": true, "false": known - true, "not_known": tally.events - known}
    return result


def history_counts(tally: Tally, history: Borders, targets: Sequence[TargetRows]) -> dict[str, Any]:
    """Count users, events per split, and the rows that will be predicted."""
    lengths = np.diff(history.offsets)
    rows = [sum(len(part) for part in targets if part.split == code) for code in range(len(SPLIT_NAMES))]
    train, valid = history.train_end - history.offsets[:-1], history.valid_end - history.train_end
    positive = int(history.offsets[-1])
    return {
        "users": len(history.train_end),
        "users_without_positive_events": int((lengths == 0).sum()),
        "positive_events": positive,
        "prehistory_events": tally.prehistory,
        "events_per_split": _by_split(tally.per_split),
        "positive_events_per_split": _by_split(
            [int(count) for count in (train.sum(), valid.sum(), positive - train.sum() - valid.sum())]
        ),
        "target_rows": _by_split(rows),
        "history_length_quantiles": {
            f"p{percent}": int(value)
            for percent, value in zip(_PERCENTS, np.percentile(lengths, _PERCENTS, method="lower"), strict=True)
        },
    }


def _by_split(counts: Iterable[int]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(SPLIT_NAMES, counts, strict=True)}


def _iso(microseconds: int | None) -> str | None:
    return None if microseconds is None else datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
