"""Whom the batch job scores: all users of a prepared data set, or the rows of a Parquet file of histories.

Both give shards of histories in the *model's* indices. The model may have been trained on other data than it now scores
(yesterday's champion on today's users): then items and users are matched by their outside ids, never by index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.contracts.prepared import PreparedData, Targets
from recsys.data.histories import Histories
from serving.bundle import BundleInfo, Catalogue
from serving.history_frame import MappedHistories, index_of, map_frame


class UserHistories(Protocol):
    """A set of users with their histories, in a fixed order."""

    def __len__(self) -> int:
        """Number of users."""
        ...

    @property
    def digest(self) -> str:
        """Changes when any history changes."""
        ...

    def shard(self, start: int, end: int, info: BundleInfo, catalogue: Catalogue) -> MappedHistories:
        """Histories of users number ``start`` to ``end``, in the indices of the model behind ``catalogue``."""
        ...


class PreparedUsers:
    """All users of a prepared data set, each with the whole history."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.prepared = PreparedData.open(folder)
        self.digest = digest
        self._targets = self.prepared.all_users()
        self._maps: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def shard(self, start: int, end: int, info: BundleInfo, catalogue: Catalogue) -> MappedHistories:
        """Histories of users ``start`` to ``end`` (user_index)."""
        return self.map_targets(self._targets.take(np.arange(start, end)), info, catalogue)

    def map_targets(self, targets: Targets, info: BundleInfo, catalogue: Catalogue) -> MappedHistories:
        """Histories of any rows of this data set, in the model's indices.

        Raises:
            DataError: The model reads other feedback signals than this data set declares.
        """
        histories = Histories.of_targets(self.prepared.history, targets)
        user_ids = self.prepared.users[Columns.USER_ID].gather(targets.user_index)
        if info.digests.get("data") == self.digest:
            return MappedHistories(user_ids, histories, np.zeros(len(targets), np.int32))
        ours, theirs = self.prepared.vocabulary, catalogue.vocabulary
        if ours.signals != theirs.signals:
            raise DataError(
                f"the model was trained with the signals {list(theirs.signals)}, these data declare {list(ours.signals)}; "
                "score with data that are prepared the same way"
            )
        item_map, user_map = self._index_maps(info, catalogue)
        return _remap(histories, user_ids, item_map, user_map, has_timestamps=theirs.has_timestamps)

    def _index_maps(
        self, info: BundleInfo, catalogue: Catalogue
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        key = info.digests["train"]
        if key not in self._maps:
            item_map = index_of(self.prepared.items[Columns.ITEM_ID], catalogue.item_ids, "item ids of the data")
            users = self.prepared.users[Columns.USER_ID]
            if catalogue.user_ids is None:
                user_map = np.full(len(users), -1, np.int32)
            else:
                user_map = index_of(users, catalogue.user_ids, "user ids of the data")
            self._maps[key] = (item_map, user_map)
        return self._maps[key]


class FrameUsers:
    """Users given as a Parquet file in the form of :mod:`serving.history_frame`."""

    def __init__(self, path: Path) -> None:
        try:
            self.frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"histories '{path}' cannot be read: {error}; give a Parquet file with user_id and item_ids"
            ) from error
        self.digest = sha256_of_file(path)
        users = self.frame.get_column(Columns.USER_ID, default=None)
        if users is not None and users.n_unique() != len(users):  # shards would hide a user that occurs in two of them
            twice = users.filter(users.is_duplicated())[0]
            raise DataError(f"histories '{path}': user_id {twice!r} occurs more than once; give one row per user")

    def __len__(self) -> int:
        return len(self.frame)

    def shard(self, start: int, end: int, info: BundleInfo, catalogue: Catalogue) -> MappedHistories:
        """Rows ``start`` to ``end`` of the file."""
        return map_frame(self.frame[start:end], catalogue)


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
