"""Opening the files of a table by their endings."""

from __future__ import annotations

from features.reading.files import PARQUET_ENDINGS, TEXT_ENDINGS, DataFiles
from features.reading.opened import OpenedTable
from features.reading.parquet import open_parquet
from features.reading.text import open_text
from features.reading.text_format import TextFormat
from recsys.contracts.errors import DataError


def open_files(files: DataFiles, text: TextFormat) -> OpenedTable:
    """Open Parquet or text files as one table.

    Args:
        files: All of one kind.
        text: How text files are written.

    Raises:
        DataError: An ending is unknown, or Parquet and text stand side by side.
    """
    parquet = []
    for path in files.paths:
        name = path.name.lower()
        if name.endswith(PARQUET_ENDINGS):
            parquet.append(path)
        elif not name.removesuffix(".gz").endswith(TEXT_ENDINGS):
            endings = ", ".join((*PARQUET_ENDINGS, *TEXT_ENDINGS))
            raise DataError(f"'{path}' ends in none of {endings} (text also with .gz); convert it or rename it")
    if parquet and len(parquet) < len(files.paths):
        other = next(path for path in files.paths if path not in parquet)
        raise DataError(f"'{files.where}' names Parquet ('{parquet[0]}') and text ('{other}'); name one kind")
    if parquet:
        table = open_parquet(files.paths, files.root, files.where)
    else:
        table = open_text(files.paths, files.root, text, files.where)
    table.ignored = files.ignored
    return table
