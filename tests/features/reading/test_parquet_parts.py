"""Several Parquet files as one table: what is widened, what is read as what, and what is refused by name."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.reading import FILE, RAW, REFUSED, ROW, open_parquet
from recsys.contracts.errors import DataError

DAY = datetime(2024, 1, 1)


def parts(tmp_path: Path, *tables):
    paths = []
    for number, table in enumerate(tables):
        path = tmp_path / f"part-{number}.parquet"
        pq.write_table(table, path) if isinstance(table, pa.Table) else table.write_parquet(path)
        paths.append(path)
    return open_parquet(paths, tmp_path)


def column(values, dtype=None) -> pl.DataFrame:
    return pl.DataFrame({"a": pl.Series(values, dtype=dtype), "other": [{"x": 1}] * len(values)})


@pytest.mark.parametrize(
    ("first", "second", "dtype", "values"),
    [
        (column([1]), column([2], pl.Int32), pl.Int64, [1, 2]),
        (column([1], pl.UInt32), column([2], pl.Int8), pl.Int64, [1, 2]),
        (column([2**63 - 1], pl.UInt64), column([2]), pl.Int64, [2**63 - 1, 2]),
        (column([2**64 - 1], pl.UInt64), column([2], pl.UInt64), pl.UInt64, [2**64 - 1, 2]),
        (column([0.5], pl.Float32), column([0.25]), pl.Float64, [0.5, 0.25]),
        (column([1]), column([0.5]), pl.Float64, [1.0, 0.5]),
        (column([None]), column(["x"]), pl.String, [None, "x"]),
        (column([7]), column([None]), pl.Int64, [7, None]),
        (column(["x"], pl.Categorical), column(["y"], pl.Enum(["y"])), pl.String, ["x", "y"]),
        (column(["x"]), column([b"y"]), pl.String, ["x", "y"]),
        (column([DAY], pl.Datetime("ns")), column([DAY], pl.Datetime("ms")), pl.Datetime("us"), [DAY, DAY]),
        (column([DAY], pl.Datetime("us")), column([DAY], pl.Datetime("ns")), pl.Datetime("us"), [DAY, DAY]),
        (column([DAY]), column([date(2024, 1, 1)]), pl.Datetime("us"), [DAY, DAY]),
        (column([Decimal("1.50")]), column([2.5]), pl.Float64, [1.5, 2.5]),
        (column([0.3, None], pl.Float32), column([0.3]), pl.Float64, [0.3, None, 0.3]),
        (column([0.7, float("inf")], pl.Float32), column([1]), pl.Float64, [0.7, float("inf"), 1.0]),
        (column([Decimal(7)], pl.Decimal(10, 0)), column([8]), pl.Int64, [7, 8]),
        (column([Decimal(10**20)], pl.Decimal(38, 0)), column(["8"]), pl.String, ["1" + "0" * 20, "8"]),
        (column([[1, 2]]), column([[3, 4]], pl.Array(pl.Int32, 2)), pl.List(pl.Int64), [[1, 2], [3, 4]]),
        (column([["x"]]), column([[]], pl.List(pl.Null)), pl.List(pl.String), [["x"], []]),
        (column([], pl.String), column(["x"]), pl.String, ["x"]),
        (column(["x"]), pl.DataFrame({"b": [1]}), pl.String, ["x", None]),
        (pa.table({"a": pa.array([5, 6]).dictionary_encode()}), column([1]), pl.Int64, [5, 6, 1]),
        (column([2**70], pl.Int128), column(["x"]), pl.String, [str(2**70), "x"]),
        (pa.table({"a": pa.array([UUID(int=7).bytes], pa.uuid())}), column(["x"]), pl.String, [str(UUID(int=7)), "x"]),
        (pa.table({"a": pa.array(['{"x":1}'], pa.json_())}), column(["x"]), pl.String, ['{"x":1}', "x"]),
        (pa.table({"a": pa.array(["x"], pa.string_view())}), column(["y"]), pl.String, ["x", "y"]),
    ],
)
def test_types_meet_where_nothing_is_lost(tmp_path: Path, first, second, dtype, values) -> None:
    table = parts(tmp_path, first, second)
    assert table.schema["a"] == dtype
    assert table.collect(["a"])["a"].to_list() == values


@pytest.mark.parametrize(
    "kind", [pa.decimal32(5, 1), pa.decimal64(12, 1), pa.decimal128(10, 1), pa.decimal128(38, 20), pa.decimal256(60, 3)]
)
def test_a_decimal_is_the_float_of_its_digits(tmp_path: Path, kind) -> None:
    """Arrow's cast makes 3 * 0.1 = 0.30000000000000004 of 0.3, which no rule 'equals: 0.3' or 'at_most: 0.3' is true of."""
    digits = [f"{sign}{number / 10}" for number in range(1000) for sign in ("", "-")]
    values = pa.array([*map(Decimal, digits), None], pa.decimal128(10, 1)).cast(kind)
    table = parts(tmp_path, pa.table({"a": values}))
    assert table.schema["a"] == pl.Float64
    assert table.collect(["a"])["a"].to_list() == [*map(float, digits), None]


