"""A further day: the events of new files sorted into a log that is sorted already.

Reads two encoded logs, of files read earlier and of new ones; produces the log of all files, the same that reading them
all at once gives. The place of each new event is found by bisection; every column is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.log.arrays import CodeArray
from features.log.encoded_log import ID_TABLES, EncodedLog, LogWriter, StoredLog, sort_keys
from features.log.event_log import Core
from features.log.order import KeyArray
from features.log.repeats import Repeats, find_repeats, repeats_of
from features.log.stored_columns import Layout, StoredColumn
from features.passes.rows import add_counts, gathered, inserted

RowArray = npt.NDArray[np.int64]

KEY_NAMES: Final = ("prehistory", "timestamp", "position", "tie_break", "record")
"""Columns that decide the order of a user's events."""

RUN_ROWS: Final = 1 << 18
"""Rows that are worked on at a time: so many that what is done once per run weighs little, and so few that eight bytes of
each are less than 4 MiB, from which on NumPy asks for huge pages, which the system zeroes for every array anew."""


def runs_of_users(starts: RowArray, rows: int = RUN_ROWS) -> list[tuple[int, int]]:
    """Cut users into runs of about so many rows.

    Args:
        starts: ``[users + 1]`` first row of each user, and behind them the number of rows.
        rows: Of a run, or somewhat more: no user is cut in two.

    Example:
        >>> runs_of_users(np.array([0, 3, 4, 9, 10]), 4)
        [(0, 2), (2, 4)]
    """
    ends = np.searchsorted(starts, np.arange(rows, int(starts[-1]) + rows, rows), side="right") - 1
    borders = np.unique(np.concatenate([[0], ends, [len(starts) - 1]]))
    return list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))


