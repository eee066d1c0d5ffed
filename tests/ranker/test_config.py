"""What a recipe may say of the second stage, and what it is told where it may not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from recsys.config import validate
from recsys.contracts.errors import ConfigError
from recsys.ranker.config import RankConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": "auto"}, "did you mean 'method'"),
        ({"method": "forest"}, "key 'method' is 'forest'"),
        ({"scorers": ["ease", "ease"]}, "name one twice"),
        ({"guidance": -1.0}, "expected auto or a number from 0 on"),
        ({"guidance": float("nan")}, "expected auto or a number from 0 on"),
        ({"guidance_grid": [2.0, 1.0]}, "the grid must be ascending"),
        ({"l2_grid": []}, "the grid must be ascending"),
        ({"held_out_share": 1.0}, "key 'held_out_share' is 1.0"),
        ({"candidates": {"dense": 0}}, "candidates.dense is 0"),
        ({"lightgbm": {"depth": 0}}, "key 'lightgbm.depth' is 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RankConfig, values, "a test")


def test_no_dense_candidates_are_needed_where_nothing_is_learned() -> None:
    assert validate(RankConfig, {"method": "none", "candidates": {"dense": 0}}, "a test").candidates.dense == 0


def test_a_configuration_is_read_without_heavy_libraries() -> None:
    code = (
        "import sys, recsys.ranker.config as c; c.RankConfig(); "
        "print([n for n in ('torch', 'scipy', 'lightgbm', 'pandas') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
