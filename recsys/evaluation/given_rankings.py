"""Somebody else's lists, evaluated on the same rows: read from Parquet, put into the catalogue's indices.

Reads what `recommend` writes, or any table with the columns ``user_id``, ``item_id`` and ``rank`` (1 is the best); produces
:class:`~recsys.contracts.ranking.RankedItems` for the rows of a split. An item that the data set does not know keeps its
place and is no hit; a user without a list has an empty one; both are counted and said.

Shape legend: N rows, k places, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.contracts.ranking import RankedItems

_COLUMNS: Final = (Columns.USER_ID, Columns.ITEM_ID, Columns.RANK)
_HOW: Final = "expected a Parquet file, or a folder of them, with the columns user_id, item_id and rank (1 is the best)"


def files_of(name: str, path: Path) -> list[Path]:
    """Return the files of one ranking, in the order of their names; of our own candidates the shards alone.

    Raises:
        DataError: There is none.
    """
    found = [path] if path.is_file() else []
    if path.is_dir():
        ours = (path / "candidates.json").exists()  # the batch job keeps tables of users beside its shards
        found = sorted(path.glob("part-*.parquet" if ours else "[!.]*.parquet"))
    if not found:
        what = "holds no .parquet file" if path.is_dir() else "is not there"
        raise DataError(f"evaluate.rankings.{name}: '{path.absolute()}' {what}; {_HOW}")
    return found


def fingerprint(rankings: Mapping[str, Path]) -> dict[str, str]:
    """Content hashes of all files, by the key that names them."""
    return {
        f"evaluate.rankings.{name}/{number}": sha256_of_file(file)
        for name, path in rankings.items()
        for number, file in enumerate(files_of(name, path))
    }


@dataclass(frozen=True)
class GivenRanking:
    """Lists as they were given, for the rows of a split.

    Attributes:
        items: int32 ``[N, k]`` item_index; -1 where there is no item, or one that the data set does not know.
        notes: What does not fit, one sentence each.
    """

    items: npt.NDArray[np.int32]
    notes: tuple[str, ...]

    def ranked(self, prepared: Dataset, targets: Targets, width: int, *, exclude_seen: bool) -> RankedItems:
        """Return the first ``width`` places; without the items of the history those behind move up."""
        items = self.items
        if exclude_seen:
            seen = items == -2  # nothing
            for first in range(0, len(targets), 65536):
                rows = slice(first, first + 65536)
                seen[rows] = _seen(items[rows], prepared, targets.history_start[rows], targets.history_end[rows])
            order = np.argsort(seen, axis=1, kind="stable")
            items = np.where(np.take_along_axis(seen, order, axis=1), -1, np.take_along_axis(items, order, axis=1))
        short = max(width - items.shape[1], 0)
        placed = np.pad(items[:, :width], ((0, 0), (0, short)), constant_values=-1).astype(np.int32)
        scores = np.where(placed >= 0, -np.arange(1, width + 1, dtype=np.float32), np.float32(-np.inf))
        return RankedItems(placed, scores.astype(np.float32))


def read_ranking_of(name: str, path: Path, prepared: Dataset, targets: Targets, width: int) -> GivenRanking:
    """Read one ranking.

    Args:
        name: Its name in the table, and in messages.
        targets: The rows; one per user.
        width: Places that are looked at. Of a longer list so many are kept as can still come to stand there when the items
            of the longest history leave.

    Raises:
        DataError: The file cannot be read, lacks a column, holds other kinds of ids than the data set, a null, a rank below
            1, or a place or an item twice; or the split has several rows of one user.
    """
    where = f"evaluate.rankings.{name}: '{path}'"
    users = prepared.users[Columns.USER_ID].gather(targets.user_index)
    if users.n_unique() < len(users):
        raise DataError(
            f"{where}: the split has several rows of one user, and a list is for a user; use eval_rows: per_user"
        )
    table = _read(name, path, where)
    _check_kinds(table, prepared, where)
    unknown_users = table.filter(~pl.col(Columns.USER_ID).is_in(users.implode()))[Columns.USER_ID].n_unique()
    rows = pl.DataFrame({Columns.USER_ID: users, "row": np.arange(len(users))})
    items = pl.DataFrame(
        {Columns.ITEM_ID: prepared.items[Columns.ITEM_ID], "index": np.arange(len(prepared.items), dtype=np.int32)}
    )
    found = (
        table.join(rows, on=Columns.USER_ID)
        .join(items, on=Columns.ITEM_ID, how="left")
        .sort("row", Columns.RANK)
        .with_columns(pl.int_range(pl.len()).over("row").alias("place"))
    )
    gaps = found.filter(pl.col(Columns.RANK) != pl.col("place") + 1)["row"].n_unique()
    if not len(found):
        raise DataError(
            f"{where} has no list for any of the {len(users)} users of the split; are the user ids of one kind?"
        )
    looked_at = width + int((targets.history_end - targets.history_start).max())
    kept = found.filter(pl.col("place") < looked_at)
    lists = np.full((len(users), int(kept["place"].to_numpy().max()) + 1), -1, np.int32)
    lists[kept["row"].to_numpy(), kept["place"].to_numpy()] = kept["index"].fill_null(-1).to_numpy()
    notes = []
    if without := len(users) - found["row"].n_unique():
        notes.append(f"{name}: {without} of {len(users)} users have no list, which counts as an empty one")
    if unknown := found["index"].null_count():
        notes.append(
            f"{name}: {unknown} of {len(found)} items are not in the data set; they keep their places and hit nothing"
        )
    if gaps:
        notes.append(f"{name}: the ranks of {gaps} users have gaps; the items behind a gap move up")
    if unknown_users:
        notes.append(f"{name}: lists of {unknown_users} users who have no row in the split are passed over")
    return GivenRanking(lists, tuple(notes))


def _read(name: str, path: Path, where: str) -> pl.DataFrame:
    files = files_of(name, path)
    frames: dict[Path, pl.DataFrame] = {}
    for file in files:
        try:
            frame = pl.read_parquet(file, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{where} cannot be read: '{file.name}': {error}; {_HOW}") from error
        absent = [column for column in _COLUMNS if column not in frame.columns]
        if absent:
            raise DataError(f"{where}: '{file.name}' has no column {absent[0]}, but {', '.join(frame.columns)}; {_HOW}")
        if len(frame) or not frames:  # a part without rows has columns of whatever type
            frames = frames if any(map(len, frames.values())) else {}
            frames[file] = frame.select(_COLUMNS)
    casts = _widest(where, frames)
    table = pl.concat([frame.with_columns(casts) for frame in frames.values()])
    if not len(table):
        raise DataError(f"{where} has no rows; {_HOW}")
    nulls = [column for column in _COLUMNS if table[column].null_count()]
    if nulls:
        raise DataError(
            f"{where} has {table[nulls[0]].null_count()} nulls in {nulls[0]}; every row names user, item and rank"
        )
    if not table[Columns.RANK].dtype.is_integer():
        raise DataError(f"{where}: rank is {table[Columns.RANK].dtype}, expected whole numbers from 1; cast it")
    smallest = table.select(pl.col(Columns.RANK).min()).item()
    if smallest < 1:
        raise DataError(f"{where}: the smallest rank is {smallest}, expected 1 for the best; add to it")
    for column in (Columns.RANK, Columns.ITEM_ID):
        twice = table.filter(pl.struct(Columns.USER_ID, column).is_duplicated())
        if len(twice):
            user, value = twice[Columns.USER_ID][0], twice[column][0]
            raise DataError(f"{where}: user {user!r} has {column} {value!r} more than once; keep one row of each")
    return table


def _widest(where: str, frames: Mapping[Path, pl.DataFrame]) -> list[pl.Expr]:
    """Say how a column becomes one type in all files: whole numbers of any width are of one kind, nothing else is.

    Raises:
        DataError: Names the two files, the column and its types.
    """
    casts, files = [], list(frames)
    for column in _COLUMNS:
        types = [frame[column].dtype for frame in frames.values()]
        other = next((place for place, dtype in enumerate(types) if dtype != types[0]), None)
        if other is None:
            continue
        odd = next((place for place, dtype in enumerate(types) if not dtype.is_integer()), None)
        if odd is not None:
            two = odd or other
            raise DataError(
                f"{where}: {column} is {types[0]} in '{files[0].name}' and {types[two]} in '{files[two].name}'; write it "
                "with one type in all files"
            )
        casts.append(pl.col(column).cast(pl.Int128))
    return casts


def _check_kinds(table: pl.DataFrame, prepared: Dataset, where: str) -> None:
    """Refuse ids of another kind: 7 and "7" are two ids."""
    for column, own in ((Columns.USER_ID, prepared.users), (Columns.ITEM_ID, prepared.items)):
        given, known = table[column].dtype, own[column].dtype
        if given != known and not (given.is_integer() and known.is_integer()):
            raise DataError(f"{where}: {column} is {given}, in the data set it is {known}; write it as {known}")


def _seen(
    items: npt.NDArray[np.int32], prepared: Dataset, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether each place ``[b, k]`` holds an item of the row's history."""
    lengths, span = ends - starts, prepared.spec.num_items
    rows = np.repeat(np.arange(len(starts)), lengths)
    before = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    history = rows * span + prepared.history.item[before + np.arange(len(rows))]
    keys = np.where(items >= 0, np.arange(len(items))[:, None] * span + items, -1)
    return np.isin(keys, history)
