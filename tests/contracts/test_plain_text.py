"""What surrounds a text goes; what stands inside of it stays."""

from __future__ import annotations

import polars as pl
import pytest

from recsys.contracts.plain_text import strip_expression, strip_text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\ufeffA1", "A1"),
        ("A1 \t", "A1"),
        ("A1\r\n", "A1"),
        ("\u200b\u00a0A1\u2060", "A1"),
        ("\u3000A1\u2003", "A1"),
        ("A1\0", "A1"),
        ("A 1", "A 1"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("007", "007"),
        (" \ufeff ", ""),
    ],
)
def test_text_and_column_lose_the_same(written: str, meant: str) -> None:
    assert strip_text(written) == meant
    assert pl.DataFrame({"id": [written, None]}).select(strip_expression(pl.col("id")))["id"].to_list() == [meant, None]
