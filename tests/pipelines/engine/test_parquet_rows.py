"""How many rows the manifest of a stage says its tables have."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.engine.runner import parquet_rows


def test_rows_of_all_tables_but_scratch(tmp_path: Path) -> None:
    """Names that a pattern would read otherwise are taken as they are."""
    for name, rows in (("a.parquet", 3), ("below/b[1].parquet", 0), (".scratch.parquet", 5), (".aside/c.parquet", 7)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pl.DataFrame({"n": range(rows)}).write_parquet(path)
    (tmp_path / "d.npy").write_bytes(b"")
    assert parquet_rows(tmp_path) == {"a.parquet": 3, "below/b[1].parquet": 0}
