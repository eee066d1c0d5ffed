"""RecBole's atomic files: exact lines, what RecBole's own reader (pandas) makes of them, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.build import FeaturesConfig, prepare
from features.sources import RecBoleSource, TableSource
from pipelines.cli.app import main
from pipelines.datasets.recbole import export_recbole
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError

START = 1_650_000_000_000_000
LEAVE_LAST_OUT = FeaturesConfig.model_validate({"split": {"kind": "leave_last_out"}})


def events(**more: list[Any]) -> pl.DataFrame:
    """User a takes i1 to i4 a second and some microseconds apart, user b takes i4 to i1."""
    times = [START, START + 1_000_000, START + 2_000_001, START + 3_500_000]
    return pl.DataFrame(
        {
            "user_id": ["a"] * 4 + ["b"] * 4,
            "item_id": ["i1", "i2", "i3", "i4", "i4", "i3", "i2", "i1"],
            "timestamp": times + times,
            **more,
        }
    )


def prepared(folder: Path, log: pl.DataFrame, items: pl.DataFrame | None = None, **source: Any) -> Dataset:
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    log.write_parquet(folder / "raw" / "interactions.parquet")
    if items is not None:
        items.write_parquet(folder / "raw" / "items.parquet")
        source |= {"items": "items.parquet"}
    opened = TableSource(path=folder / "raw", timestamp_unit="us", **source)
    (folder / "data").mkdir(exist_ok=True)
    prepare(opened, LEAVE_LAST_OUT, folder / "data", seed=0)
    return Dataset.open(folder / "data")


def as_recbole_reads(path: Path) -> pd.DataFrame:
    """RecBole 1.2, ``Dataset._load_feat``: names and types by the header, then pandas' Python engine."""
    fields = [field.split(":") for field in path.read_text().splitlines()[0].split("\t")]
    dtype = {f"{name}:{kind}": "float64" if kind == "float" else str for name, kind in fields}
    return pd.read_csv(path, delimiter="\t", dtype=dtype, engine="python")


def test_every_event_in_order_with_its_time_to_the_microsecond(tmp_path: Path) -> None:
    liked = {"name": "liked", "column": "liked"}
    log = events(liked=[True, None, True, True] * 2, ms=[1.5, 0.0, None, 3.0] * 2)
    data = prepared(tmp_path, log, signals=[liked], positive=["liked"], columns={"watch_time": "ms"})
    written = export_recbole(data, tmp_path / "toy")
    lines = (tmp_path / "toy" / "toy.inter").read_text().splitlines()
    assert lines[:5] == [
        "user_id:token\titem_id:token\tposition:float\ttimestamp:float\twatch_time_ms:float\tliked:float\tpositive:float",
        "a\ti1\t0.0\t1650000000\t1.5\t1.0\t1.0",
        "a\ti2\t1.0\t1650000001\t0.0\t\t0.0",
        "a\ti3\t2.0\t1650000002.000001\t\t1.0\t1.0",
        "a\ti4\t3.0\t1650000003.5\t3.0\t1.0\t1.0",
    ]
    assert written.rows == {"toy.inter": 8, "toy.item": 4, "toy.user": 2}
    told = yaml.safe_load((tmp_path / "toy" / "toy.yaml").read_text())
    assert told["TIME_FIELD"] == "position"
    assert told["val_interval"] == {"positive": "[1,1]"}
    assert told["eval_args"]["split"] == {"LS": "valid_and_test"}


def test_texts_that_would_break_a_line_are_mended_and_counted(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": ["i1", "i2", "i3", "i4"],
            "title": ['"Quoted" at the start', "tab\there\r\nand there", "  plain  ", "\u2028line"],
            "kind": [["Skin Care", "Face"], [], None, ['A "B"']],
        }
    )
    data = prepared(tmp_path, events(), items, item_columns={"title": ["title"], "categories": ["kind"]})
    written = export_recbole(data, tmp_path / "toy")
    lines = [line.split("\t") for line in (tmp_path / "toy" / "toy.item").read_text().splitlines()]
    assert lines[0] == ["item_id:token", "title:token_seq", "text:token_seq", "categories:token_seq", "author_id:token"]
    assert [line[1] for line in lines[1:]] == ["'Quoted' at the start", "tab here and there", "plain", "line"]
    assert [line[3] for line in lines[1:]] == ["Skin_Care Face", "", "", "A_'B'"]
    assert written.texts_changed == 2
    assert len(as_recbole_reads(tmp_path / "toy" / "toy.item")) == 4


