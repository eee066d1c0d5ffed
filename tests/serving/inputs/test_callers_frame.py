"""Python values as columns: one type each, and what does not fit into it."""

from __future__ import annotations

import numpy as np
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
