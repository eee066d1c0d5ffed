"""The register of a generation: every item that ever got an ID in it, and how further ones get theirs.

Legend: R items of the register, n new items, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import DataError
from recsys.semantic_ids.collisions import CodeTree, group_numbers
from recsys.semantic_ids.identity import register_chain
from recsys.semantic_ids.quantizer import CodeArray, FloatArray, encode_nearest

Births = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Register:
    """Items with an ID.

    Attributes:
        item_ids: ``[R]``, each once.
        codes: ``[R, L]``.
        born: ``[R]`` version of the generation that gave each its ID, 0 for founders.
    """

    item_ids: pl.Series
    codes: CodeArray
    born: Births

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[np.integer]) -> Register:
        """Return the rows given by number, in that order."""
        return Register(self.item_ids.gather(rows), self.codes[rows], self.born[rows])

    def with_more(self, other: Register) -> Register:
        """Return these items and then those of ``other``."""
        ids = pl.concat([self.item_ids, other.item_ids.cast(self.item_ids.dtype)])
        return Register(ids, np.concatenate([self.codes, other.codes]), np.concatenate([self.born, other.born]))

    def sids(self) -> list[str]:
        """Return the codes as text, one letter per level."""
        form = "".join(f"<{chr(ord('a') + level)}_{{}}>" for level in range(self.codes.shape[1]))
        return [form.format(*row) for row in self.codes.tolist()]

    def rows_of(self, item_ids: pl.Series) -> npt.NDArray[np.int64]:
        """Return the row of each id, -1 where it has no ID yet."""
        places = pl.DataFrame({"id": self.item_ids}).with_row_index("row")
        found = pl.DataFrame({"id": item_ids}).join(places, on="id", how="left", maintain_order="left")
        return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()

    def chain(self, level_sizes: Sequence[int], version: int) -> list[str]:
        """See :func:`~recsys.semantic_ids.identity.register_chain`."""
        return register_chain(self.codes, level_sizes, self.item_ids, self.born, version)

    @cached_property
    def is_unique(self) -> bool:
        """Whether no two items share their codes."""
        sizes = self.codes.max(axis=0, initial=0) + 1
        return len(np.unique(group_numbers(self.codes, sizes.tolist()))) == len(self)

    def nearest_free(
        self,
        item_ids: pl.Series,
        embeddings: FloatArray,
        traffic: Counts,
        level_sizes: Sequence[int],
        codebooks: Sequence[FloatArray],
    ) -> CodeArray:
        """Return codes ``[n, L]`` for items without an ID, served by falling traffic and then by id.

        Where items of the register share IDs, new ones simply get the nearest codes.

        Args:
            embeddings: ``[n, D]``.
            traffic: ``[n]``.

        Raises:
            DataError: All IDs are taken.
        """
        if not self.is_unique:
            return encode_nearest(embeddings, codebooks)
        tree = CodeTree(self.codes, level_sizes, codebooks)
        codes = np.empty((len(embeddings), len(level_sizes)), np.int32)
        served = pl.DataFrame({"traffic": -traffic, "id": item_ids}).select(pl.arg_sort_by("traffic", "id"))
        for row in served.to_series().to_list():
            code = tree.nearest_free(embeddings[row])
            tree.add(code)
            codes[row] = code
        return codes


def as_ids(item_ids: Sequence[int | str] | pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return ids as a series of the type that a table has.

    Raises:
        DataError: They are null, repeat, or do not fit the type.
    """
    given = item_ids if isinstance(item_ids, pl.Series) else pl.Series(values=list(item_ids))
    if given.is_duplicated().any():
        twice = given.filter(given.is_duplicated())[0]
        raise DataError(
            f"grow semantic IDs: item_id {twice!r} is there {int((given == twice).sum())} times, expected once; run "
            "`prepare` again"
        )
    same_kind = given.dtype.is_integer() == dtype.is_integer() or not len(given)
    if same_kind and not given.null_count():
        try:
            return given.cast(dtype)
        except pl.exceptions.InvalidOperationError:
            same_kind = False
    raise DataError(
        f"grow semantic IDs: the item ids are {given.dtype} with {given.null_count()} nulls, those of the table {dtype}; "
        "give ids without nulls that fit this type, or start a new generation"
    )
