"""Which texts stand for nothing, as a text and as a column."""

from __future__ import annotations

import polars as pl
import pytest

from recsys.contracts.null_markers import MACHINE_MARKERS, NULL_MARKERS, is_null_marker, null_markers

VALUES = ["7", "0", "-", "?", "na", "nullable", "Nan Goldin", "NULL7", "\\n", "none of it"]


@pytest.mark.parametrize("marker", [*NULL_MARKERS, "", " ", "\ufeff", " NULL\u00a0", "\tnan\n"])
def test_markers_with_blanks_around_are_nothing(marker: str) -> None:
    assert is_null_marker(marker)


@pytest.mark.parametrize("value", VALUES)
def test_values_that_resemble_a_marker_are_values(value: str) -> None:
    assert not is_null_marker(value)


def test_a_column_agrees_with_its_texts() -> None:
    texts = pl.Series([*VALUES, *NULL_MARKERS, ""])
    assert null_markers(texts).to_list() == [is_null_marker(text) for text in texts]
    assert null_markers(pl.Series(["-", "NULL"]), ("-",)).to_list() == [True, False]
    assert set(MACHINE_MARKERS) < set(NULL_MARKERS), "words such as none are markers for ids alone"