def test_names_that_become_one_word_are_counted_and_named(tmp_path: Path) -> None:
    """Of the items' lists and of the users'; what stays alone is none of them."""
    kinds = [["Sci Fi", "Drama"], ["Sci_Fi", "Drama"], ['A "B"', "A_'B'"], ["Sci  Fi", None]]
    items = pl.DataFrame({"item_id": ["i1", "i2", "i3", "i4"], "kind": kinds})
    data = prepared(tmp_path, events(), items, item_columns={"categories": ["kind"]})
    written = export_recbole(data, tmp_path / "toy")
    assert written.names_made_one == {"A_'B'": ('A "B"', "A_'B'"), "Sci_Fi": ("Sci  Fi", "Sci Fi", "Sci_Fi")}
    assert written.texts_changed == 0
    plain = items.with_columns(kind=pl.Series([["Sci Fi"], ["Drama"], [], None]))
    (tmp_path / "plain").mkdir()
    one_each = prepared(tmp_path / "plain", events(), plain, item_columns={"categories": ["kind"]})
    assert export_recbole(one_each, tmp_path / "toy").names_made_one == {}


@pytest.mark.parametrize("bad", ["a\tb", "a\nb", "a\rb", '"a"', "a\u2028b"])
def test_ids_that_cannot_stand_in_a_file_are_refused(tmp_path: Path, bad: str) -> None:
    log = events().with_columns(pl.col("item_id").replace({"i2": bad}))
    with pytest.raises(DataError, match=r"item_id .* cannot stand in an atomic file"):
        export_recbole(prepared(tmp_path, log), tmp_path / "toy")


def test_ids_that_pandas_takes_for_missing_are_named(tmp_path: Path) -> None:
    """Our reader gives them back as they are; RecBole would drop their rows."""
    log = events().with_columns(pl.col("item_id").replace({"i2": "NA"}))
    assert export_recbole(prepared(tmp_path, log, null_values=[]), tmp_path / "toy").ids_read_as_missing == ("NA",)


def test_events_keep_the_split_they_were_prepared_with(tmp_path: Path) -> None:
    """Leave last out: i4 and i1 are test, the ones before validation, the first two train."""
    export_recbole(prepared(tmp_path, events()), tmp_path / "toy", benchmark="events")
    items = {
        name: [line.split("\t")[1] for line in (tmp_path / "toy" / f"toy.{name}.inter").read_text().splitlines()[1:]]
        for name in ("train", "valid", "test")
    }
    assert items == {"train": ["i1", "i2", "i4", "i3"], "valid": ["i3", "i2"], "test": ["i4", "i1"]}
    assert not (tmp_path / "toy" / "toy.inter").exists()
    assert yaml.safe_load((tmp_path / "toy" / "toy.yaml").read_text())["benchmark_filename"] == [
        "train",
        "valid",
        "test",
    ]


def test_a_benchmark_of_events_holds_positive_ones_alone(tmp_path: Path) -> None:
    """RecBole filters nothing when it reads a benchmark, so a dislike would be learned as a like."""
    log = events(liked=[True, False, True, True] * 2)
    signals = [{"name": "liked", "column": "liked"}]
    export_recbole(prepared(tmp_path, log, signals=signals, positive=["liked"]), tmp_path / "toy", benchmark="events")
    lines = [
        line
        for name in ("train", "valid", "test")
        for line in (tmp_path / "toy" / f"toy.{name}.inter").read_text().splitlines()[1:]
    ]
    assert sorted(line.split("\t")[1] for line in lines) == ["i1", "i1", "i2", "i3", "i4", "i4"]


def test_the_split_comes_back_and_prepares_to_the_same_data_set(tmp_path: Path) -> None:
    data = prepared(tmp_path, events())
    export_recbole(data, tmp_path / "toy", benchmark="events")
    back = RecBoleSource(
        path=tmp_path / "toy",
        timestamp_unit="s",
        benchmark_filename=["train", "valid", "test"],
        columns={"position": "position", "split": "split"},
    )
    (tmp_path / "again").mkdir()
    prepare(back, FeaturesConfig.model_validate({"split": {"kind": "given"}}), tmp_path / "again", seed=0)
    again = Dataset.open(tmp_path / "again")
    assert again.events.equals(data.events)
    assert again.items["item_id"].to_list() == data.items["item_id"].to_list()


