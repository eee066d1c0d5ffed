"""Refused rows: counted as they come; in memory or on disk, the same rows in the same order, and the same file."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from features import refused as module
from features.build import FeaturesConfig, prepare
from features.log.quarantine import QuarantineConfig, check_share
from features.refused import Reason, RefusedRows
from features.sources.table import TableSource
from recsys.contracts.errors import DataError

SCHEMA = pl.Schema({"file": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String, "split": pl.String})


def rows(file: str, first: int, reasons: list[str]) -> pl.DataFrame:
    numbers = list(range(first, first + len(reasons)))
    data = {"file": file, "row": numbers, "reason": reasons, "raw": [None, "ü", "x,y"][first % 3], "split": None}
    return pl.DataFrame(data, schema=SCHEMA)


PARTS = [rows("a", 4, ["late", "null"]), rows("a", 9, ["null"] * 3), rows("b", 0, ["late"]), rows("b", 2, ["odd"] * 2)]


def filled(parts: list[pl.DataFrame]) -> RefusedRows:
    found = RefusedRows(SCHEMA)
    for part in parts:
        found.append(part)
    return found


@pytest.fixture(params=[1 << 17, 2, 0], ids=["memory", "both", "disk"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "ROWS_IN_MEMORY", request.param)
    return int(request.param)


@pytest.mark.usefixtures("limit")
def test_counts_and_rows_by_hand() -> None:
    """Late: rows 4 of a and 0 of b; null: 5 and 9 to 11 of a; odd: 2 and 3 of b."""
    found = filled(PARTS)
    assert found.reasons == {"late": Reason(2, "a", 4), "null": Reason(4, "a", 5), "odd": Reason(2, "b", 2)}
    assert list(found.reasons) == ["late", "null", "odd"]
    assert (len(found), found.per_file) == (8, {"a": 5, "b": 3})
    assert found.table().equals(pl.concat(PARTS))
    assert found.table().equals(pl.concat(PARTS)), "read a second time"


@pytest.mark.usefixtures("limit")
def test_more_rows_leave_the_first_as_they_were() -> None:
    first = filled(PARTS[:2])
    both, other = first.and_also(PARTS[2]), first.and_also(PARTS[3])
    assert first.table().equals(pl.concat(PARTS[:2]))
    assert both.table().equals(pl.concat(PARTS[:3]))
    assert other.table().equals(pl.concat([*PARTS[:2], PARTS[3]]))
    assert (len(first), len(both), len(other)) == (5, 6, 7)


def test_many_rows_are_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_IN_MEMORY", 100)
    found = filled([rows("a", place, ["null"] * 30) for place in range(0, 3000, 30)])
    assert max(map(len, found.tables())) <= 130
    assert found._waiting_rows <= 100
    assert found.table()["row"].to_list() == list(range(3000))


def test_nothing_refused_is_a_table_with_all_columns() -> None:
    found = RefusedRows(SCHEMA)
    assert (len(found), found.table().schema) == (0, SCHEMA)
    check_share(found, 0, QuarantineConfig(max_share=0.0))


@pytest.mark.usefixtures("limit")
def test_too_many_name_reasons_by_their_number() -> None:
    message = (
        r"^8 of 20 rows \(40.0%\).*\(null: 4, first in 'a', row 5 .*; late: 2, first in 'a'.*; odd: 2, first in 'b'"
    )
    with pytest.raises(DataError, match=message):
        check_share(filled(PARTS), 20, QuarantineConfig())


def test_the_file_is_the_same_wherever_the_rows_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of which every third row is refused, for three reasons, prepared with rows in memory, on disk, and both."""
    bad = [f"u{i % 7},i{i % 5},soon" if i % 2 else f",i{i % 5},{1_700_000_000 + i}" for i in range(60)]
    good = [f"u{i % 7},i{i % 5},{1_700_000_000 + 9 * i}" for i in range(120)]
    lines = ["user_id,item_id,timestamp", *(line for i in range(60) for line in (good[2 * i], bad[i], good[2 * i + 1]))]
    (tmp_path / "log.csv").write_text("\n".join([*lines, "u1,i1"]) + "\n")
    source = TableSource(path=tmp_path, interactions="log.csv", timestamp_unit="s")
    config = FeaturesConfig.model_validate({"quarantine": {"max_share": 0.5}, "split": {"kind": "leave_last_out"}})
    found = []
    for place, most in enumerate((1 << 17, 7, 0)):
        monkeypatch.setattr(module, "ROWS_IN_MEMORY", most)
        report = prepare(source, config, tmp_path / str(place), 0)
        found.append((tmp_path / str(place) / "quarantine.parquet").read_bytes())
    expected = {"null user_id": 30, "timestamp is not a number": 30, "too few fields": 1}
    assert report["quarantined"] == expected
    assert found[0] == found[1] == found[2]
    table = pl.read_parquet(tmp_path / "0" / "quarantine.parquet")
    assert dict(table.group_by("reason").len().iter_rows()) == expected
