"""Python values as columns: one type each, and what does not fit into it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys.contracts.errors import ConfigError, DataError
from serving.inputs.callers_frame import to_frame, typed_values
from serving.inputs.objectives import objective_weights


def test_integers_end_at_64_bits() -> None:
    ends = [2**63 - 1, -(2**63), None]
    assert typed_values("ids", ends).to_list() == ends
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(DataError, match=f"ids holds {value} in place 1, which does not fit into 64 bits"):
            typed_values("ids", [7, value])


def test_two_types_are_refused_and_a_number_is_a_number() -> None:
    with pytest.raises(DataError, match=r"ids mixes types \(1 integers, the first in place 0: 7; 1 texts"):
        typed_values("ids", [7, "7"])
    mixed = typed_values("ratios", [1, 0.5, None])
    assert (mixed.dtype, mixed.to_list()) == (pl.Float64, [1.0, 0.5, None])


def test_float32_is_still_float32() -> None:
    """So that a time of it can be refused: in Python's numbers nobody would see what it has lost."""
    frame = to_frame({"user_id": ["u1"], "timestamps": [np.array([1.7e9], np.float32)]})
    assert frame["timestamps"].dtype == pl.List(pl.Float32)


def test_true_is_no_weight() -> None:
    with pytest.raises(ConfigError, match="the weight of 'like' is True, expected a number"):
        objective_weights({"like": True}, ("like",))


def test_a_column_of_32_bits_stays_one_in_pandas() -> None:
    """2^24 + 1 becomes 2^24 in 32 bits, another user: what is checked has to know of them."""
    for dtype in (np.float32, np.float16):
        frame = to_frame(pd.DataFrame({"user_id": np.array([1.0, 3.0], dtype), "item_ids": [[7], [8]]}))
        assert frame["user_id"].dtype == pl.Float32
    wide = to_frame(pd.DataFrame({"user_id": [1.0, None], "item_ids": [[7], [8]]}))
    assert wide["user_id"].dtype == pl.Float64


def test_what_unique_of_a_group_leaves_in_the_cells_is_a_list() -> None:
    """pandas keeps integers with gaps, times with a zone and categories in arrays of its own."""
    day = pd.Timestamp("2024-05-31", tz="Europe/Paris")
    log = pd.DataFrame(
        {
            "user_id": ["a", "a", "b"],
            "item_ids": pd.array([7, None, 8], dtype="Int64"),
            "timestamps": pd.Series([day, day + pd.Timedelta(1, "h"), day]),
        }
    )
    frame = to_frame(log.groupby("user_id").agg({"item_ids": "unique", "timestamps": "unique"}).reset_index())
    assert frame["item_ids"].to_list() == [[7, None], [8]]
    assert frame["timestamps"].dtype == pl.List(pl.Datetime("us", "UTC"))
    assert frame["timestamps"][1].to_list() == [day.to_pydatetime()]
    for cell in (pd.Index([7, 8]), pd.Categorical([7, 8])):
        assert to_frame([{"user_id": 1, "item_ids": cell}])["item_ids"].to_list() == [[7, 8]]


@pytest.mark.parametrize("cell", [bytearray(b"ab"), b"ab", {7: 8}, {7}])
def test_what_has_elements_and_is_no_list_is_refused(cell: object) -> None:
    with pytest.raises(DataError, match="expected a list per user"):
        to_frame(pd.DataFrame({"user_id": [1], "item_ids": [cell]}))


def test_a_value_of_several_lines_is_shown_on_one() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "two\n  lines"

    with pytest.raises(DataError, match="'item_ids' is two lines in row 0"):
        to_frame([{"user_id": 1, "item_ids": Odd()}])