@dataclass(frozen=True)
class MergedRun:
    """Rows of some users of a merged log.

    Attributes:
        head: The log without events.
        user_ids: Of these users.
        starts: ``[users + 1]`` first row of each of them, the first one 0, and behind them the number of rows.
        stored: Column -> its rows as they are stored, that of users aside.
        layouts: How each column is stored.
    """

    head: EncodedLog
    user_ids: pl.Series
    starts: RowArray
    stored: Mapping[str, npt.NDArray[Any]]
    layouts: Mapping[str, Layout]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column as it is in memory."""
        return self.layouts[name].from_disk(self.stored[name])

    @cached_property
    def log(self) -> EncodedLog:
        """The rows, of users that are numbered from 0."""
        user = np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))
        arrays: dict[str, Any] = {name: self.column(name) for name in self.stored}
        return replace(self.head, user=user, user_ids=self.user_ids, **arrays)

    def repeats(self) -> Repeats:
        """Find rows with the same user, item and instant as an earlier row."""
        if "timestamp" in self.stored and self.layouts["prehistory"].constant == 0:
            return repeats_of(self.starts, self.column("item"), self.stored["timestamp"])
        return find_repeats(self.log)


@dataclass(frozen=True)
class Merge:
    """Two logs under the numbers that ids and records have in both together.

    Example:
        See ``tests/features/log/test_append.py``.

    Attributes:
        earlier: The large one, on disk.
        new: Its columns, by name.
        head: The merged log without events.
        tables: Column of codes -> the number of each of the earlier ids in the merged table, where some moved.
        moves: How records move.
        before: ``[users + 1]`` first row of each user in ``earlier``.
        after: Likewise, in ``new``.
        places: ``[new rows]`` how many rows of ``earlier`` come before each.
    """

    earlier: StoredLog
    new: Mapping[str, Any]
    head: EncodedLog
    tables: Mapping[str, CodeArray | None]
    moves: _Moves
    before: RowArray
    after: RowArray
    places: RowArray

    @classmethod
    def of(cls, earlier: StoredLog, new: EncodedLog) -> Merge:
        """Find the place of each new event.

        Args:
            earlier: Of some of the files.
            new: Of the others; its ``files`` are all of them, in order, with no records in those that ``earlier`` has.

        Raises:
            ValueError: The logs do not have the same columns, signals and types of ids.
        """
        difference = difference_of(earlier.head, new)
        if difference is not None:
            raise ValueError(f"the logs cannot be merged: {difference}")
        arrays, ids = dict(new.arrays()), {}
        tables: dict[str, CodeArray | None] = {}
        for name, table in ID_TABLES.items():
            if name in arrays and getattr(new, table) is not None:
                ids[table], places = merge_ids(getattr(earlier.head, table), getattr(new, table))
                tables[name] = places.left
                arrays[name] = _renumbered(arrays[name], places.right)
        counts = {name: _of_all(name, earlier.head, new) for name in ("file_records", "file_spans")}
        head = replace(new.without_events(), **counts, **ids)  # type: ignore[arg-type]
        arrays["record"] = _Moves.of(new, head).applied(arrays["record"])
        rows = np.zeros(len(head.user_ids), np.int64)
        moved = tables["user"]
        rows[slice(None) if moved is None else moved] = np.diff(earlier.starts)
        own = np.bincount(arrays["user"], minlength=len(rows))
        before, after = (np.concatenate([[0], np.cumsum(count)]).astype(np.int64) for count in (rows, own))
        moves = _Moves.of(earlier.head, head)
        slots = insertion_places(earlier, before, moves, arrays, tables.get("tie_break"))
        return cls(earlier, arrays, head, tables, moves, before, after, slots)

    @cached_property
    def starts(self) -> RowArray:
        """``[users + 1]`` first row of each user in the merged log."""
        return self.before + self.after

    def marks(self, core: Core) -> Core:
        """Return marks of users and items of the earlier log as marks of those of the merged one; new ones have none."""
        found = []
        for name, table in ID_TABLES.items():
            if name in vars(core):
                marks, moved = getattr(core, name), self.tables[name]
                found.append(np.zeros(len(getattr(self.head, table)), bool))
                found[-1][slice(len(marks)) if moved is None else moved] = marks
        return Core(*found)

    def rows_per_id(self, name: str) -> npt.NDArray[np.int64]:
        """Return ``[ids]`` usable rows of each.

        Args:
            name: ``user`` or ``item``.
        """
        if name == "user":
            return np.diff(self.starts)
        column, moved = self.earlier.columns[name], self.tables[name]
        rows = np.zeros(len(getattr(self.head, ID_TABLES[name])), np.int64)
        for start in range(0, len(column), RUN_ROWS):
            add_counts(_renumbered(column[start : start + RUN_ROWS], moved), None, rows)
        return rows + np.bincount(self.new[name], minlength=len(rows))

    def write(self, folder: Path, runs: Sequence[tuple[int, int]], seen: Callable[[int, MergedRun], None]) -> StoredLog:
        """Save the merged log, some users at a time.

        Args:
            folder: Where.
            runs: First and end of the users that are worked on together.
            seen: Gets the number of the first user of each run, and the run.
        """
        with LogWriter(folder, self._layouts) as writer:
            for first, end in runs:
                starts = self.starts[first : end + 1] - self.starts[first]
                stored = self._stored(first, end)
                writer.write_stored(stored, np.diff(starts))
                seen(first, MergedRun(self.head, self.head.user_ids[first:end], starts, stored, self._layouts))
        writer.finish(self.head)
        rows = int(self.starts[-1])
        columns = {
            name: StoredColumn.open(folder / f"{name}.npy", layout, rows) for name, layout in self._layouts.items()
        }
        return StoredLog(self.head, columns, self.starts)

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        """How the columns of the merged log are stored: as those of a log that was read at once."""
        records = sum(self.head.file_spans)
        found = {}
        for name, column in self.earlier.columns.items():
            added = Layout.of(name, self.new[name], records)
            if len(self.earlier) and len(self.new[name]):
                added = column.layout.joined(added, name, records)
            elif len(self.earlier) and name != "record":
                added = column.layout
            found[name] = added
        return found

    def _stored(self, first: int, end: int) -> dict[str, npt.NDArray[Any]]:
        """Return the rows of the users from ``first`` to ``end`` as they are stored in the merged log."""
        old = slice(int(self.before[first]), int(self.before[end]))
        new = slice(int(self.after[first]), int(self.after[end]))
        at = self.places[new] - old.start
        found: dict[str, npt.NDArray[Any]] = {}
        for name, column in self.earlier.columns.items():
            layout = self._layouts[name]
            if layout.constant is not None and layout == column.layout:  # the new rows have the same value
                rows = old.stop - old.start + len(at)
                found[name] = np.broadcast_to(np.asarray(layout.constant, layout.stored), (rows,))
                continue
            moves = name == "record" and self.moves.shift is not None
            if layout == column.layout and not moves:
                values = column.stored(old)
            else:
                values = layout.to_disk(self.moves.applied(column[old]) if moves else column[old])
            if name in self.tables:
                values = _renumbered(values, self.tables[name])
            found[name] = inserted(values, at, layout.to_disk(self.new[name][new]))
        return found


def _of_all(name: str, earlier: EncodedLog, new: EncodedLog) -> tuple[int, ...]:
    """Return a count per file for all files."""
    known = dict(zip(earlier.files, getattr(earlier, name), strict=True))  # 0 where all events came after its day
    return tuple(max(known.get(file, 0), count) for file, count in zip(new.files, getattr(new, name), strict=True))


def difference_of(earlier: EncodedLog, new: EncodedLog) -> str | None:
    """Say in what two logs differ that must agree before they can be one; ``None`` when in nothing."""
    if earlier.signals != new.signals or earlier.positive != new.positive:
        return "their signals differ"
    left, right = sorted(earlier.arrays()), sorted(new.arrays())
    if left != right:
        return f"their columns differ: {', '.join(sorted(set(left) ^ set(right)))}"
    for name, table in ID_TABLES.items():
        one, other = getattr(earlier, table), getattr(new, table)
        if (one is None) != (other is None):
            return f"'{name}' is text in some of the files and numbers in others"
        if one is not None and one.dtype != other.dtype:
            return f"the ids of '{name}' are {one.dtype} in the files read earlier and {other.dtype} now"
    return None


@dataclass(frozen=True)
class MergedPlaces:
    """Where the ids of two tables stand in the merged one; ``None``: where they stood."""

    left: npt.NDArray[np.int32] | None
    right: npt.NDArray[np.int32] | None


def merge_ids(left: pl.Series, right: pl.Series) -> tuple[pl.Series, MergedPlaces]:
    """Merge two tables of distinct ids, ascending.

    Example:
        >>> ids, places = merge_ids(pl.Series(["a", "c"]), pl.Series(["b", "c"]))
        >>> ids.to_list(), places.left.tolist(), places.right.tolist()
        (['a', 'b', 'c'], [0, 2], [1, 2])
    """
    places = _places(left, right)
    # by bisection: a table of hashes of all ids of the log costs more than to look for those of a day
    met = np.minimum(places, max(len(left) - 1, 0))
    is_fresh = (left.gather(met) != right).to_numpy() if len(left) else np.ones(len(right), bool)
    if not is_fresh.any():
        return left, MergedPlaces(None, places)
    fresh, slots = right.filter(pl.Series(is_fresh)), places[is_fresh]
    table = np.arange(len(left), dtype=np.int32)
    table += np.cumsum(np.bincount(slots, minlength=len(left) + 1)[: len(left)], dtype=np.int32)
    gathered = np.empty(len(left) + len(fresh), np.int64)
    gathered[table] = np.arange(len(left))
    gathered[slots + np.arange(len(fresh))] = len(left) + np.arange(len(fresh))
    merged = pl.concat([left, fresh], rechunk=True).gather(pl.Series(gathered))
    before = np.cumsum(is_fresh, dtype=np.int32) - is_fresh  # new ids in front of each
    return merged, MergedPlaces(table, places + before)


def _places(ids: pl.Series, wanted: pl.Series) -> npt.NDArray[np.int32]:
    """Return the first place in ``ids``, ascending, that is not below each wanted id."""
    return ids.search_sorted(wanted, side="left").to_numpy().astype(np.int32)


def _renumbered(codes: npt.NDArray[np.int32], table: npt.NDArray[np.int32] | None) -> npt.NDArray[np.int32]:
    return codes if table is None else gathered(table, codes)


@dataclass(frozen=True)
class _Moves:
    """By how much the records of each file move when there are more files.

    Attributes:
        starts: ``[files with rows]`` the record number of each file's row 0.
        shift: ``[files with rows]``; ``None`` where none moves.
    """

    starts: RowArray
    shift: RowArray | None

    @classmethod
    def of(cls, log: EncodedLog, merged: EncodedLog) -> _Moves:
        places = {file: place for place, file in enumerate(merged.files)}
        has_rows = np.asarray(log.file_spans) > 0
        shift = merged.file_starts[[places[file] for file in log.files]] - log.file_starts
        return cls(log.file_starts[has_rows], shift[has_rows] if shift[has_rows].any() else None)

    def applied(self, record: RowArray) -> RowArray:
        """Return the records under the numbers that they have among all files."""
        if self.shift is None:
            return record
        return record + self.shift[np.searchsorted(self.starts, record, side="right") - 1]


def insertion_places(
    earlier: StoredLog, starts: RowArray, moves: _Moves, after: Mapping[str, Any], texts: CodeArray | None
) -> RowArray:
    """Return for every row of ``after`` how many rows of ``earlier`` come before it.

    Args:
        earlier: Sorted.
        starts: ``[users + 1]`` first row of each user in it, by the numbers that users have in ``after``.
        moves: Of its records.
        after: Sorted columns by name, as in :class:`~features.log.encoded_log.EncodedLog`.
        texts: The number in ``after`` of each text that breaks ties in ``earlier``; ``None`` where none moved.
    """
    low, high = starts[after["user"]], starts[after["user"] + 1]
    wanted = _keys(after)
    open_rows = np.flatnonzero(low < high)
    while len(open_rows):
        middle = (low[open_rows] + high[open_rows]) // 2
        columns = {name: earlier.columns[name][middle] for name in KEY_NAMES if name in earlier.columns}
        columns["record"] = moves.applied(columns["record"])
        if texts is not None:
            columns["tie_break"] = _renumbered(columns["tie_break"], texts)
        found = _keys(columns | {"user": after["user"][open_rows]})
        is_before = _is_before(found, [key[open_rows] for key in wanted])
        low[open_rows[is_before]] = middle[is_before] + 1
        high[open_rows[~is_before]] = middle[~is_before]
        open_rows = open_rows[low[open_rows] < high[open_rows]]
    return low


def _keys(arrays: Mapping[str, Any]) -> list[KeyArray]:
    """What events of one user are ordered by; the record is last, so that no two events are equal."""
    keys = sort_keys(arrays)[1:]
    if not arrays["prehistory"].any():  # left out there, where no event is early
        keys.insert(0, ~arrays["prehistory"])
    return [*keys, arrays["record"]]


def _is_before(left: Sequence[KeyArray], right: Sequence[KeyArray]) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(left[0]), bool)
    undecided = np.ones(len(left[0]), bool)
    for one, other in zip(left, right, strict=True):
        result |= undecided & (one < other)
        undecided &= one == other
    return result
