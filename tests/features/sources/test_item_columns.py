"""Item tables: metadata of any type as text, or refused by name."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import polars as pl
import pytest

from features.sources.item_columns import ItemColumns, canonical_items
from recsys.contracts.errors import DataError


def items(values: list | pl.Series, **column: object) -> pl.DataFrame:
    table = pl.DataFrame({"item_id": range(len(values)), "genre": values}, strict=False)
    declared = {"column": "genre", **column}
    roles = ItemColumns.model_validate({"title": [declared], "categories": [declared], "author": [declared]})
    return canonical_items(table, roles, "items.parquet")[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Drama", None], [["Drama"], None]),
        ([" Drama\u00a0", "nan"], [["Drama"], None]),
        (["NULL", "\\N"], [None, None]),
        ([["Drama", "War"], []], [["Drama", "War"], None]),
        ([[["Drama"], ["War", "nan"]], None], [["Drama", "War"], None]),
        ([[1, 2], [None]], [["1", "2"], None]),
        (pl.Series([["a", "b"], None], dtype=pl.Array(pl.String, 2)), [["a", "b"], None]),
        (pl.Series([[["a", "b"]], None], dtype=pl.List(pl.Array(pl.String, 2))), [["a", "b"], None]),
        (pl.Series(["x", None], dtype=pl.Categorical), [["x"], None]),
        (pl.Series([["x"], None], dtype=pl.List(pl.Categorical)), [["x"], None]),
        ([Decimal("1.50"), None], [["1.50"], None]),
        ([float("nan"), 1.5], [None, ["1.5"]]),
        ([True, None], [["true"], None]),
        ([date(2023, 1, 31), None], [["2023-01-31"], None]),
        ([None, None], [None, None]),
    ],
)
def test_entries_of_any_type(values: list, expected: list) -> None:
    table = items(values)
    assert table["categories"].to_list() == expected
    assert table["title"].to_list() == [None if one is None else one[0] for one in expected]
    assert table["author_id"].to_list() == table["title"].to_list()


@pytest.mark.parametrize(
    "written",
    ['["Drama", "War"]', "['Drama', 'War']", '[["Drama"], ["War"]]', ' ["Drama","War"] ', "('Drama', 'War')"],
)
def test_lists_written_as_text_are_read_where_declared_and_else_refused(written: str) -> None:
    assert items([written, "Comedy", ""], lists=True)["categories"].to_list() == [["Drama", "War"], ["Comedy"], None]
    if written.strip().startswith("["):
        with pytest.raises(DataError, match=r"holds lists written as text.*lists: true"):
            items([written, None])


def test_a_text_that_is_no_list_is_refused_where_lists_are_declared() -> None:
    with pytest.raises(DataError, match=r"items.parquet: metadata column 'genre'.*'\[Drama' is no list"):
        items(["[Drama"], lists=True)


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ([{"name": "Drama", "id": 1}], r"put one of its fields \(name, id\) into a column of its own"),
        ([[{"name": "Drama"}]], r"put one of its fields \(name\)"),
        ([b"Drama"], "write it as text"),
        ([[b"Drama"]], "write it as text"),
        ([timedelta(seconds=1)], "write it as text"),
    ],
)
def test_types_without_a_text_are_refused_by_name(values: list, way_out: str) -> None:
    with pytest.raises(DataError, match=f"items.parquet: metadata column 'genre' is .*{way_out}"):
        items(values)


def test_a_list_as_text_may_stay_in_a_description() -> None:
    """It is read by a text encoder, which does not mind; nothing is called so."""
    table = pl.DataFrame({"item_id": [1], "description": ["['Great.']"]})
    assert canonical_items(table, ItemColumns(text=["description"]), "items")[0]["text"].to_list() == ["['Great.']"]


def test_a_set_of_python_has_one_order() -> None:
    """Python puts the texts of a set in another order each time it starts, and the prepared bytes are to be the same."""
    found = items(["{'b', 'c', 'a', 'd'}", "{2, 1}"], lists=True)
    assert found["categories"].to_list() == [["a", "b", "c", "d"], ["1", "2"]]
