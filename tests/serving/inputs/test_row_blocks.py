"""Rows of a file by their numbers: what is read in order is read once, and to the end of a row group that is near."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.inputs import row_blocks


@pytest.mark.parametrize(
    ("read_bytes", "reads"),
    [
        (10**9, [(0, 8)]),
        (5 * 40, [(0, 4), (4, 4)]),
        (0, [(0, 2), (2, 2), (4, 2), (6, 2)]),
    ],
)
def test_a_file_that_is_read_in_order_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int, reads: list[tuple[int, int]]
) -> None:
    """Eight users in row groups of four, shards of three: to the end of a row group that is near, else two rows."""
    monkeypatch.setattr(row_blocks, "READ_BYTES", read_bytes)
    monkeypatch.setattr(row_blocks, "READ_AHEAD", 2)
    frame = pl.DataFrame({"user_id": range(8), "item_ids": [[100 + user] for user in range(8)]})
    frame.write_parquet(tmp_path / "users.parquet", row_group_size=4)
    rows = pl.scan_parquet(tmp_path / "users.parquet")
    ends, _ = row_blocks.row_groups(tmp_path / "users.parquet")
    blocks = row_blocks.RowBlocks(rows, (ends, 40.0), rows.collect_schema())
    asked: list[tuple[int, int]] = []
    part = pl.LazyFrame.slice

    def counting(self: pl.LazyFrame, offset: int, length: int | None = None) -> pl.LazyFrame:
        asked.append((offset, length or 0))
        return part(self, offset, length)

    monkeypatch.setattr(pl.LazyFrame, "slice", counting)
    for first in (0, 3, 6):
        last = min(first + 3, 8)
        assert blocks.read(first, last)["user_id"].to_list() == list(range(first, last))
    assert asked == reads
    for first, last in ((5, 7), (0, 2), (2, 8)):  # elsewhere, and back again
        assert blocks.read(first, last)["user_id"].to_list() == list(range(first, last))


def test_row_groups_and_bytes_of_a_row(tmp_path: Path) -> None:
    """A thousand numbers of eight bytes in groups of 400, plainly stored: a little more than eight bytes a row."""
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path, row_group_size=400, use_dictionary=False)
    ends, size = row_blocks.row_groups(path)
    assert ends.tolist() == [400, 800, 1000]
    assert 8 < size < 9
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(OSError, match="magic"):
        row_blocks.row_groups(path)
