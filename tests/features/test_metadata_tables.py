"""Tables of items and users: what they know of the log's ids, and several rows of one id."""

import re
from pathlib import Path

import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.data_report import spelling_warnings
from features.sources import TableSource

CATALOGUES = {
    "ids of another form": (
        {"item_id": ["i0", "i1", "i2"], "title": ["a", "b", "c"]},
        r"5 of 5 items \(100.0%\) have no row",
    ),
    "no rows": ({"item_id": [], "title": []}, "the table has no ids at all"),
    "some": (
        {"item_id": ["0", "1", "2", "9"], "title": ["a", "b", "c", "d"]},
        r"2 of 5 items \(40.0%\) have no row .*'3'",
    ),
    "two titles": ({"item_id": [*"012344"], "title": [*"abcdex"]}, "several rows that differ for 1 items"),
    "all": ({"item_id": [*"012344"], "title": [*"abcde", None]}, None),
}


@pytest.mark.parametrize("kind", CATALOGUES)
def test_a_table_that_knows_few_items_or_two_things_of_one_is_reported(tmp_path: Path, kind: str) -> None:
    table, said = CATALOGUES[kind]
    rows = [(f"u{user}", (user + place) % 5, 1_700_000_000 + place) for user in range(9) for place in range(4)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    events.write_csv(tmp_path / "log.csv")
    pl.DataFrame(table, schema={"item_id": pl.String, "title": pl.String}).write_csv(tmp_path / "items.csv")
    users = {"user_id": ["u0", "u0", *(f"u{user}" for user in range(1, 9))], "age": [None, 30, *[40] * 8]}
    pl.DataFrame(users).write_csv(tmp_path / "users.csv")
    source = TableSource(
        path=tmp_path,
        interactions="log.csv",
        items="items.csv",
        users="users.csv",
        timestamp_unit="s",
        item_columns={"title": ["title"]},
        user_columns=["age"],
    )
    report = prepare(source, FeaturesConfig(split={"kind": "leave_last_out"}), tmp_path / "out", seed=0)
    assert len(report["warnings"]) == (said is not None), report["warnings"]
    assert said is None or re.search(said, report["warnings"][0])
    assert report["user_rows_repeated"] == 1
    assert pl.read_parquet(tmp_path / "out/users.parquet")["age"][0] == "30"
    titles = pl.read_parquet(tmp_path / "out/items.parquet")["title"]
    assert kind not in ("all", "two titles") or titles.to_list() == [*"abcde"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["7", "7.0", "8.0"], "1 user ids are there with and without '.0', such as '7.0'"),
        (["é", "e\u0301", "e"], "1 user ids are there with accents as one character and as two"),
        (["7", "8.0", "007", "é", "o\u0308"], None),
        ([7, 8], None),
        ([], None),
    ],
)
def test_ids_in_two_spellings_are_reported(ids: list, said: str | None) -> None:
    warnings = spelling_warnings("user", pl.Series(ids, dtype=pl.Int64 if 7 in ids else pl.String))
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
