"""From the encoded log to the events that are kept: repeats become one, thin users and items go, the rest is numbered anew.

Reads :class:`~features.log.encoded_log.EncodedLog`; produces :class:`EventLog`, and what became of every row: rows in =
kept + quarantined + merged + removed by the k-core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import BoolArray, CodeArray, is_constant
from features.log.encoded_log import EncodedLog, instants, sort_keys
from features.log.k_core import KCoreConfig, k_core_mask
from features.log.order import same_as_before
from features.log.repeats import Duplicates, Repeats, find_repeats, merge_repeats, without
from features.log.signal_bits import positive_mask
from features.passes.rows import compressed, gathered
from features.sources.base import FILE, ROW, MergeRule
from recsys.contracts.dataset import ByteArray
from recsys.contracts.errors import ArtifactError, DataError

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
        propensity: ``[E]`` likewise, a probability.
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
    propensity: npt.NDArray[np.float32] | None = None
    signal_values: ByteArray
    signal_known: ByteArray
    signals: tuple[str, ...]
    user_ids: pl.Series
    item_ids: pl.Series
    split_names: pl.Series | None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Outcome:
    """What became of the rows that are not kept.

    Attributes:
        merged: Rows that another row of the same event has taken in: ``file``, ``row``, ``into_file``, ``into_row`` and
            the canonical columns.
        dropped: Repeats that were refused, as :meth:`~features.log.encoded_log.EncodedLog.decode` gives them.
        k_core_removed: Events that the k-core took away.
        events: Events that are kept.
    """

    merged: pl.DataFrame
    dropped: pl.DataFrame
    k_core_removed: int
    events: int


@dataclass(frozen=True)
class Core:
    """Which users and items have kept events.

    Attributes:
        user: ``[distinct users of usable rows]``.
        item: ``[distinct items of usable rows]``.
    """

    user: BoolArray
    item: BoolArray

    def save(self, folder: Path) -> None:
        """Write it beside the log."""
        for name, marks in vars(self).items():
            np.save(folder / f"kept_{name}.npy", marks)

    @classmethod
    def load(cls, folder: Path) -> Core:
        """Read it.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        try:
            return cls(*(np.load(folder / f"kept_{name}.npy", allow_pickle=False) for name in ("user", "item")))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{folder}': {error}; delete its artefact and run prepare again") from error


@dataclass(frozen=True)
class KeptEvents(Outcome):
    """The event log, and what became of the rows that are not in it.

    Attributes:
        log: The kept events.
        ties: Events with the instant of their predecessor, see :func:`count_ties`.
        core: Which users and items have kept events.
    """

    log: EventLog
    ties: tuple[int, int]
    core: Core


@dataclass(frozen=True)
class Settled:
    """Rows of a log once repeats have been dealt with.

    Attributes:
        log: The rows, of which those that took in others know more.
        repeats: Those that do not stay.
        stays: ``[E]`` whether a row stays; ``None`` when all do.
        positive: ``[E]`` whether it counts as liked.
    """

    log: EncodedLog
    repeats: Repeats
    stays: BoolArray | None
    positive: BoolArray


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
    settled = settle(encoded, duplicates, rules)
    stays, positive = settled.stays, settled.positive
    in_core = k_core_mask(encoded.user, encoded.item, positive if stays is None else positive & stays, k_core)
    keep = in_core if stays is None else in_core & stays if in_core is not None else stays
    kept = usable if keep is None else int(keep.sum())
    check_not_all_gone(kept, usable, k_core, positive=bool(positive.any()))
    arrays = selected(settled, keep if kept < usable else None)
    user, user_ids, used_user = renumber(arrays["user"], encoded.user_ids)
    item, item_ids, used_item = renumber(arrays["item"], encoded.item_ids)
    log = event_log(encoded, {**arrays, "user": user, "item": item}, user_ids, item_ids)
    merged, dropped = repeat_tables(encoded, settled.repeats, duplicates)
    return KeptEvents(
        merged=merged,
        dropped=dropped,
        k_core_removed=usable - len(settled.repeats) - kept,
        events=kept,
        log=log,
        ties=count_ties(arrays),
        core=Core(used_user, used_item),
    )


def settle(
    encoded: EncodedLog, duplicates: Duplicates, rules: Mapping[str, MergeRule], repeats: Repeats | None = None
) -> Settled:
    """Find repeats, unless they are known, and let the rows that stay know what all of them know.

    Args:
        encoded: Sorted; all rows of each user.
        duplicates: See :func:`keep_events`.
        rules: Likewise.
        repeats: Of this log.
    """
    if repeats is None:
        none = Repeats(np.empty(0, np.int64), np.empty(0, np.int64))
        repeats = find_repeats(encoded) if duplicates != "keep" else none
    if duplicates == "merge":
        encoded = merge_repeats(encoded, repeats, rules)
    positive = positive_mask(encoded.signal_values, encoded.signals, encoded.positive)
    return Settled(encoded, repeats, without(repeats, len(encoded)), positive)


