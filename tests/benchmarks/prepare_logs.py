"""Logs of any size for the benchmarks of `prepare`: text ids, popular and rare items, rows in order of time.

Run: ``python -m tests.benchmarks.prepare_logs FILE ROWS`` writes Parquet or CSV, by the name, a block at a time. With
``DAYS`` behind it, and ``{}`` in the name for the date, the rows are spread over so many files.
Each 25 rows there is a user and each 100 an item more (200,000 x 50,000 at 5M rows); item popularity falls as
``1 / (rank + 10)``, user activity is log-normal. Ids have the length of Amazon's: 14 characters a user, 10 an item.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

BLOCK: Final = 1_000_000
START_S: Final = 1_640_995_200  # 2022-01-01 00:00 UTC
DAY_S: Final = 86_400
_ODD: Final = 0x9E3779B97F4A7C15  # an odd factor only permutes the numbers below a power of two


@dataclass(frozen=True)
class LogSize:
    """How much to write.

    Attributes:
        rows: Events.
        days: Over which they spread evenly.
        seed: Of who meets what, and when.
    """

    rows: int
    days: int = 365
    seed: int = 17

    @property
    def users(self) -> int:
        """Users there are to draw from."""
        return max(1, self.rows // 25)

    @property
    def items(self) -> int:
        """Items there are to draw from."""
        return max(1, self.rows // 100)


def blocks(size: LogSize, start_s: int = START_S, rows: int | None = None) -> Iterator[pl.DataFrame]:
    """Yield the log in blocks, in order of time.

    Args:
        size: Of the catalogue and the span of time.
        start_s: First second.
        rows: Write so many, of the same users and items; ``None`` takes the size's own.
    """
    rng = np.random.default_rng([size.seed, start_s])
    total = size.rows if rows is None else rows
    active = np.random.default_rng(size.seed).lognormal(0.0, 1.0, size.users)
    user_share, item_share = np.cumsum(active), np.cumsum(1.0 / (np.arange(size.items) + 10.0))
    users = pl.Series([f"A{number * _ODD % 2**52:013X}" for number in range(size.users)])
    items = pl.Series([f"B0{number * _ODD % 2**32:08X}" for number in range(size.items)])
    span = size.days * DAY_S
    for first in range(0, total, BLOCK):
        count = min(BLOCK, total - first)
        low, high = span * first // total, span * (first + count) // total
        yield pl.DataFrame(
            {
                "user_id": users.gather(np.searchsorted(user_share, rng.random(count) * user_share[-1])),
                "item_id": items.gather(np.searchsorted(item_share, rng.random(count) * item_share[-1])),
                "rating": rng.integers(1, 6, count).astype(np.int32),
                "timestamp": start_s + np.sort(rng.integers(low, high, count)),
            }
        )


def write_log(path: Path, size: LogSize, start_s: int = START_S, rows: int | None = None) -> Path:
    """Write a log as one file; see :func:`blocks`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("wb") as handle:
            for number, block in enumerate(blocks(size, start_s, rows)):
                block.write_csv(handle, include_header=number == 0)
        return path
    import pyarrow.parquet as pq

    writer = None
    for block in blocks(size, start_s, rows):
        table = block.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None  # a size has rows
    writer.close()
    return path


def write_days(pattern: str, size: LogSize) -> list[Path]:
    """Write one file per day.

    Args:
        pattern: Path with ``{}`` for the date.
        size: Rows of all days together.
    """
    rows = size.rows // size.days
    paths = []
    for day in range(size.days):
        start_s = START_S + day * DAY_S
        date = datetime.fromtimestamp(start_s, UTC).date()
        paths.append(write_log(Path(pattern.format(date)), replace(size, days=1), start_s, rows))
    return paths


if __name__ == "__main__":
    wanted = LogSize(int(sys.argv[2]), *map(int, sys.argv[3:4]))
    print(write_days(sys.argv[1], wanted) if "{}" in sys.argv[1] else write_log(Path(sys.argv[1]), wanted))
