"""Sizes of a data set, written out once: a test gives what it is about, the rest is the least there can be."""

from __future__ import annotations

from typing import Any

from recsys.contracts.dataset import DatasetSpec


def dataset_spec(num_users: int, num_items: int, **sizes: Any) -> DatasetSpec:
    """Next item, no feedback signals and no times unless ``sizes`` says otherwise; every table has the one row of "none"."""
    least = {
        "num_authors": 1,
        "num_categories": 1,
        "num_behaviours": 1,
        "num_gap_buckets": 1,
        "num_watch_buckets": 1,
        "task": "next_item",
        "session_length": 1,
        "signals": (),
        "has_timestamps": False,
    }
    return DatasetSpec.model_validate({"num_users": num_users, "num_items": num_items, **least, **sizes})


def beauty_sized(**sizes: Any) -> DatasetSpec:
    """The sizes of Amazon Beauty 2014, on which published models are compared."""
    counts = {
        "num_authors": 445,
        "num_categories": 195,
        "num_behaviours": 2,
        "num_gap_buckets": 32,
        "num_watch_buckets": 12,
    }
    return dataset_spec(22_363, 12_101, **{**counts, **sizes})