def test_zones_are_one_instant(tmp_path: Path) -> None:
    """Midnight in Vienna is 23:00 UTC of the day before."""
    vienna = column([DAY]).with_columns(pl.col("a").dt.replace_time_zone("Europe/Vienna"))
    utc = column([DAY]).with_columns(pl.col("a").dt.replace_time_zone("UTC"))
    instants = parts(tmp_path, vienna, utc).collect(["a"])["a"].dt.epoch("s").to_list()
    assert instants == [1704063600, 1704067200]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        (column([1]), column(["x"]), "column 'a' is Int64 in '.*part-0.parquet' and String in '.*part-1.parquet'"),
        (column([True]), column([1]), "Boolean in .* and Int64 in"),
        (column([DAY]), column([DAY], pl.Datetime("us", "UTC")), "Datetime.*part-0.parquet' and Datetime.*UTC"),
        (column([DAY]), column([1700000000]), "Datetime.* and Int64 in"),
        (column([[1]]), column([["x"]]), r"List\(Int64\) in .* and List\(String\) in"),
        (column([1]), column([[1]]), r"Int64 in .* and List\(Int64\) in"),
        (
            column([1]),
            column([2**63], pl.UInt64),
            "part-1.parquet': column 'a', row 0: 9223372036854775808 lies beyond",
        ),
        (column([2**53 + 1]), column([0.5]), "part-0.parquet': column 'a', row 0: 9007199254740993 does not fit"),
        (column([1, -(2**53) - 1]), column([0.5]), "column 'a', row 1: -9007199254740993 does not fit"),
        (
            column([1]),
            column([{"x": 1}]),
            "part-1.parquet': column 'a' is a struct, which cannot be read; write each of",
        ),
        (column([[[1]]]), column([[[1]]]), "part-0.parquet': column 'a' is .*list.*; write one list per row"),
        (
            column([timedelta(1)]),
            column([timedelta(1)]),
            "'a' is a duration, which cannot be read; write it as a number",
        ),
        (column([time(1)]), column([time(1)]), "'a' is a time of day, which cannot be read"),
        (column([b"x", b"\xff"]), column(["y"]), r"'a' is binary, and row 1 \(b'\\xff'\) is no UTF-8 text"),
        (
            pa.table({"a": pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int32()))}),
            column([1]),
            "column 'a' is a map, which cannot be read",
        ),
        (column([1]), pl.DataFrame(), "part-1.parquet' has no columns: write it again, or leave it out"),
    ],
)
def test_what_cannot_meet_names_files_column_and_types(tmp_path: Path, first, second, shown: str) -> None:
    with pytest.raises(DataError, match=shown):
        parts(tmp_path, first, second).collect(["a"])


def test_columns_that_are_not_asked_for_do_not_matter(tmp_path: Path) -> None:
    odd = pl.DataFrame({"a": [1], "b": [timedelta(1)], "c": [[[1]]], "d": [{"x": 1}], "e": [b"\xff"]})
    other = pl.DataFrame({"a": [2], "b": [1], "c": ["x"], "d": [2.0], "e": [True]})
    assert parts(tmp_path, odd, other).collect(["a"])["a"].to_list() == [1, 2]


