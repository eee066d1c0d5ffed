"""Column map, units, signals, metadata: what a table source makes of files, and what it refuses."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from features.sources import RecBoleSource, TableSource
from features.sources.columns_map import Signal
from features.sources.item_columns import ItemColumns, canonical_items
from recsys.contracts.errors import DataError

SECOND = 1_650_000_000  # 2022-04-15


def write(folder: Path, **columns: list) -> Path:
    pl.DataFrame(columns).write_parquet(folder / "interactions.parquet")
    return folder


def simple(folder: Path, unit: str = "s", scale: int = 1) -> TableSource:
    write(folder, user_id=[7, 7], item_id=[1, 2], timestamp=[SECOND * scale, (SECOND + 1) * scale])
    return TableSource(path=folder, timestamp_unit=unit)


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_every_declared_unit_becomes_utc_microseconds(tmp_path: Path, unit: str, scale: int) -> None:
    """1,650,000,000 s = 1,650,000,000 * 10^6 us, whichever unit the file uses."""
    raw = simple(tmp_path, unit, scale).read(seed=0)
    assert raw.interactions.collect()["timestamp"].to_list() == [SECOND * 10**6, (SECOND + 1) * 10**6]


def test_datetimes_and_iso_text_are_utc(tmp_path: Path) -> None:
    """2022-05-01 00:00 UTC is 1,651,363,200 s after 1970."""
    write(tmp_path, user_id=[7], item_id=[1], timestamp=[datetime(2022, 5, 1)])
    assert (
        TableSource(path=tmp_path, timestamp_unit="datetime").read(0).interactions.collect()["timestamp"][0]
        == 1651363200 * 10**6
    )
    csv = tmp_path / "log.csv"
    csv.write_text("user_id,item_id,timestamp\nu7,i1,2022-05-01T02:00:00+02:00\n")
    raw = TableSource(path=csv, timestamp_unit="datetime").read(0)
    assert raw.interactions.collect()["timestamp"][0] == 1651363200 * 10**6
    assert raw.interactions.collect()["user_id"][0] == "u7"


@pytest.mark.parametrize(("declared", "true_unit", "scale"), [("s", "ms", 1000), ("ms", "s", 1), ("s", "us", 10**6)])
def test_a_wrong_unit_is_refused_and_the_right_one_named(
    tmp_path: Path, declared: str, true_unit: str, scale: int
) -> None:
    simple(tmp_path, scale=scale)
    with pytest.raises(DataError, match=f"timestamps in the wrong unit.*declare timestamp_unit: {true_unit}"):
        TableSource(path=tmp_path, timestamp_unit=declared).read(0).interactions.collect()


def test_missing_column_names_the_closest_and_all_that_exist(tmp_path: Path) -> None:
    write(tmp_path, userid=[7], item_id=[1], timestamp=[SECOND])
    with pytest.raises(
        DataError, match=r"missing column 'user_id'.*did you mean 'userid'\? columns there: userid, item_id"
    ):
        TableSource(path=tmp_path, timestamp_unit="s").read(0)


def test_truncated_parquet_is_refused_and_so_is_a_malformed_line(tmp_path: Path) -> None:
    source = simple(tmp_path)
    file = tmp_path / "interactions.parquet"
    whole = file.read_bytes()
    for length in (0, 3, 40, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"interactions.parquet' (cannot be read.*fetch it again|is empty)"):
            source.read(0).interactions.collect()
    csv = tmp_path / "log.csv"
    csv.write_text("user_id,item_id,timestamp\n1,2,1650000000\n1,2,3,4,5\n")
    events = TableSource(path=csv, timestamp_unit="s").read(0).interactions.collect()
    assert events["refused"].to_list() == [None, "too many fields"]
    assert events["raw"].to_list() == [None, "1,2,3,4,5"]


def test_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"files there: log\.parquet"):
        TableSource(path=tmp_path, timestamp_unit="s").read(0)


def test_float_ids_and_mixed_id_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path, user_id=[7.0], item_id=[1], timestamp=[SECOND])
    with pytest.raises(DataError, match=r"'user_id' is Float64, expected integers or text"):
        TableSource(path=tmp_path, timestamp_unit="s").read(0)
    simple(tmp_path)
    pl.DataFrame({"item_id": ["1"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="the ids would never meet"):
        TableSource(path=tmp_path, timestamp_unit="s", items="items.parquet").read(0)


def test_signals_thresholds_and_watch_units(tmp_path: Path) -> None:
    """Rating 4 of threshold 4 is liked, 3 is not; 1.5 s watched are 1500 ms; NaN is not known."""
    write(
        tmp_path,
        user_id=[7, 7, 7],
        item_id=[1, 2, 3],
        timestamp=[SECOND] * 3,
        rating=[4.0, 3.0, float("nan")],
        kind=["buy", "view", "buy"],
        seconds=[1.5, 0.0, 2.0],
        length=[3.0, 3.0, 3.0],
    )
    raw = TableSource(
        path=tmp_path,
        timestamp_unit="s",
        columns={"watch_time": "seconds", "duration": "length"},
        watch_unit="s",
        signals=[
            {"name": "liked", "column": "rating", "at_least": 4},
            {"name": "bought", "column": "kind", "equals": "buy"},
        ],
        positive=["liked"],
    ).read(0)
    assert raw.interactions.collect()["liked"].to_list() == [True, False, None]
    assert raw.interactions.collect()["bought"].to_list() == [True, False, True]
    assert raw.interactions.collect()["watch_time_ms"].to_list() == [1500.0, 0.0, 2000.0]


def test_configuration_refusals() -> None:
    with pytest.raises(ValidationError, match="positive names"):
        TableSource(path="x", timestamp_unit="s", positive=["liked"])
    with pytest.raises(ValidationError, match="the events have no order"):
        TableSource(path="x", timestamp_unit="none")
    with pytest.raises(ValidationError, match="is a column of ours"):
        Signal(name="item_id", column="x")
    with pytest.raises(ValidationError, match="timestamp_unit"):
        TableSource(path="x")  # never guessed


def test_brand_and_category_path_come_apart_without_a_separate_brand_column() -> None:
    """'Skin Care' stands behind a brand in item 1, so in item 2 it is a category and no brand; 'Unknown' is neither."""
    table = pl.DataFrame(
        {"item_id": [1, 2, 3], "attributes": [["OPI", "Skin Care"], ["Skin Care", "Face"], ["Unknown", "Face"]]}
    )
    columns = ItemColumns(
        categories=[{"column": "attributes", "take": "trailing"}],
        author=[
            {"column": "brand", "optional": True},
            {"column": "attributes", "take": "leading", "missing": ["Unknown"]},
        ],
        text=["attributes"],
    )
    items, absent = canonical_items(table, columns, "items.parquet")
    assert items["author_id"].to_list() == ["OPI", None, None]
    assert items["categories"].to_list() == [["Skin Care"], ["Skin Care", "Face"], ["Face"]]
    assert items["text"].to_list()[0] == "OPI, Skin Care"
    assert absent == ["brand"]


def test_an_obligatory_metadata_column_must_exist_and_alternatives_fall_through() -> None:
    table = pl.DataFrame({"item_id": [1], "genres": ["Drama|War"], "empty": [None]})
    with pytest.raises(DataError, match=r"missing metadata column 'genre'.*did you mean 'genres'"):
        canonical_items(table, ItemColumns(categories=["genre"]), "items.parquet")
    columns = ItemColumns(categories=["empty", {"column": "genres", "separator": "|"}])
    items, _ = canonical_items(table, columns, "items.parquet")
    assert items["categories"].to_list() == [["Drama", "War"]]


def test_recbole_files_read_like_the_same_table(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy.inter").write_text(
        f"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu7\ti1\t4\t{SECOND}\nu7\ti2\t1\t{SECOND + 1}\n"
    )
    (folder / "toy.item").write_text("item_id:token\ttitle:token_seq\tclass:token_seq\ni1\tA film\tDrama War\n")
    source = RecBoleSource(
        path=folder,
        timestamp_unit="s",
        signals=[{"name": "liked", "column": "rating", "at_least": 3}],
        item_columns={"categories": ["class"]},
    )
    raw = source.read(0)
    assert raw.interactions.collect().select("user_id", "item_id", "timestamp", "liked").rows() == [
        ("u7", "i1", SECOND * 10**6, True),
        ("u7", "i2", (SECOND + 1) * 10**6, False),
    ]
    assert raw.items is not None
    assert raw.items["categories"].to_list() == [["Drama", "War"]]
    (folder / "toy.inter").write_text("user_id\titem_id\n1\t2\n")
    with pytest.raises(DataError, match="is not 'name:type'"):
        source.read(0)


def test_fingerprint_follows_the_bytes_only(tmp_path: Path) -> None:
    source = simple(tmp_path)
    before = source.fingerprint()
    file = tmp_path / "interactions.parquet"
    file.touch()
    assert source.fingerprint() == before
    write(tmp_path, user_id=[7], item_id=[2], timestamp=[SECOND])
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"item_columns": {"title": ["name"]}}, "no table of items; set source.items"),
        ({"item_columns": {"author": ["brand"]}}, "no table of items; set source.items"),
        ({"user_columns": ["age"]}, "no table of users; set source.users"),
        ({"users": "u.csv", "user_columns": ["user_index"]}, "'user_index', which is a column of ours"),
        (
            {"users": "u.csv", "user_id_column": "uid", "user_columns": ["user_id"]},
            "'user_id', which is a column of ours",
        ),
        ({"columns": {"user_id": "item_id"}}, "columns.user_id and columns.item_id both name 'item_id'"),
        ({"columns": {"timestamp": "user_id"}}, "columns.user_id and columns.timestamp both name 'user_id'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, declared: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TableSource(path=tmp_path, timestamp_unit="s", **declared)
