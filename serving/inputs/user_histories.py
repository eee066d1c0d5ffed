"""Whom the batch job scores: all users of a prepared data set, or the rows of a Parquet file of histories.

Both give shards of histories in the *model's* indices. The model may have been trained on other data than it now scores
(yesterday's champion on today's users): then items and users are matched by their outside ids, never by index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, HistoryArrays, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.data.histories import Histories
from serving.bundle.catalogue import Catalogue
from serving.inputs.history_frame import MappedHistories, check_columns, check_users, map_frame

READ_AHEAD: Final = 32_768
"""Rows read from a file at once: getting to a row inside a row group costs several times what reading it does."""


class UserHistories(Protocol):
    """A set of users with their histories, in a fixed order."""

    def __len__(self) -> int:
        """Number of users."""
        ...

    @property
    def user_ids(self) -> pl.Series:
        """All users in their order."""
        ...

    @property
    def objectives(self) -> pl.Series | None:
        """The different texts of the column ``objective``; ``None`` where there is no such column."""
        ...

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Histories of users number ``start`` to ``end``, in the indices of the model behind ``catalogue``."""
        ...


class StoredUsers(UserHistories, Protocol):
    """Users of a batch job, which a restart must find unchanged."""

    @property
    def digest(self) -> str:
        """Changes when any history changes."""
        ...


class MappedUsers:
    """Users whose histories are in the model's indices already.

    Raises:
        DataError: The histories carry objective weights, which a request takes from its rows and options alone.
    """

    def __init__(self, mapped: MappedHistories) -> None:
        if mapped.histories.objective is not None:
            raise DataError(
                "histories carry objective weights already, expected none; name them in AnswerOptions.objective, or as text "
                f"in the column '{Columns.OBJECTIVE}'"
            )
        self._mapped = mapped

    @classmethod
    def from_histories(cls, histories: Histories) -> MappedUsers:
        """Take bare histories; the users are called by their row number."""
        names = pl.int_range(len(histories), eager=True).alias(Columns.USER_ID)
        return cls(MappedHistories(names, histories, np.zeros(len(histories), np.int32)))

    def __len__(self) -> int:
        return len(self._mapped.user_ids)

    @property
    def user_ids(self) -> pl.Series:
        """As given."""
        return self._mapped.user_ids

    @property
    def objectives(self) -> pl.Series | None:
        """As given; a text may repeat."""
        return self._mapped.objectives

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Rows ``start`` to ``end``; the look-up has happened."""
        return self._mapped if end - start == len(self) else self._mapped.take(np.arange(start, end))


class PreparedUsers:
    """All users of a prepared data set, each with the whole history."""

    objectives: pl.Series | None = None

    def __init__(self, folder: Path, digest: str) -> None:
        self.prepared = Dataset.open(folder)
        self.digest = digest
        # as plain arrays: NumPy spends more on slicing a memory-mapped one per user than the search on excluding the items;
        # the pages stay mapped
        arrays = {name: np.asarray(array) for name, array in vars(self.prepared.history).items()}
        self._history = HistoryArrays(**arrays)
        self._targets = self.prepared.all_users()
        self._maps: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def user_ids(self) -> pl.Series:
        """Row number = user_index."""
        return self.prepared.users[Columns.USER_ID]

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Histories of users ``start`` to ``end`` (user_index)."""
        return self.map_targets(self._targets.take(np.arange(start, end)), catalogue)

    def map_targets(self, targets: Targets, catalogue: Catalogue) -> MappedHistories:
        """Histories of any rows of this data set, in the model's indices.

        Raises:
            DataError: The model reads other feedback signals than this data set declares.
        """
        histories = Histories.from_targets(self._history, targets)
        user_ids = self.prepared.users[Columns.USER_ID].gather(targets.user_index)
        if catalogue.digests.get("data") == self.digest:
            return MappedHistories(user_ids, histories, np.zeros(len(targets), np.int32))
        ours, theirs = self.prepared.spec, catalogue.spec
        if ours.signals != theirs.signals:
            raise DataError(
                f"the model was trained with the signals {list(theirs.signals)}, these data declare {list(ours.signals)}; "
                "score with data that are prepared the same way"
            )
        item_map, user_map = self._index_maps(catalogue)
        return _remap(histories, user_ids, item_map, user_map, has_timestamps=theirs.has_timestamps)

    def _index_maps(self, catalogue: Catalogue) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        key = catalogue.digests["train"]
        if key not in self._maps:
            item_map = catalogue.item_index(self.prepared.items[Columns.ITEM_ID], "item ids of the data")
            user_map = catalogue.user_index(self.prepared.users[Columns.USER_ID], "user ids of the data")
            self._maps[key] = (item_map, user_map)
        return self._maps[key]