def test_a_wide_integer_and_a_name_that_stands_twice_do_not_matter_where_they_are_not_asked_for(tmp_path: Path) -> None:
    wide = pl.DataFrame({"a": [1, 2], "b": pl.Series([2**70, None], dtype=pl.Int128)})
    twice = pa.table([pa.array([3]), pa.array([4]), pa.array([5])], names=["a", "b", "b"])
    table = parts(tmp_path, wide, twice)
    assert table.collect(["a"])["a"].to_list() == [1, 2, 3]
    assert table.collect([]).select(FILE, ROW).rows() == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(DataError, match=r"part-1.parquet': column 'b' is there more than once"):
        table.collect(["b"])


def test_a_text_file_that_is_called_parquet(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(DataError, match=r"log.parquet' is no Parquet file: it begins with b'user'; give it the ending"):
        open_parquet([tmp_path / "log.parquet"], tmp_path)


def test_batches_follow_the_rows_and_a_day_can_be_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.reading.parquet.BATCH_ROWS", 2)
    table = parts(tmp_path, column([1, 2, 3]), column([4]))
    batches = list(table.batches(["a"]))
    assert [batch["a"].to_list() for batch in batches] == [[1, 2], [3], [4]]
    assert pl.concat(batches).select(FILE, ROW, REFUSED, RAW).rows() == [
        (0, 0, None, None),
        (0, 1, None, None),
        (0, 2, None, None),
        (1, 0, None, None),
    ]
    assert [batch["a"].to_list() for batch in table.batches(["a"], only=["part-1.parquet"])] == [[4]]
    with pytest.raises(DataError, match=r"has no file 'part-9.parquet'; files: part-0.parquet, part-1.parquet"):
        list(table.batches(["a"], only=["part-9.parquet"]))


def test_keys_of_folders_are_columns_of_text(tmp_path: Path) -> None:
    for folder, value in (
        ("day=2024-01-01/country=a%20b", 1),
        ("day=2024-01-02/country=__HIVE_DEFAULT_PARTITION__", 2),
    ):
        (tmp_path / folder).mkdir(parents=True)
        pl.DataFrame({"a": [value]}).write_parquet(tmp_path / folder / "part-0.parquet")
    paths = sorted(tmp_path.rglob("*.parquet"))
    table = open_parquet(paths, tmp_path)
    assert table.collect(["a", "day", "country"]).select("a", "day", "country").rows() == [
        (1, "2024-01-01", "a b"),
        (2, "2024-01-02", None),
    ]


NO_UTF8 = pa.array([b"good", "caf\xe9".encode("latin-1"), None]).view(pa.string())


@pytest.mark.parametrize(
    ("values", "where"),
    [
        (NO_UTF8, "is called text, and row 1 is no UTF-8; write the column again"),
        (
            NO_UTF8.cast(pa.binary()).cast(pa.large_binary()).view(pa.large_string()),
            "is called text, and row 1 is no UTF-8; write the column again",
        ),
        (
            pa.DictionaryArray.from_arrays([0, 1, 1], NO_UTF8[:2]),
            "bytes that are not UTF-8: write the column as UTF-8 text",
        ),
        (pa.ListArray.from_arrays([0, 1, 2, 3], NO_UTF8), "is called text, and behind row 0 is no UTF-8"),
    ],
    ids=["string", "large_string", "dictionary", "list"],
)
def test_a_text_column_of_other_bytes_is_refused_by_name(tmp_path: Path, values: pa.Array, where: str) -> None:
    """As writers leave them that know no encoding; shown, such a text ends the process."""
    pq.write_table(pa.table({"name": values, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    table = open_parquet([tmp_path / "x.parquet"], tmp_path)
    assert table.collect(["n"])["n"].to_list() == [1, 2, 3], "unread, it does not matter"
    with pytest.raises(DataError, match=f"x.parquet'.*{where}"):
        table.collect(["name"])


def test_a_day_that_the_unit_of_another_file_cannot_hold_is_not_known(tmp_path: Path) -> None:
    """Nanoseconds end in 2262; 9999-12-31 stands for "never" in many tables."""
    days = pa.array([19_700, 2_932_896, 2**31 - 1], pa.int32()).cast(pa.date32())
    for name, values in (("a", days), ("b", pa.array([0, 1, None], pa.timestamp("ns")))):
        pq.write_table(pa.table({"at": values}), tmp_path / f"{name}.parquet")
    table = open_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path)
    assert table.collect(["at"])["at"].to_physical().to_list() == [19_700 * 86_400 * 10**9, None, None, 0, 1, None]