def test_histories_are_the_items_before_each_target(tmp_path: Path) -> None:
    """A history holds two items at most; the first event of a user has none and is left out."""
    written = export_recbole(prepared(tmp_path, events()), tmp_path / "toy", benchmark="histories", max_history=2)
    assert (tmp_path / "toy" / "toy.test.inter").read_text().splitlines() == [
        "user_id:token\titem_id:token\titem_id_list:token_seq",
        "a\ti4\ti2 i3",
        "b\ti1\ti3 i2",
    ]
    assert (tmp_path / "toy" / "toy.train.inter").read_text().splitlines()[1:] == ["a\ti2\ti1", "b\ti3\ti4"]
    assert written.without_history == 2
    told = yaml.safe_load((tmp_path / "toy" / "toy.yaml").read_text())
    assert told["alias_of_item_id"] == ["item_id_list"]
    assert told["eval_args"]["order"] == "TO"
    assert told["load_col"]["inter"] == ["user_id", "item_id", "item_id_list"]


ids = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
logs = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u 3", "0007", "é\u4e2d"]),
        ids.filter(lambda text: not text.startswith('"')),
        st.integers(START, START + 10**13),
        st.sampled_from([True, False, None]),
    ),
    min_size=12,
    max_size=40,
    unique_by=lambda row: row[:3],
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=logs)
def test_what_is_exported_is_read_back(rows: list[tuple[str, str, int, bool | None]], tmp_path_factory: Any) -> None:
    """Ids as written, times to the microsecond, order, signals; and RecBole's reader counts the same rows."""
    folder = tmp_path_factory.mktemp("back")
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "liked"], orient="row")
    signals = [{"name": "liked", "column": "liked"}]
    features = FeaturesConfig.model_validate({"split": {"kind": "leave_last_out"}})
    log.write_parquet(folder / "interactions.parquet")
    source = TableSource(path=folder, timestamp_unit="us", signals=signals, null_values=[])
    (folder / "data").mkdir()
    try:
        prepare(source, features, folder / "data", seed=0)
    except DataError:  # no user has three events: nothing to evaluate
        return
    data = Dataset.open(folder / "data")
    export_recbole(data, folder / "toy")
    back = RecBoleSource(
        path=folder / "toy", timestamp_unit="s", signals=signals, columns={"position": "position"}, null_values=[]
    ).read(0)
    columns = ["user_id", "item_id", "timestamp", "liked"]
    stamped = data.events.with_columns(
        data.users["user_id"].gather(data.events["user_index"]).alias("user_id"),
        data.items["item_id"].gather(data.events["item_index"]).alias("item_id"),
        pl.col("timestamp").cast(pl.Int64),
    ).select(columns)
    found = back.interactions.collect()
    assert found["refused"].null_count() == len(found)
    assert found.select(columns).equals(stamped)
    assert len(as_recbole_reads(folder / "toy" / "toy.inter")) == len(stamped)


