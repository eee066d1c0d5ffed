"""Whom the batch job scores: all users of a prepared data set, or the rows of a file of histories.

Both give shards of histories in the *model's* indices. The model may have been trained on other data than it now scores
(yesterday's champion on today's users): then items and users are matched by their outside ids, never by index.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import HISTORY_ARRAYS, Dataset, Targets
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.event_times import NumberUnit
from recsys.contracts.manifest import sha256_of_file
from recsys.data.histories import Histories
from recsys.decoding.rules.personal_lists import PersonalLists
from serving.bundle.catalogue import Catalogue
from serving.inputs.callers_frame import to_frame
from serving.inputs.csv_histories import read_csv_histories, whole_numbers
from serving.inputs.history_columns import user_values
from serving.inputs.history_frame import (
    MappedHistories,
    asked_texts,
    check_columns,
    map_frame,
    untyped_if_empty,
)
from serving.inputs.row_blocks import NO_GROUPS, READ_AHEAD, RowBlocks, row_groups
from serving.inputs.rules.personal_items import denied_in_rows, disliked_in

logger = logging.getLogger("recsys.serving")

KEPT_BYTES: Final = 128 * 2**20
"""Of mapped rows that the check of a file keeps for the shards, which otherwise read and map them once more."""


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

    @property
    def sentences(self) -> pl.Series | None:
        """The different texts of the column ``words``; ``None`` where there is no such column."""
        ...

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Histories of users number ``start`` to ``end``, in the indices of the model behind ``catalogue``."""
        ...


@dataclass(frozen=True)
class UserSource:
    """Where the users of a batch job are kept; another process opens them by it.

    Attributes:
        path: Folder of a prepared data set, or a file of histories.
        digest: Of the data set; ``None``: a file.
        timestamp_unit: What numbers in a file's ``timestamps`` count.
    """

    path: Path
    digest: str | None
    timestamp_unit: NumberUnit = "us"

    def open(self) -> StoredUsers:
        """Open them.

        Raises:
            DataError, ArtifactError: They cannot be read.
        """
        if self.digest is None:
            return FrameUsers(self.path, self.timestamp_unit)
        return PreparedUsers(self.path, self.digest)


