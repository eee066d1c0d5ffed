"""How ids from outside map to the model's indices: items and users of a bundle.

Reads ``items.parquet``, ``users.parquet`` and ``dataset.json`` of a bundle; every look-up of an outside id goes through
here, because the model may have been trained on other data than it now scores.

Legend: I items, U users, N ids that are looked up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ValidationError

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import DatasetSpec
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json
from recsys.contracts.table_checks import read_table
from recsys.model.layers.tables import unseen_row_numbers
from serving.bundle.layout import BundleInfo
from serving.config import ServingLimits

logger = logging.getLogger("recsys.serving")

GAPS: Final = 8
"""Integer ids are looked up in a table where it has at most so many entries per id."""

BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """How outside ids map to the model's indices.

    Attributes:
        item_ids: ``[I]``, position = item_index.
        user_ids: ``[U]``, position = user_index; ``None`` where the policy knows no users.
        spec: Sizes and signals of the training data.
        unseen_user_rows: Rows of the policy's user table for users it has not met.
        category_I: int64 ``[I]`` category of each item as the model was trained with it, 0 is "not known"; ``None`` where
            nobody has read the policy.
        digests: Of the bundle, see :class:`~serving.bundle.layout.BundleInfo`.
        limits: What one request may ask for at most.
    """

    item_ids: pl.Series
    user_ids: pl.Series | None
    spec: DatasetSpec
    unseen_user_rows: int = 0
    category_I: npt.NDArray[np.int64] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    limits: ServingLimits = field(default_factory=ServingLimits)

    def item_index(self, item_ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
        """Return item_index of each id, -1 for ids that the model does not know.

        Raises:
            DataError: The ids are of another type than the model's.
        """
        return index_of(item_ids, self.item_ids, what)

    def listed_index(self, item_ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
        """As :meth:`item_index`, for a list of business rules: ids that the model does not know are counted in the log."""
        index = self.item_index(item_ids, what)
        if (index < 0).any():
            unknown = item_ids.filter(index < 0).head(3).to_list()
            logger.warning(
                "%s: %d of %d listed items are not in the model's catalogue, such as %s",
                what,
                int((index < 0).sum()),
                len(index),
                ", ".join(map(repr, unknown)),
            )
        return index

    def mask(self, item_ids: pl.Series, what: str = "the item list") -> BoolMask:
        """Return ``[I]``: which items of the catalogue are listed."""
        index = self.listed_index(item_ids, what)
        mask = np.zeros(len(self.item_ids), bool)
        mask[index[index >= 0]] = True
        return mask

    def user_index(self, user_ids: pl.Series, what: str = Columns.USER_ID) -> npt.NDArray[np.int32]:
        """Return user_index of each id.

        A user that the model has not met gets one of its rows for such users, behind the known ones: the same one in every
        process and on every day. -1 where the model has no such rows, or knows no users.
        """
        if self.user_ids is None:
            return np.full(len(user_ids), -1, np.int32)
        index = index_of(user_ids, self.user_ids, what)
        unseen = np.flatnonzero(index < 0)
        if not (self.unseen_user_rows and len(unseen)):
            return index
        index = index.copy()
        numbers = unseen_row_numbers(user_ids.gather(unseen).to_list(), self.unseen_user_rows)
        index[unseen] = len(self.user_ids) + numbers
        return index


def read_catalogue(
    folder: Path,
    info: BundleInfo,
    unseen_user_rows: int = 0,
    category_I: npt.NDArray[np.int64] | None = None,
) -> Catalogue:
    """Read the id maps of a bundle.

    Args:
        unseen_user_rows: As the policy's own configuration says.
        category_I: As the policy's item tower holds them.

    Raises:
        ArtifactError: A table is missing or damaged.
    """
    from recsys.contracts.tables import BundleItemsTable, UsersTable

    try:
        spec = DatasetSpec.model_validate(read_json(folder / "dataset.json"))
    except ValidationError as error:
        raise ArtifactError(f"bundle '{folder}' cannot be read: {error}; export the model again") from error
    remedy = "export the model again"
    items = read_table(folder / "items.parquet", BundleItemsTable, remedy, rows=spec.num_items)
    users = None
    if info.uses_users:
        users = read_table(folder / "users.parquet", UsersTable, remedy, rows=spec.num_users)
    user_ids = None if users is None else users[Columns.USER_ID]
    return Catalogue(items[Columns.ITEM_ID], user_ids, spec, unseen_user_rows, category_I, info.digests, info.limits)


def index_of(values: pl.Series, ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
    """Return the position of each value in ``ids``, -1 where it does not occur or is null.

    Raises:
        DataError: Text was given for integer ids, or the other way round.

    Example:
        >>> index_of(pl.Series([30, 5]), pl.Series([10, 20, 30]), "item_ids").tolist()
        [2, -1]
    """
    if values.dtype == pl.Null:
        return np.full(len(values), -1, np.int32)
    if values.dtype.is_integer() != ids.dtype.is_integer():
        raise DataError(
            f"{what} hold {values.dtype}, the model's ids are {ids.dtype}; give ids of the same type as in the training data"
        )
    if ids.dtype.is_integer() and len(ids) and not ids.null_count():
        low, high = (int(end) for end in (ids.min(), ids.max()))  # type: ignore[arg-type]  # integers
        if high - low < GAPS * len(ids):
            return _by_table(values.cast(pl.Int64), ids.cast(pl.Int64).to_numpy(), low, high)
    left = values.cast(pl.Int64).to_frame("id") if ids.dtype.is_integer() else values.cast(pl.String).to_frame("id")
    right = pl.DataFrame({"id": ids.cast(left["id"].dtype), "index": np.arange(len(ids), dtype=np.int32)})
    return left.join(right, on="id", how="left", maintain_order="left")["index"].fill_null(-1).to_numpy()


def _by_table(values: pl.Series, ids: npt.NDArray[np.int64], low: int, high: int) -> npt.NDArray[np.int32]:
    """:func:`index_of` by a table over all integers from ``low`` to ``high``: a sixth of the time of a join."""
    index = np.full(high - low + 2, -1, np.int32)  # the last entry is of everything outside
    index[ids - low] = np.arange(len(ids), dtype=np.int32)
    value = values.fill_null(0).to_numpy()
    inside = (value >= low) & (value <= high)
    if values.null_count():
        inside &= values.is_not_null().to_numpy()
    return index[np.where(inside, value - low, high - low + 1)]
