"""Files of the own writer are read by Polars and pyarrow, and do not depend on the pieces in which they were written."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.number_tables import writer
from features.number_tables.writer import Column, Lists, Nullable, NumberTableWriter

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
        "targets": lists(rng, rng.integers(1, 5, rows)),
        "single": lists(rng, np.ones(rows, np.int64)),
    }


def lists(rng: np.random.Generator, sizes: npt.NDArray[np.int64]) -> Lists:
    return Lists.of(rng.integers(0, 2**31, int(sizes.sum()), dtype=np.int64).astype(np.int32), sizes)


def as_frame(given_columns: dict[str, Column]) -> pl.DataFrame:
    return pl.DataFrame({name: as_series(column) for name, column in given_columns.items()})


def as_series(column: Column) -> pl.Series:
    if isinstance(column, Lists):
        pieces = [column.items[start:end].tolist() for start, end in itertools.pairwise(column.ends.tolist())]
        return pl.Series(pieces, dtype=pl.List(pl.Int32))
    if isinstance(column, Nullable):
        return pl.Series(column.values).set(pl.Series(~column.marks), None)
    return pl.Series(column)


def test_lists_by_hand(tmp_path: Path) -> None:
    """Rows [5, 6] and [7]: repetition levels 0 1 0, a bit each, say where rows begin; the list and its items are there."""
    with NumberTableWriter(tmp_path / "a", ASCENDING) as file:
        file.write({"targets": Lists.of(np.array([5, 6, 7], np.int32), np.array([2, 1]))})
    assert pl.read_parquet(tmp_path / "a")["targets"].to_list() == [[5, 6], [7]]
    levels = b"\x02\0\0\0\x03\x02" + b"\x02\0\0\0\x06\x01"  # 8 bits: 0b010; then a run of three 1
    values = b"\x05\0\0\0\x06\0\0\0\x07\0\0\0"
    assert levels + values in (tmp_path / "a").read_bytes()
    column = pq.read_metadata(tmp_path / "a").row_group(0).column(0)
    assert (column.path_in_schema, column.num_values) == ("targets.list.element", 3)
    schema = pq.read_schema(tmp_path / "a")
    assert not schema.field("targets").nullable
    assert str(schema.field("targets").type) == "list<element: int32 not null>"


def test_a_part_of_lists_has_its_own_items() -> None:
    part = Lists.of(np.arange(6, dtype=np.int32), np.array([2, 1, 3]))[1:3]
    assert (len(part), part.values.tolist()) == (2, [2, 3, 4, 5])
    assert part.is_first.tolist() == [True, True, False, False]


def test_empty_lists_and_sizes_that_do_not_add_up_are_refused() -> None:
    items = np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="list 1 has 0 items, expected at least 1"):
        Lists.of(items, np.array([3, 0]))
    with pytest.raises(ValueError, match="the lists have 2 items by their sizes, and there are 3"):
        Lists.of(items, np.array([1, 1]))


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
    at_once = [found.schema.column(at) for at in range(len(found.schema))]
    nullable = {column.name for column in at_once if column.max_definition_level > column.max_repetition_level}
    assert nullable == {"time", "none", "all", "signal"}
    ends = [
        group.column(at).data_page_offset + group.column(at).total_compressed_size for at in range(group.num_columns)
    ]
    assert [group.column(at).data_page_offset for at in range(group.num_columns)] == [4, *ends[:-1]]


def test_a_type_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="float64"), NumberTableWriter(tmp_path / "a", ()) as file:
        file.write({"x": np.ones(3)})
