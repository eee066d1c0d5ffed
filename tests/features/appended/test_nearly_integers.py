"""Whether ids of a log that is added to would be worth a word, had they been read as one column."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest

from features.append import _nearly_integers
from features.log.append import Merge

NUMBERS = [str(number) for number in range(100, 140)]


def merge_of(ids: list[str], rows: list[int] | None = None) -> Merge:
    """Ids of users as they stand in a log, ascending, and of one item."""
    counts = {"user": np.array(rows or [1] * len(ids)), "item": np.array([1])}
    head = SimpleNamespace(user_ids=pl.Series(ids), item_ids=pl.Series(["a shoe"]))
    return cast("Merge", SimpleNamespace(head=head, rows_per_id=counts.__getitem__))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([*NUMBERS, "x"], True),
        ([*NUMBERS[:39], "9z"], True),  # digits lead, and it is no integer
        (["-5", *NUMBERS, "x"], True),
        (NUMBERS, False),
        (["a", "b"], False),
        (["٣", "四"], False),
        ([*NUMBERS[:5], "x"], False),
    ],
)
def test_all_but_a_few_integers(ids: list[str], *, told: bool) -> None:
    assert ids == sorted(ids)
    assert _nearly_integers(merge_of(ids)) is told


def test_rows_count_as_well_as_ids() -> None:
    """Half of the ids, and 99 of 100 rows."""
    assert _nearly_integers(merge_of(["1", "x"], [99, 1]))
    assert not _nearly_integers(merge_of(["1", "x"], [1, 99]))
