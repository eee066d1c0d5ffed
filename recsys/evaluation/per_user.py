"""``per_user.parquet``: one row per system, filter and evaluated row, written block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter


class PerUserFile:
    """The table of all systems' metrics per row; every block becomes a row group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, system: str, exclude_seen: bool, user_ids: pl.Series, values: Mapping[str, npt.NDArray]) -> None:
        """Write the rows of one block.

        Args:
            user_ids: ``[b]``.
            values: ``{metric: [b]}``.
        """
        from pyarrow.parquet import ParquetWriter

        frame = pl.DataFrame({Columns.USER_ID: user_ids, **values}).select(
            pl.lit(system).alias(Columns.SYSTEM), pl.lit(exclude_seen).alias(Columns.EXCLUDE_SEEN), pl.all()
        )
        block = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = ParquetWriter(self.path, block.schema, compression="zstd")
        self._writer.write_table(block)
