"""Leaks by counting: popularity of the period that is evaluated, and columns that were aggregated over all of it.

Reads arrays, rows and names of columns; produces findings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.audit.leakage.asked_rows import Arrays, AskedRows, Int64Array, hit_rate, most_frequent
from features.audit.leakage.findings import EXAMPLES, Finding

AGGREGATE: Final = re.compile(
    r"(^|_)(n|num|nb|cnt|count|counts|total|sum|avg|mean|rate|ratio|score|rank|popularity|popular|trend|trending|ctr|cvr|"
    r"views?|clicks?|plays?|likes?|sales|sold|orders?|purchases?|interactions?|impressions?|reviews?|ratings?|bestseller|"
    r"last_(seen|click|view|order|timestamp)|first_(seen|click|view|order))(_|$)",
    re.IGNORECASE,
)
"""Parts of names that statistics of behaviour have, between underscores."""


def counted_from_later(
    arrays: Arrays,
    rows: AskedRows,
    train_count: npt.NDArray[np.integer],
    item_ids: pl.Series | None = None,
) -> list[Finding]:
    """Compare ``train_count`` of the item table, which popularity and traffic are read from, with the train events.

    The price is the ten items with the largest written counts; its twin takes the counts of the train events.
    """
    wrong = np.flatnonzero(np.asarray(train_count) != arrays.train_counts)
    if not len(wrong):
        return []
    surplus = int(np.abs(np.asarray(train_count) - arrays.train_counts).sum())
    return [
        Finding(
            code="popularity_of_later_events",
            title="Items are counted over other events than those of training",
            severity="severe",
            split=rows.split,
            rows=len(wrong),
            of=arrays.num_items,
            unit="items",
            words=f"train_count of {len(wrong):,} of {arrays.num_items:,} items is not the number of their train events; "
            f"the difference is {surplus:,} events",
            advice="prepare the data again; count popularity, item rates and traffic on train events only",
            examples=_names(item_ids, wrong),
            hr_at_10=hit_rate(rows, most_frequent(np.asarray(train_count))),
            hr_without=hit_rate(rows, most_frequent(arrays.train_counts)),
        )
    ]


def _names(item_ids: pl.Series | None, places: Int64Array) -> tuple[str, ...]:
    return tuple(str(place if item_ids is None else item_ids[place]) for place in places[:EXAMPLES].tolist())


def aggregated_columns(arrays: Arrays, rows: AskedRows, columns: Mapping[str, str]) -> list[Finding]:
    """Name the columns of items and users whose names say that they sum up behaviour; over which time nobody knows.

    The price is the most such a column could tell: the ten items taken most in the evaluated window itself; its twin counts
    the train events.

    Args:
        columns: What each column is used for, by its name in the source, for example ``{"n_clicks": "items.categories"}``.
    """
    named = [name for name in columns if AGGREGATE.search(name)]
    if not named:
        return []
    counts = np.bincount(rows.targets.items, minlength=arrays.num_items)
    listed = ", ".join(f"'{name}' ({columns[name]})" for name in named)
    return [
        Finding(
            code="aggregated_columns",
            title="Columns that may sum up later behaviour",
            severity="warning",
            split=rows.split,
            rows=len(named),
            of=len(columns),
            unit="columns",
            words=f"{listed}: by their names these are counts or rates of behaviour, and a file written today counts the "
            "evaluated days too",
            advice="leave the column out, or give one that was computed before the split",
            examples=tuple(named[:EXAMPLES]),
            hr_at_10=hit_rate(rows, most_frequent(counts)),
            hr_without=hit_rate(rows, most_frequent(arrays.train_counts)),
        )
    ]
