"""Words: columns whose text is taken as it stands, such as the name of a split."""

from __future__ import annotations

import polars as pl

from features.sources.columns.cells import ColumnReader, Parsed, Place
from recsys.contracts.null_markers import NULL_MARKERS


class WordReader(ColumnReader):
    """Reads a text; blanks around it are stripped, null markers are "not known"."""

    def __init__(
        self, column: str, canonical: str, raw_type: pl.DataType, where: str, *, markers: tuple[str, ...] = NULL_MARKERS
    ) -> None:
        super().__init__(column, canonical, pl.String(), where, markers)
        if raw_type not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            raise self.unreadable(raw_type, "text")

    def read(self, raw: pl.Series, place: Place) -> Parsed:
        """Read the next batch."""
        del place
        return Parsed(self.known(raw.cast(pl.String)).alias(self.canonical))
