"""Where in the raw files a change between two nights comes from: the first row that shows it.

Reads the source once more, batch by batch, and only after a change was found; produces a phrase for the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from features.audit.changes import Change
from features.reading import place_of
from features.sources.base import FILE, REFUSED, ROW
from recsys.contracts.columns import Columns

if TYPE_CHECKING:
    from features.sources.base import Source

_ID_OF: Final = {"user_id_type": Columns.USER_ID, "item_id_type": Columns.ITEM_ID}
_INTEGER: Final = r"^-?(0|[1-9][0-9]{0,18})$"


def where_from(source: Source, seed: int, change: Change) -> str | None:
    """Say which file and row made ids text, or that every id could be an integer; ``None`` for other changes.

    Args:
        source: The source of tonight's data.
        change: What was found.
    """
    column = _ID_OF.get(change.kind)
    if column is None:
        return None
    stream = source.read(seed).interactions
    if stream.schema[column] != pl.String:
        return f"'{stream.files[0]}' gives the column as {stream.schema[column]}" if stream.files else None
    for batch in stream.batches():
        usable = batch.filter(pl.col(REFUSED).is_null() & pl.col(column).is_not_null())
        other = usable.filter(~pl.col(column).str.contains(_INTEGER)).head(1)
        if len(other):
            row = other.row(0, named=True)
            place = place_of(stream.files[row[FILE]], row[ROW])
            return f"the first {column} that is no integer is '{row[column]}' in {place}"
    return (
        f"every {column} reads as an integer, in '{stream.files[0]}' and the other files; declare it with "
        "source.types if it is one"
    )
