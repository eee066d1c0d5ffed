"""From the encoded log to the events that are kept: repeats become one, thin users and items go, the rest is numbered anew.

Reads :class:`~features.log.encoded_log.EncodedLog`; produces :class:`EventLog`, and what became of every row: rows in =
kept + quarantined + merged + removed by the k-core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import BoolArray, CodeArray
from features.log.encoded_log import EncodedLog, instants, sort_keys
from features.log.k_core import KCoreConfig, k_core_mask
from features.log.order import same_as_before
from features.log.repeats import Duplicates, Repeats, find_repeats, merge_repeats, without
from features.log.signal_bits import positive_mask
from features.sources.base import FILE, ROW, MergeRule
from recsys.contracts.dataset import ByteArray
from recsys.contracts.errors import DataError

INTO_FILE = "into_file"
INTO_ROW = "into_row"


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """Kept events, sorted by user and time.

    Attributes:
        user: ``[E]`` user_index.
        item: ``[E]`` item_index.
        positive: ``[E]`` whether the event counts as liked.
        prehistory: ``[E]`` whether it has an order but no time.
        timestamp: ``[E]`` UTC microseconds, -1 not known.
        session: ``[E]`` place in the source's sessions, -1 not given; ``None``: the source has none.
        split: ``[E]`` place in ``split_names``, -1 not given; ``None``: the source has none.
        watch_time: ``[E]`` milliseconds, NaN not known; ``None``: the source has none.
        duration: ``[E]`` likewise.
        signal_values: ``[E]`` bit ``j``: the ``j``-th signal is true.
        signal_known: ``[E]`` bit ``j``: the ``j``-th signal is known.
        signals: Names of the signals.
        user_ids: ``[U]`` user_id of each user_index, ascending.
        item_ids: ``[I]`` item_id of each item_index, ascending.
        split_names: What the source calls its splits.
    """

    user: CodeArray
    item: CodeArray
    positive: BoolArray
    prehistory: BoolArray
    timestamp: npt.NDArray[np.int64]
    session: CodeArray | None
    split: CodeArray | None
    watch_time: npt.NDArray[np.float32] | None
    duration: npt.NDArray[np.float32] | None
    signal_values: ByteArray
    signal_known: ByteArray
    signals: tuple[str, ...]
    user_ids: pl.Series
    item_ids: pl.Series
    split_names: pl.Series | None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class KeptEvents:
    """The event log, and what became of the rows that are not in it.

    Attributes:
        log: The kept events.
        merged: Rows that another row of the same event has taken in: ``file``, ``row``, ``into_file``, ``into_row`` and
            the canonical columns.
        dropped: Repeats that were refused, as :meth:`~features.log.encoded_log.EncodedLog.decode` gives them.
        k_core_removed: Events that the k-core took away.
        ties: How many events have the instant of their predecessor, see :func:`count_ties`.
    """

    log: EventLog
    merged: pl.DataFrame
    dropped: pl.DataFrame
    k_core_removed: int
    ties: dict[str, Any]


def keep_events(
    encoded: EncodedLog, k_core: KCoreConfig, duplicates: Duplicates, rules: Mapping[str, MergeRule]
) -> KeptEvents:
    """Merge or refuse repeats, apply the k-core, and number the users and items that are left.

    Args:
        encoded: Usable rows, sorted.
        k_core: Limits.
        duplicates: What becomes of rows with the same user, item and time (or position): ``merge`` makes one event of
            them, ``drop`` refuses all but the first, ``keep`` keeps all.
        rules: Signal -> how its values are merged; ``any`` for those not named.

    Raises:
        DataError: Nothing is left.
    """
    usable = len(encoded)
    repeats = find_repeats(encoded) if duplicates != "keep" else Repeats(np.empty(0, np.int64), np.empty(0, np.int64))
    merged, dropped = _merged_table(encoded, repeats if duplicates == "merge" else None), encoded.decode(slice(0, 0))
    if duplicates == "drop":
        dropped = encoded.decode(repeats.rows)
    if duplicates == "merge":
        encoded = merge_repeats(encoded, repeats, rules)
    stays = without(repeats, usable)
    positive = positive_mask(encoded.signal_values, encoded.signals, encoded.positive)
    in_core = k_core_mask(encoded.user, encoded.item, positive if stays is None else positive & stays, k_core)
    keep = in_core if stays is None else in_core & stays if in_core is not None else stays
    kept = usable if keep is None else int(keep.sum())
    if kept == 0:
        raise DataError(
            f"no event is left of {usable} usable rows (k-core: user {k_core.user}, item {k_core.item}); "
            "lower features.k_core or check the column map"
        )
    removed = usable - len(repeats) - kept
    if kept == usable:
        keep = None
    arrays = {name: array if keep is None else array[keep] for name, array in encoded.arrays().items()}
    user, user_ids = _renumber(arrays["user"], encoded.user_ids)
    item, item_ids = _renumber(arrays["item"], encoded.item_ids)
    timestamp = arrays.get("timestamp")
    log = EventLog(
        user=user,
        item=item,
        positive=positive if keep is None else positive[keep],
        prehistory=arrays["prehistory"],
        timestamp=timestamp if timestamp is not None else np.full(kept, -1, np.int64),
        session=arrays.get("session"),
        split=arrays.get("split"),
        watch_time=arrays.get("watch_time"),
        duration=arrays.get("duration"),
        signal_values=arrays["signal_values"],
        signal_known=arrays["signal_known"],
        signals=encoded.signals,
        user_ids=user_ids,
        item_ids=item_ids,
        split_names=encoded.split_names,
    )
    return KeptEvents(log, merged, dropped, removed, count_ties(arrays))


def count_ties(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Count events with the same instant as their predecessor of the same user.

    Args:
        arrays: Sorted columns by name, as in :class:`~features.log.encoded_log.EncodedLog`.

    Returns:
        ``events`` and ``share`` with the instant of their predecessor; ``by_file_order`` and ``by_file_order_share``: those
        whose order no column decides, so that they stand as in the files.

    Example:
        >>> arrays = {"user": np.array([0, 0, 0]), "prehistory": np.zeros(3, bool), "timestamp": np.array([5, 5, 6]),
        ...           "tie_break": np.array([1, 2, 1])}
        >>> count_ties(arrays)
        {'events': 1, 'share': 0.333333, 'by_file_order': 0, 'by_file_order_share': 0.0}
    """
    rows = max(len(arrays["user"]), 1)
    by_time = int(same_as_before([arrays["user"], arrays["prehistory"], *instants(arrays)]).sum())
    undecided = int(same_as_before(sort_keys(arrays)).sum()) if by_time else 0
    return {
        "events": by_time,
        "share": round(by_time / rows, 6),
        "by_file_order": undecided,
        "by_file_order_share": round(undecided / rows, 6),
    }


def _merged_table(encoded: EncodedLog, repeats: Repeats | None) -> pl.DataFrame:
    """Return ``merged.parquet``, in the order of the files."""
    rows = repeats.rows if repeats is not None else np.empty(0, np.int64)
    into = repeats.into if repeats is not None else rows
    order = np.argsort(encoded.record[rows])
    table, target = encoded.decode(rows[order]), encoded.decode(into[order]).select(FILE, ROW)
    return table.select(FILE, ROW, target[FILE].alias(INTO_FILE), target[ROW].alias(INTO_ROW), pl.exclude(FILE, ROW))


def _renumber(codes: CodeArray, ids: pl.Series) -> tuple[CodeArray, pl.Series]:
    used = np.zeros(len(ids), bool)
    used[codes] = True
    if used.all():
        return codes, ids
    table = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return table[codes], ids.filter(used)
