"""Rows of candidates by user: taken, joined, written, and read by whatever reads Parquet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch.rows import LABELS, OF_JOB, CandidateRows
from serving.batch.shards import ShardTables, write_shard

PART = "part-00000-of-00001.parquet"
NIGHTS = {"mon": "2026-01-05T02:00:00.000001+00:00", "tue": "2026-01-06T02:00:00.5+00:00"}


def job(night: str, version: str = "3") -> dict[str, str]:
    return {"model_name": "shop", "model_version": version, "semantic_id_digest": "d", "run_id": night} | {
        "scored_at": NIGHTS[night]
    }


def of(night: str, *rows: tuple[Any, Any, int, float], version: str = "3") -> CandidateRows:
    names = ["user_id", "item_id", "rank", "score"]
    frame = pl.DataFrame(rows, schema=names, orient="row").cast({"rank": pl.Int32, "score": pl.Float32})
    return CandidateRows.of_job(frame, job(night, version))


def mixed(text: bool = False) -> CandidateRows:
    """Users 8, 5 and 9; 5 was answered on Tuesday."""

    def called(number: int) -> Any:
        return f"u{number}" if text else number

    monday = of(
        "mon", (called(8), 30, 1, 0.5), (called(8), 10, 2, 0.25), (called(5), 1, 1, 0), (called(9), 30, 1, -2.0)
    )
    tuesday = of("tue", (called(5), 20, 1, 1.5), (called(5), 10, 2, 1.0), (called(5), 30, 3, 0.5))
    return CandidateRows.joined([tuesday, monday]).take(np.array([1, 0, 3]))


def written(folder: Path, rows: CandidateRows) -> Path:
    short = pl.DataFrame(schema={"user_id": rows.user_ids.dtype, "reason": pl.String})
    asked = pl.DataFrame({"user_id": rows.user_ids, "asked": np.arange(len(rows.user_ids), dtype=np.uint64)})
    write_shard(folder, PART, ShardTables(rows, short, asked))
    return folder / PART


def test_rows_of_three_users_by_hand() -> None:
    rows = mixed()
    assert rows.user_ids.to_list() == [8, 5, 9]
    assert rows.length_M.tolist() == [2, 3, 1]
    assert len(rows) == 6
    found = rows.frame()
    assert found.columns == ["user_id", "item_id", "rank", "score", *OF_JOB]
    shown = found.select("user_id", "item_id", "rank", "score", "run_id").rows()
    assert shown == [
        (8, 30, 1, 0.5, "mon"),
        (8, 10, 2, 0.25, "mon"),
        (5, 20, 1, 1.5, "tue"),
        (5, 10, 2, 1.0, "tue"),
        (5, 30, 3, 0.5, "tue"),
        (9, 30, 1, -2.0, "mon"),
    ]
    assert found["scored_at"][3] == datetime(2026, 1, 6, 2, 0, 0, 500_000, tzinfo=UTC)


def test_users_between_two_numbers_are_those_rows() -> None:
    rows = mixed()
    assert rows.between(1, 3).frame().equals(rows.frame()[2:])
    assert rows.between(0, 1).frame().equals(rows.frame()[:2])
    assert len(rows.between(2, 2)) == 0


@pytest.mark.parametrize("text", [False, True])
def test_every_reader_sees_plain_columns(tmp_path: Path, text: bool) -> None:
    """Text is text and no category, a moment is one, and nothing tells how it was stored."""
    rows = mixed(text)
    path, expected = written(tmp_path, rows), rows.frame()
    assert pl.read_parquet(path).equals(expected)
    assert pl.read_parquet(path).schema == expected.schema
    assert expected.schema["user_id"] == (pl.String if text else pl.Int64)
    arrow = pq.read_table(path)
    assert arrow.schema.field("scored_at").type == pa.timestamp("us", "UTC")
    for name in (*LABELS, *(["user_id"] if text else [])):
        assert arrow.schema.field(name).type == pa.string()
    assert not any(field.nullable for field in arrow.schema)
    assert arrow.to_pylist() == expected.to_dicts()
    frame = pd.read_parquet(path)
    assert frame["run_id"].tolist() == expected["run_id"].to_list()
    assert isinstance(frame["run_id"][0], str)
    assert not isinstance(frame["run_id"].dtype, pd.CategoricalDtype)
    assert frame["scored_at"].tolist() == [pd.Timestamp(at) for at in expected["scored_at"]]


def test_duckdb_reads_it_too(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = written(tmp_path, mixed(text=True))
    found = duckdb.sql(f"select user_id, item_id, score, run_id from '{path}' where user_id = 'u5' order by rank")
    assert found.fetchall() == [("u5", 20, 1.5, "tue"), ("u5", 10, 1.0, "tue"), ("u5", 30, 0.5, "tue")]


@pytest.mark.parametrize("text", [False, True])
def test_a_file_that_is_read_is_written_again_with_the_same_bytes(tmp_path: Path, text: bool) -> None:
    """The bytes follow from the rows, and a job that nobody names is not among them."""
    rows = mixed(text)
    assert rows.jobs["run_id"].to_list() == ["tue", "mon"]
    first = written(tmp_path, rows).read_bytes()
    (tmp_path / "again").mkdir()
    again = CandidateRows.from_frame(pl.read_parquet(tmp_path / PART))
    assert again.jobs["run_id"].to_list() == ["mon", "tue"]
    assert again.job_M.tolist() == [0, 1, 0]
    assert written(tmp_path / "again", again).read_bytes() == first
    alone = rows.take(np.array([0, 2])).table()
    assert alone["run_id"].chunk(0).dictionary.to_pylist() == ["mon"]
    assert alone["model_version"].chunk(0).indices.to_pylist() == [0, 0, 0]


def test_jobs_that_share_some_labels_stay_apart() -> None:
    """The same run under two versions, and two runs of one version: three jobs; every column has its own values once."""
    parts = [
        of("mon", (1, 5, 1, 0.5), version="3"),
        of("mon", (2, 5, 1, 0.5), version="4"),
        of("tue", (3, 5, 1, 0.5), version="4"),
        of("mon", (4, 6, 1, 0.5), version="3"),
    ]
    rows = CandidateRows.from_frame(pl.concat([part.frame() for part in parts]))
    assert len(rows.jobs) == 3
    assert rows.job_M.tolist() == [0, 1, 2, 0]
    assert rows.frame().equals(pl.concat([part.frame() for part in parts]))
    assert rows.table()["model_version"].chunk(0).dictionary.to_pylist() == ["3", "4"]
    assert rows.table().to_pylist() == rows.frame().to_dicts()


def test_nobody_has_rows(tmp_path: Path) -> None:
    rows = mixed().take(np.array([], np.int64))
    assert len(rows) == 0
    path = written(tmp_path, rows)
    assert pl.read_parquet(path).schema == mixed().frame().schema
    assert len(CandidateRows.from_frame(pl.read_parquet(path))) == 0


@pytest.mark.parametrize("text", [False, True])
def test_users_are_stored_so_that_a_search_may_skip_a_file(tmp_path: Path, text: bool) -> None:
    """Least and largest user are in the file; scores, which are all different, have no list of values."""
    group = pq.ParquetFile(written(tmp_path, mixed(text))).metadata.row_group(0)
    column = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    user = column["user_id"].statistics
    assert (user.min, user.max) == (("u5", "u9") if text else (5, 9))
    assert column["score"].statistics is None
    coded = {name for name, each in column.items() if "RLE_DICTIONARY" in each.encodings}
    assert coded == {"item_id", "rank", *OF_JOB} | ({"user_id"} if text else set())
    assert {each.compression for each in column.values()} == {"ZSTD"}


@pytest.mark.parametrize("name", [*LABELS, "scored_at"])
@pytest.mark.parametrize("lacking", [[0], [1], [0, 1, 2], []])
def test_a_label_that_another_program_left_empty_stays_so(name: str, lacking: list[int]) -> None:
    """Users 8, 5 and 9 of two and three rows and one; a label that is null is one like any other, and joins no other."""
    rows = mixed()
    empty = pl.Series(np.isin(np.repeat(np.arange(3), rows.length_M), lacking))
    frame = rows.frame().with_columns(pl.when(~empty).then(name).alias(name))
    read = CandidateRows.from_frame(frame)
    assert read.frame().equals(frame)
    assert read.take(np.array([2, 0])).frame()["user_id"].to_list() == [9, 8, 8]
    assert (
        pl.DataFrame(pl.from_arrow(read.table()))
        .select(pl.col(name).cast(frame.schema[name]))
        .equals(frame.select(name))
    )