def test_items_and_users_come_back(tmp_path: Path) -> None:
    """Titles and texts whole, categories as a list, blanks inside a category aside."""
    items = pl.DataFrame(
        {
            "item_id": ["i1", "i2", "i3", "i4"],
            "title": ["A long film (1995)", "B", None, "D"],
            "about": ["it is long", None, "x", "y"],
            "kind": [["Drama", "War"], ["Drama"], None, []],
            "brand": ["Big Studio", None, "b", "b"],
        }
    )
    columns = {"title": ["title"], "text": ["about"], "categories": ["kind"], "author": ["brand"]}
    data = prepared(tmp_path, events(), items, item_columns=columns)
    export_recbole(data, tmp_path / "toy")
    mapped = {"title": ["title"], "text": ["text"], "categories": ["categories"], "author": ["author_id"]}
    back = RecBoleSource(path=tmp_path / "toy", timestamp_unit="s", item_columns=mapped).read(0)
    names = ["item_id", "title", "text", "categories", "author_id"]
    assert back.items is not None
    assert back.items.select(names).equals(data.items.select(names))
    assert back.users is not None
    assert back.users["user_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize("odd", ['a"b', 'a"', "a'b", "a b", "#a", "-", "a,b", "a:token", "\u00fc", "a\\"])
def test_an_odd_id_is_the_same_in_all_three_files(tmp_path: Path, odd: str) -> None:
    """What belongs to a user or an item is found again, here and by RecBole's own reader."""
    log = events().with_columns(pl.col("user_id").replace("a", odd), pl.col("item_id").replace("i1", odd))
    items = pl.DataFrame({"item_id": [odd, "i2", "i3", "i4"], "title": ["one", "two", "three", "four"]})
    data = prepared(tmp_path, log, items, item_columns={"title": ["title"]})
    written = export_recbole(data, tmp_path / "toy")
    assert written.texts_changed == 0
    back = RecBoleSource(path=tmp_path / "toy", timestamp_unit="s", item_columns={"title": ["title"]}).read(0)
    assert back.items is not None
    assert back.users is not None
    assert back.items.filter(pl.col("item_id") == odd)["title"].to_list() == ["one"]
    assert odd in back.users["user_id"].to_list()
    found = back.interactions.collect()
    assert (found["user_id"] == odd).sum() == 4
    assert (found["item_id"] == odd).sum() == 2
    for file, column in (("inter", "item_id"), ("item", "item_id"), ("inter", "user_id"), ("user", "user_id")):
        assert odd in as_recbole_reads(tmp_path / "toy" / f"toy.{file}")[f"{column}:token"].tolist()


def test_a_log_without_times_is_written_in_its_order(tmp_path: Path) -> None:
    log = events().drop("timestamp").with_columns(place=pl.Series([3, 2, 1, 0] * 2))
    (tmp_path / "raw").mkdir()
    log.write_parquet(tmp_path / "raw" / "interactions.parquet")
    source = TableSource(path=tmp_path / "raw", timestamp_unit="none", columns={"position": "place"})
    (tmp_path / "data").mkdir()
    prepare(source, LEAVE_LAST_OUT, tmp_path / "data", seed=0)
    written = export_recbole(Dataset.open(tmp_path / "data"), tmp_path / "toy")
    lines = (tmp_path / "toy" / "toy.inter").read_text().splitlines()
    assert lines[:3] == ["user_id:token\titem_id:token\tposition:float", "a\ti4\t0.0", "a\ti3\t1.0"]
    assert written.without_time == 8


def test_items_with_blanks_in_their_ids_have_no_histories(tmp_path: Path) -> None:
    data = prepared(tmp_path, events().with_columns(pl.col("item_id").replace({"i2": "i 2"})))
    export_recbole(data, tmp_path / "toy")
    with pytest.raises(DataError, match="holds a blank"):
        export_recbole(data, tmp_path / "toy", benchmark="histories")


def test_attributes_of_users_keep_numbers_and_texts(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    users = pl.DataFrame({"user_id": ["a", "b"], "age": [30, 40], "height": [1.5, None], "zip": ["00123", 'x"y']})
    users.write_parquet(tmp_path / "raw" / "users.parquet")
    data = prepared(tmp_path, events(), users="users.parquet", user_columns=["age", "height", "zip"])
    export_recbole(data, tmp_path / "toy")
    assert (tmp_path / "toy" / "toy.user").read_text().splitlines() == [
        "user_id:token\tage:token\theight:float\tzip:token",
        "a\t30\t1.5\t00123",
        "b\t40\t\tx'y",
    ]


def test_the_verb_prepares_writes_and_says_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [["Sci Fi"], ["Sci_Fi"], None, []]
    items = pl.DataFrame({"item_id": ["i1", "i2", "i3", "i4"], "title": ["a\tb", "c", "d", "e"], "kind": kinds})
    events().write_parquet(tmp_path / "interactions.parquet")
    items.write_parquet(tmp_path / "items.parquet")
    recipe = {
        "source": {
            "kind": "table",
            "path": str(tmp_path),
            "timestamp_unit": "us",
            "items": "items.parquet",
            "item_columns": {"title": ["title"], "categories": ["kind"]},
        },
        "features": {"split": {"kind": "leave_last_out"}},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = ["export-recbole", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "toy")]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--progress", "off"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "toy.inter: 8 rows" in printed
    assert "were replaced: 1" in printed
    assert "stand for several names, such as 'Sci_Fi' for 'Sci Fi', 'Sci_Fi': 1\n" in printed
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--benchmark", "sequences"])
    assert end.value.code == 2
