"""Histories of an interactions table: what serving reads of it is what `prepare` reads of it."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import SimulatedSource, TableSource
from features.user_histories import user_histories
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError


def shop(folder: Path, text: str) -> TableSource:
    """A source of the columns customer, sku, ts, stars, of which three stars and more are liked."""
    (folder / "events.csv").write_text("customer,sku,ts,stars\n" + text)
    return TableSource.model_validate(
        {
            "path": folder,
            "interactions": "events.csv",
            "timestamp_unit": "s",
            "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "ts"},
            "signals": [{"name": "liked", "column": "stars", "at_least": 3}],
            "positive": ["liked"],
        }
    )


def test_by_hand(tmp_path: Path) -> None:
    """ann took b, then a (the file has them the other way round), disliked c, and the repeated row counts once.

    bob liked nothing. The only signal is bit 0, and codes begin at 1: liked is 1 + 1 = 2.
    """
    rows = "ann,a,1700000060,5\nann,b,1700000000,3\nann,c,1700000120,1\nann,a,1700000060,5\nbob,a,1700000000,2\n"
    rules = FeaturesConfig.model_validate({"quarantine": {"max_share": 0.5}})
    found = user_histories(shop(tmp_path, rows), rules, 0)
    assert found.to_dicts() == [
        {
            "user_id": "ann",
            "item_ids": ["b", "a"],
            "timestamps": [
                datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
                datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC),
            ],
            "behaviours": [2, 2],
        },
        {"user_id": "bob", "item_ids": [], "timestamps": [], "behaviours": []},
    ]


def test_users_who_come_mixed_and_backwards_keep_their_own_order(tmp_path: Path) -> None:
    """The file has the newest events first, and the users in turn; three of an instant stay as they stand in the file."""
    rows = [
        f"{user},{user}{place},{1_700_000_000 + 60 * max(place, 2)},5" for place in range(5, -1, -1) for user in "ba"
    ]
    found = user_histories(shop(tmp_path, "\n".join(rows) + "\n"), FeaturesConfig(), 0)
    assert found["user_id"].to_list() == ["a", "b"]
    order = (2, 1, 0, 3, 4, 5)
    assert found["item_ids"].to_list() == [[f"{user}{place}" for place in order] for user in "ab"]
    assert all(times == sorted(times) for times in found["timestamps"].to_list())


def test_too_many_bad_rows_are_refused_as_by_prepare(tmp_path: Path) -> None:
    source = shop(tmp_path, "ann,a,1700000060,5\n,b,1700000000,3\n")
    with pytest.raises(DataError, match="null user_id"):
        user_histories(source, FeaturesConfig(), 0)


def test_no_interactions_are_refused(tmp_path: Path) -> None:
    columns = {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64}
    pl.DataFrame(schema=columns).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="no interactions at all"):
        user_histories(TableSource(path=tmp_path, timestamp_unit="s"), FeaturesConfig(), 0)


def test_every_history_is_the_prepared_one(tmp_path: Path) -> None:
    """Without a k-core and quarantine of sessions both are the positive events of every user, in the same order."""
    source, rules = SimulatedSource(users=80, items=60, events=3_000, topics=4), FeaturesConfig()
    prepare(source, rules, tmp_path, 3)
    prepared = Dataset.open(tmp_path)
    found = user_histories(source, rules, 3)
    assert found["user_id"].equals(prepared.users["user_id"])
    lengths = found["item_ids"].list.len().to_numpy()
    assert lengths.tolist() == np.diff(prepared.history.offsets).tolist()
    items = prepared.items["item_id"].gather(prepared.history.item)
    assert found["item_ids"].explode(empty_as_null=False).to_list() == items.to_list()
    times = found["timestamps"].explode(empty_as_null=False).cast(pl.Int64).fill_null(-1).to_numpy()
    assert times.tolist() == np.asarray(prepared.history.timestamp).tolist()
    codes = found["behaviours"].explode(empty_as_null=False).to_numpy()
    assert codes.tolist() == prepared.history.behaviour.tolist()
