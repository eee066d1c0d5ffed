"""Propensities from a file to events.parquet: kept as they are, refused outside (0, 1], the same when a day is added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.log.encode import read_log
from features.log.encoded_log import EncodedLog
from features.log.quarantine import QuarantineConfig
from features.sources import TableSource
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

SECOND = 1_650_000_000


def read(folder: Path, propensity: list[Any], columns: dict[str, Any] | None = None, share: float = 1.0) -> Any:
    rows = len(propensity)
    table = {"user_id": [1] * rows, "item_id": list(range(rows)), "timestamp": [SECOND + row for row in range(rows)]}
    pl.DataFrame({**table, "p": propensity}).write_parquet(folder / "interactions.parquet")
    source = TableSource(path=folder, timestamp_unit="s", columns={"propensity": "p"} if columns is None else columns)
    return read_log(source.read(seed=0), QuarantineConfig(max_share=share), need_session_id=False)


def test_they_are_read_saved_and_decoded(tmp_path: Path) -> None:
    log = read(tmp_path, [0.5, None, 1.0, 1e-6]).log
    log.save(tmp_path / "log")
    for one in (log, EncodedLog.load(tmp_path / "log")):
        assert one.decode(slice(None))[Columns.PROPENSITY].to_list() == pytest.approx([0.5, None, 1.0, 1e-6])


def test_without_the_column_there_is_none(tmp_path: Path) -> None:
    log = read(tmp_path, [0.5], columns={}).log
    assert log.propensity is None
    assert Columns.PROPENSITY not in log.decode(slice(None)).columns


def test_what_is_no_probability_is_quarantined_with_the_reason(tmp_path: Path) -> None:
    """0, -.1 and 1.5 go; 1 and what is not known stay."""
    found = read(tmp_path, [0.0, 0.2, -0.1, 1.0, 1.5, None])
    assert found.log.item_ids.to_list() == [1, 3, 5]
    reasons = {name: reason.rows for name, reason in found.refused.reasons.items()}
    assert reasons == {"propensity outside (0, 1]": 3}


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="q"):
        read(tmp_path, [0.5], columns={"propensity": "q"})
