"""What a model knows of every item beside its id: semantic ID, author, category.

Reads the item table and the semantic IDs; policies and reward models keep a copy of it among their buffers.

Legend: I item rows (items + 1; row 0 is padding), L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError


@dataclass(frozen=True)
class ItemCatalogue:
    """Semantic ID, author and category by item row, ``item_index + 1``; row 0 is padding.

    Attributes:
        codes_IL: int64 ``[I, L]``, one code per level.
        author_I: int64 ``[I]`` author_index, 0 "not known".
        category_I: int64 ``[I]`` category_index, 0 "not known".

    Raises:
        ValueError: The three have other types, or different numbers of rows.
    """

    codes_IL: torch.Tensor
    author_I: torch.Tensor
    category_I: torch.Tensor

    def __post_init__(self) -> None:
        rows = self.codes_IL.shape[0]
        for name, dimensions in (("codes_IL", 2), ("author_I", 1), ("category_I", 1)):
            tensor: torch.Tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tensor.dim() != dimensions or tensor.shape[0] != rows:
                raise ValueError(
                    f"item catalogue: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected int64 with "
                    f"{dimensions} dimension(s) and {rows} rows, one per item and padding"
                )

    @classmethod
    def from_items(cls, items: pl.DataFrame, codes: npt.NDArray[np.integer]) -> ItemCatalogue:
        """Combine the item table and the semantic IDs, and put the padding before them.

        Args:
            items: ``items.parquet`` of a prepared data set, row number = item_index.
            codes: ``[items, L]``.

        Raises:
            ArtifactError: The two have different numbers of items.
        """
        if len(items) != len(codes):
            raise ArtifactError(
                f"{len(items)} items in the prepared data, {len(codes)} in the semantic IDs; tokenize this data set again"
            )
        side = (items[name].to_numpy() for name in (Columns.AUTHOR_INDEX, Columns.CATEGORY_INDEX))
        return cls(_padded(codes), *(_padded(column) for column in side))

    @classmethod
    def blank(cls, num_items: int, num_levels: int) -> ItemCatalogue:
        """Return zeros of the right shapes, for a model whose own catalogue is about to be loaded."""
        rows = num_items + 1
        side = (torch.zeros(rows, dtype=torch.int64) for _ in range(2))
        return cls(torch.zeros(rows, num_levels, dtype=torch.int64), *side)

    @property
    def num_levels(self) -> int:
        """L."""
        return self.codes_IL.shape[1]

    @property
    def side_I2(self) -> torch.Tensor:
        """Author and category side by side, ``[I, 2]``."""
        return torch.stack([self.author_I, self.category_I], dim=1)

    def check_fits(self, num_items: int, level_sizes: Sequence[int]) -> None:
        """Compare with the shapes of a model.

        Raises:
            ValueError: Items or levels are of another number, or a code lies outside its level: its embedding would be
                that of another level's code.
        """
        expected = (num_items + 1, len(level_sizes))
        if tuple(self.codes_IL.shape) != expected:
            raise ValueError(
                f"item catalogue: codes have shape {tuple(self.codes_IL.shape)}, expected {expected}: one row per item and "
                "padding, one column per level"
            )
        if self.codes_IL.is_meta:  # shapes without numbers, for counting
            return
        wrong = (self.codes_IL < 0) | (self.codes_IL >= torch.tensor(level_sizes, device=self.codes_IL.device))
        if wrong.any():
            row, level = (int(number) for number in wrong.nonzero()[0])
            raise ValueError(
                f"item catalogue: item row {row} has code {int(self.codes_IL[row, level])} at level {level}, expected 0 to "
                f"{level_sizes[level] - 1}"
            )


def _padded(rows: npt.NDArray[np.integer]) -> torch.Tensor:
    """Put a row of zeros first."""
    return torch.from_numpy(np.concatenate([np.zeros((1, *rows.shape[1:]), np.int64), rows.astype(np.int64)]))
