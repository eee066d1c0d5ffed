"""Files of the own writer are read by Polars and pyarrow, and do not depend on the pieces in which they were written."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.number_tables import writer
from features.number_tables.writer import Column, Nullable, NumberTableWriter

ASCENDING = {"user", "split", "code", "start"}


def columns(rows: int, seed: int) -> dict[str, Column]:
    rng = np.random.default_rng(seed)
    return {
        "user": np.sort(rng.integers(0, 50, rows, dtype=np.int32)),
        "item": rng.integers(-(2**31), 2**31, rows, dtype=np.int64).astype(np.int32),
        "split": rng.integers(0, 3, rows).astype(np.int8),
        "code": rng.integers(0, 256, rows).astype(np.uint8),
        "small": rng.integers(-128, 128, rows).astype(np.int8),
        "start": np.cumsum(rng.integers(0, 2**40, rows)),
        "liked": rng.random(rows) < 0.5,
        "one": np.broadcast_to(np.uint8(7), (rows,)),
        "time": Nullable(rng.integers(0, 2**60, rows), rng.random(rows) < 0.7),
        "none": Nullable(np.full(rows, np.nan, np.float32), np.zeros(rows, bool)),
        "all": Nullable(rng.random(rows).astype(np.float32), None),
        "signal": Nullable(rng.random(rows) < 0.3, rng.random(rows) < 0.7),
    }


def as_frame(given_columns: dict[str, Column]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            name: pl.Series(column.values).set(pl.Series(~column.marks), None)
            if isinstance(column, Nullable)
            else pl.Series(column)
            for name, column in given_columns.items()
        }
    )


@given(rows=st.integers(0, 400), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int, cuts: list[int]
) -> None:
    folder, table = tmp_path_factory.mktemp("table"), columns(rows, seed)
    borders = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writer, "GROUP_ROWS", 150)
        for name, pieces in (("whole", [0, rows]), ("cut", borders)):
            with NumberTableWriter(folder / name, ASCENDING) as file:
                for start, end in itertools.pairwise(pieces):
                    file.write({key: column[start:end] for key, column in table.items()})
    assert (folder / "whole").read_bytes() == (folder / "cut").read_bytes()
    read = pl.read_parquet(folder / "cut")
    assert read.equals(as_frame(table))
    assert read.schema == as_frame(table).schema
    assert pl.from_arrow(pq.read_table(folder / "cut")).equals(read)
    slices = pl.scan_parquet(folder / "cut").slice(rows // 3, 70).collect()
    assert slices.equals(read.slice(rows // 3, 70))
    footer = pq.read_metadata(folder / "cut")
    assert (footer.num_rows, footer.num_row_groups) == (rows, -(-rows // 150))


def test_columns_say_what_they_are(tmp_path: Path) -> None:
    """Whole numbers without nulls that ascend are differences; a column is nullable where it was given so."""
    with NumberTableWriter(tmp_path / "a", ASCENDING | {"time", "liked"}) as file:
        file.write(columns(10, 0))
    assert pl.read_parquet(tmp_path / "a").equals(as_frame(columns(10, 0)))
    found = pq.ParquetFile(tmp_path / "a")
    group = found.metadata.row_group(0)
    kinds = {group.column(at).path_in_schema: group.column(at).encodings[0] for at in range(group.num_columns)}
    assert {name for name, kind in kinds.items() if kind == "DELTA_BINARY_PACKED"} == ASCENDING
    nullable = {name for at, name in enumerate(found.schema.names) if found.schema.column(at).max_definition_level}
    assert nullable == {"time", "none", "all", "signal"}
    ends = [
        group.column(at).data_page_offset + group.column(at).total_compressed_size for at in range(group.num_columns)
    ]
    assert [group.column(at).data_page_offset for at in range(group.num_columns)] == [4, *ends[:-1]]


def test_a_type_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="float64"), NumberTableWriter(tmp_path / "a", ()) as file:
        file.write({"x": np.ones(3)})