class FrameUsers:
    """Users given as a Parquet file in the form of :mod:`serving.inputs.history_frame`; read lazily.

    Raises:
        DataError: It cannot be read, or its columns or users do not keep the form.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._rows = pl.scan_parquet(path, glob=False)  # a bracket in a file name is a bracket
            schema = self._rows.collect_schema()
            check_columns(schema, f"histories '{path}'")
            self._user_ids = self._rows.select(Columns.USER_ID).collect()[Columns.USER_ID]
            self.objectives: pl.Series | None = None
            if Columns.OBJECTIVE in schema:
                different = self._rows.select(pl.col(Columns.OBJECTIVE).unique(maintain_order=True))
                self.objectives = different.collect()[Columns.OBJECTIVE]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._unreadable(error) from error
        self.digest = sha256_of_file(path)
        check_users(self._user_ids, f"histories '{path}'")  # shards would hide a user that occurs in two of them
        self._user_index: dict[str, npt.NDArray[np.int32]] = {}
        self._first, self._block = 0, pl.DataFrame()

    def __len__(self) -> int:
        return len(self._user_ids)

    @property
    def user_ids(self) -> pl.Series:
        """In the order of the file."""
        return self._user_ids

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Rows ``start`` to ``end`` of the file."""
        key = catalogue.digests["train"]
        if key not in self._user_index:
            self._user_index[key] = catalogue.user_index(self._user_ids)
        return map_frame(self._read(start, end), catalogue, self._user_index[key][start:end])

    def _read(self, start: int, end: int) -> pl.DataFrame:
        if start < self._first or end > self._first + len(self._block):
            try:
                self._block = self._rows.slice(start, max(end - start, READ_AHEAD)).collect()
            except (OSError, pl.exceptions.PolarsError) as error:
                raise self._unreadable(error) from error
            self._first = start
        return self._block.slice(start - self._first, end - start)

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"histories '{self._path}' cannot be read: {error}; give a Parquet file with user_id and item_ids"
        )


def _remap(
    histories: Histories,
    user_ids: pl.Series,
    item_map: npt.NDArray[np.int32],
    user_map: npt.NDArray[np.int32],
    *,
    has_timestamps: bool,
) -> MappedHistories:
    """Translate indices and leave out events whose item the model does not have."""
    lengths = histories.lengths
    row = np.repeat(np.arange(len(histories)), lengths)
    flat = np.repeat(histories.start - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
    item = item_map[histories.item[flat]]
    known = item >= 0
    flat, counts = flat[known], np.bincount(row[known], minlength=len(histories)).astype(np.int64)
    ends = np.cumsum(counts)
    gap = histories.gap[flat]
    mapped = Histories(
        user_index=user_map[histories.user_index],
        start=ends - counts,
        end=ends,
        item=item[known],
        behaviour=histories.behaviour[flat],
        gap=gap if has_timestamps else np.zeros_like(gap),
        watch=histories.watch[flat],
    )
    return MappedHistories(user_ids, mapped, (lengths - counts).astype(np.int32))