def check_not_all_gone(kept: int, usable: int, k_core: KCoreConfig, *, positive: bool) -> None:
    """Refuse a log of which nothing is left.

    Args:
        kept: Events that are kept.
        usable: Rows that could be read.
        k_core: Limits.
        positive: Whether any of them is positive.

    Raises:
        DataError: ``kept`` is 0.
    """
    if kept == 0 and not positive:
        raise DataError(
            f"no event is left: none of {usable} usable rows is positive, so the k-core (user {k_core.user}, item "
            f"{k_core.item}) keeps nobody; check source.positive and the rules of its signals"
        )
    if kept == 0:
        raise DataError(
            f"no event is left of {usable} usable rows (k-core: user {k_core.user}, item {k_core.item}); "
            "lower features.k_core or check the column map"
        )


def selected(settled: Settled, keep: BoolArray | None) -> dict[str, Any]:
    """Return the columns of the rows that are kept, with ``positive`` and without the numbers of the raw rows."""
    arrays = {**settled.log.arrays(), "positive": settled.positive}
    del arrays["record"]
    if keep is None:
        return arrays
    count = int(np.count_nonzero(keep))
    return {name: array[:count] if is_constant(array) else compressed(array, keep) for name, array in arrays.items()}


def event_log(encoded: EncodedLog, arrays: Mapping[str, Any], user_ids: pl.Series, item_ids: pl.Series) -> EventLog:
    """Make an event log of columns.

    Args:
        encoded: For the names of signals and splits.
        arrays: Columns, with users and items by their final numbers.
        user_ids, item_ids: Of those numbers.
    """
    timestamp = arrays.get("timestamp")
    return EventLog(
        user=arrays["user"],
        item=arrays["item"],
        positive=arrays["positive"],
        prehistory=arrays["prehistory"],
        timestamp=timestamp if timestamp is not None else np.full(len(arrays["user"]), -1, np.int64),
        session=arrays.get("session"),
        split=arrays.get("split"),
        watch_time=arrays.get("watch_time"),
        duration=arrays.get("duration"),
        propensity=arrays.get("propensity"),
        signal_values=arrays["signal_values"],
        signal_known=arrays["signal_known"],
        signals=encoded.signals,
        user_ids=user_ids,
        item_ids=item_ids,
        split_names=encoded.split_names,
    )


def count_ties(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
    """Count events with the same instant as their predecessor of the same user.

    Args:
        arrays: Sorted columns by name, as in :class:`~features.log.encoded_log.EncodedLog`.

    Returns:
        How many there are, and those whose order no column decides, so that they stand as in the files.

    Example:
        >>> arrays = {"user": np.array([0, 0, 0]), "prehistory": np.zeros(3, bool), "timestamp": np.array([5, 5, 6]),
        ...           "tie_break": np.array([1, 2, 1])}
        >>> count_ties(arrays)
        (1, 0)
    """
    by_time = int(same_as_before([arrays["user"], arrays["prehistory"], *instants(arrays)]).sum())
    return by_time, int(same_as_before(sort_keys(arrays)).sum()) if by_time else 0


def repeat_tables(encoded: EncodedLog, repeats: Repeats, duplicates: Duplicates) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows that others took in, in the order of the files, and those that were dropped, in that of the log."""
    rows, none = repeats.rows, np.empty(0, np.int64)
    if duplicates != "merge":
        return _merged_table(encoded, Repeats(none, none)), encoded.decode(rows)
    return _merged_table(encoded, repeats), encoded.decode(none)


def _merged_table(encoded: EncodedLog, repeats: Repeats) -> pl.DataFrame:
    order = np.argsort(encoded.record[repeats.rows])
    table = encoded.decode(repeats.rows[order])
    target = encoded.decode(repeats.into[order]).select(FILE, ROW)
    return table.select(FILE, ROW, target[FILE].alias(INTO_FILE), target[ROW].alias(INTO_ROW), pl.exclude(FILE, ROW))


def renumber(codes: CodeArray, ids: pl.Series) -> tuple[CodeArray, pl.Series, BoolArray]:
    """Number anew the ids that are met; return ``[E]`` numbers, those ids, and ``[ids]`` which they are."""
    used = np.zeros(len(ids), bool)
    used[codes] = True
    if used.all():
        return codes, ids, used
    table = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return gathered(table, codes), ids.filter(used), used
