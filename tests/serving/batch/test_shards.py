"""A shard's files: each on the disk before its name is there, the candidates last."""

from pathlib import Path

import polars as pl
import pytest

from serving.batch import shards
from serving.batch.rows import LABELS, CandidateRows
from serving.batch.shards import SHORTFALL_COLUMNS, ShardTables, asked_name, shortfall_name, write_shard

PART = "part-00000-of-00001.parquet"
USERS = pl.Series("user_id", ["u1", "u2"])
JOB = {name: name for name in LABELS} | {"scored_at": "2026-01-05T02:00:00+00:00"}
ROWS = CandidateRows.of_job(pl.DataFrame({"user_id": ["u1", "u1"], "item_id": ["a", "b"], "rank": [1, 2]}), JOB)


def tables(short: int = 0) -> ShardTables:
    empty = pl.DataFrame(schema={name: kind or pl.String for name, kind in SHORTFALL_COLUMNS.items()})
    missing = pl.DataFrame(
        {"user_id": ["u2"], "wanted": [2], "found": [0], "allowed": [9], "unseen": [0], "reason": ["seen"]}
    )
    return ShardTables(ROWS, missing.head(short) if short else empty, pl.DataFrame({"user_id": USERS, "asked": [7, 8]}))


def test_counts_by_hand() -> None:
    counts = tables(short=1).counts
    assert (counts["users"], counts["users_without_items"], counts["users_short"], counts["rows"]) == (2, 1, 1, 2)
    assert (counts["short_by_seen"], counts["short_by_rules"]) == (1, 0)


def test_what_was_short_before_does_not_stay(tmp_path: Path) -> None:
    first = write_shard(tmp_path, PART, tables(short=1))
    assert [entry.path for entry in first] == [asked_name(PART), shortfall_name(PART), PART]
    again = write_shard(tmp_path, PART, tables())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(entry.path for entry in again)


@pytest.mark.parametrize("dies_at", [1, 2])
def test_no_name_before_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    """The power goes while the first or the second file is being brought to the disk: what has a name is whole."""
    calls, real = iter(range(1, 9)), shards.sync

    def dies(path: Path) -> None:
        if next(calls) == dies_at:
            raise OSError("no power")
        real(path)

    monkeypatch.setattr(shards, "sync", dies)
    with pytest.raises(OSError, match="no power"):
        write_shard(tmp_path, PART, tables())
    named = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert named == [asked_name(PART)][: dies_at - 1]
