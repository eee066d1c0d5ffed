"""Reading: opens the files of one logical table and gives batches of raw columns; what cannot be read stands beside them."""

from __future__ import annotations

from features.reading.files import DataFiles, find_files, fingerprint, natural_key, place_of
from features.reading.open_files import open_files
from features.reading.opened import FILE, RAW, REFUSED, ROW, OpenedTable
from features.reading.parquet import open_parquet
from features.reading.text import open_text
from features.reading.text_format import TextFormat, TextOptions
from features.reading.text_lines import LIKE_A_COMMENT

__all__ = [
    "FILE",
    "LIKE_A_COMMENT",
    "RAW",
    "REFUSED",
    "ROW",
    "DataFiles",
    "OpenedTable",
    "TextFormat",
    "TextOptions",
    "find_files",
    "fingerprint",
    "natural_key",
    "open_files",
    "open_parquet",
    "open_text",
    "place_of",
]