class StoredUsers(UserHistories, Protocol):
    """Users of a batch job, which a restart must find unchanged."""

    @property
    def source(self) -> UserSource:
        """Where they are kept."""
        ...

    @property
    def digest(self) -> str:
        """Changes when any history changes."""
        ...

    def check(self, catalogue: Catalogue) -> None:
        """Refuse histories that the model behind ``catalogue`` could not read, before the first user is scored."""
        ...

    def personal_lists(self, signals: Sequence[str] | None, catalogue: Catalogue) -> PersonalLists | None:
        """What they must not be shown; ``signals`` as ``recommend.exclude_disliked``, a ConfigError where they have none."""
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

    @property
    def sentences(self) -> pl.Series | None:
        """As given; a text may repeat."""
        return self._mapped.sentences

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Rows ``start`` to ``end``; the look-up has happened."""
        return self._mapped if end - start == len(self) else self._mapped.take(np.arange(start, end))


class PreparedUsers:
    """All users of a prepared data set, each with the whole history."""

    objectives: pl.Series | None = None
    sentences: pl.Series | None = None

    def __init__(self, folder: Path, digest: str) -> None:
        self.prepared = Dataset.open(folder)
        self.digest, self.source = digest, UserSource(folder, digest)
        # as plain arrays: NumPy spends more on slicing a memory-mapped one per user than the search on excluding the items;
        # the pages stay mapped
        history = self.prepared.history
        plain = {
            name: np.asarray(getattr(history, name)) for name in HISTORY_ARRAYS if name != "timestamp"
        }  # nobody asks
        self._history = replace(history, **plain)
        self._targets = self.prepared.all_users()
        self._maps: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def user_ids(self) -> pl.Series:
        """Row number = user_index."""
        return self.prepared.users[Columns.USER_ID]

    def check(self, catalogue: Catalogue) -> None:
        """Nothing: what `prepare` has written was checked by it."""

    def personal_lists(self, signals: Sequence[str] | None, catalogue: Catalogue) -> PersonalLists | None:
        """What the users disliked by their events."""
        return disliked_in(self.prepared, signals, catalogue)

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
            if catalogue.user_ids is None:  # it tells nobody apart, tonight or on other data
                histories = replace(histories, user_index=np.full(len(targets), -1, np.int32))
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
    """Users given as a file in the form of :mod:`serving.inputs.history_frame`: Parquet, which is read lazily, or CSV.

    In a CSV file a list is JSON (``"[3, 7]"``). User ids are text there, leading zeros included, unless the model knows its
    users by integers.

    Args:
        timestamp_unit: What numbers in ``timestamps`` count.

    Raises:
        DataError: It cannot be read, or its columns or users do not keep the form.
    """

    def __init__(self, path: Path, timestamp_unit: NumberUnit = "us") -> None:
        self._path, self._unit = path, timestamp_unit
        self.source = UserSource(path, None, timestamp_unit)
        self._where = f"histories '{path}'"
        self._is_csv = path.suffix.lower() == ".csv"
        try:
            self._rows = read_csv_histories(path, self._where) if self._is_csv else pl.scan_parquet(path, glob=False)
            if self._rows.head(1).collect().is_empty():
                self._rows = untyped_if_empty(to_frame(self._rows)).lazy()
            schema = self._rows.collect_schema()
            check_columns(schema, self._where)
            groups = NO_GROUPS if self._is_csv else row_groups(path)
            self._blocks = RowBlocks(self._rows, groups, schema)
            user_ids = self._rows.select(Columns.USER_ID).collect()[Columns.USER_ID]
            self.objectives, self.sentences = (
                asked_texts(self._rows.select(pl.col(name).unique(maintain_order=True)).collect(), name)
                if name in schema
                else None
                for name in (Columns.OBJECTIVE, Columns.WORDS)
            )
        except pl.exceptions.NoDataError as error:
            raise DataError(
                f"{self._where} is empty; its first line is to name the columns user_id and item_ids"
            ) from error
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._unreadable(error) from error
        self.digest = sha256_of_file(path)
        self._user_ids = user_values(user_ids, self._where)  # shards would hide a user that occurs in two of them
        self._user_index: dict[str, npt.NDArray[np.int32]] = {}
        self._kept: dict[tuple[str, int], MappedHistories] = {}

    def __len__(self) -> int:
        return len(self._user_ids)

    @property
    def user_ids(self) -> pl.Series:
        """In the order of the file."""
        return self._user_ids

    def check(self, catalogue: Catalogue) -> None:
        """Read the file once from end to end, so that a bad row costs no night; what is not known is reported here, once.

        Raises:
            DataError: Any row does not keep the form.
        """
        known = catalogue.user_ids
        if self._is_csv and known is not None and known.dtype.is_integer():
            self._user_ids = whole_numbers(self._user_ids, self._where)
        reports: set[str] = set()
        self._kept, room = {}, KEPT_BYTES
        for start in range(0, len(self), READ_AHEAD):
            mapped = self._map(start, min(start + READ_AHEAD, len(self)), catalogue, reports)
            room -= mapped.histories.nbytes
            if room >= 0:
                self._kept[catalogue.digests["train"], start] = mapped
        for line in sorted(reports):
            logger.warning("%s: %s", self._where, line)

    def personal_lists(self, signals: Sequence[str] | None, catalogue: Catalogue) -> PersonalLists | None:
        """The column ``deny_item_ids``, if there is one."""
        if signals:
            raise ConfigError(
                f"recommend.exclude_disliked is {list(signals)}, but {self._where} hold no signals; name the items in the "
                f"column '{Columns.DENY_ITEM_IDS}', or in a file recommend.personal_deny"
            )
        if Columns.DENY_ITEM_IDS not in self._rows.collect_schema():
            return None
        lists = self._rows.select(Columns.DENY_ITEM_IDS).collect()[Columns.DENY_ITEM_IDS]
        return denied_in_rows(lists, catalogue, self._user_ids)

    def shard(self, start: int, end: int, catalogue: Catalogue) -> MappedHistories:
        """Rows ``start`` to ``end`` of the file."""
        first = start // READ_AHEAD * READ_AHEAD
        kept = self._kept.get((catalogue.digests["train"], first))
        if kept is not None and end <= first + len(kept.user_ids):
            return kept.take(np.arange(start - first, end - first))
        return self._map(start, end, catalogue, None)

    def _map(self, start: int, end: int, catalogue: Catalogue, reports: set[str] | None) -> MappedHistories:
        key = catalogue.digests["train"]
        if key not in self._user_index:
            self._user_index[key] = catalogue.user_index(self._user_ids)
        try:
            rows = self._blocks.read(start, end)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._unreadable(error) from error
        block = rows.with_columns(self._user_ids[start:end].alias(Columns.USER_ID))
        index = self._user_index[key][start:end]
        return map_frame(block, catalogue, index, timestamp_unit=self._unit, reports=reports)

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
