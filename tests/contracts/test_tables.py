"""Tables that do not keep their schema: each is refused by whoever opens or reads it, and the message says what to mend."""

import re

import numpy as np
import polars as pl
import pytest

from recsys.contracts.columns import TEST, VALID, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.contracts.table_checks import read_table
from recsys.contracts.tables import (
    DATASET_TABLES,
    ComparisonsTable,
    CurvesTable,
    EventsTable,
    MetricsTable,
    PerUserTable,
    SemanticIdsTable,
    SessionsTable,
    StepCurvesTable,
)
from tests.toy.dataset import ring_prepared

USERS, ITEMS = 4, 5
AGAIN = "run `prepare` again"


@pytest.fixture
def folder(tmp_path):
    """Four users of 9 or 8 events (36 in all, as none has walked the ring of 5 twice) with all five tables."""
    ring_prepared(tmp_path, users=USERS, items=ITEMS, events=9)
    pl.DataFrame(
        {
            Columns.USER_INDEX: [0, 0, 1, 3],
            Columns.ITEM_INDEX: [4, 0, 2, 1],
            Columns.TIMESTAMP: [None, 7, 8, 9],
            Columns.SESSION_INDEX: [0, 0, 1, 2],
            Columns.SPLIT: [0, 0, 1, 2],
            Columns.POSITIVE: [True, False, True, True],
            Columns.BEHAVIOUR: [1, 0, 1, 1],
            Columns.WATCH_RATIO: [None, 0.5, 1.0, None],
        },
        schema=types(EventsTable),
    ).write_parquet(tmp_path / "events.parquet")
    pl.DataFrame(
        {
            Columns.SESSION_INDEX: [0, 1, 2],
            Columns.USER_INDEX: [0, 1, 3],
            Columns.EVENT_START: [0, 2, 3],
            Columns.EVENT_END: [2, 3, 4],
            Columns.SPLIT: [0, 1, 2],
        },
        schema=types(SessionsTable),
    ).write_parquet(tmp_path / "sessions.parquet")
    return tmp_path


def types(table):
    return {name: column.dtype for name, column in table.columns().items()}


def change(path, **columns):
    """Rewrite a table with some columns replaced; a list is given its column's type, ``None`` drops the column."""
    frame = pl.read_parquet(path)
    for name, value in columns.items():
        if value is None:
            frame = frame.drop(name)
        elif isinstance(value, list):
            frame = frame.with_columns(pl.Series(name, value, dtype=frame.schema[name]))
        else:
            frame = frame.with_columns(value.alias(name))
    frame.write_parquet(path)


def read_all(folder):
    data = Dataset.open(folder)
    return data.items, data.users, data.events, data.sessions, data.targets(VALID), data.targets(TEST)


def test_good_tables_are_read_whole(folder):
    items, users, events, sessions, valid, test = read_all(folder)
    assert (len(items), len(users), len(events), len(sessions)) == (ITEMS, USERS, 4, 3)
    assert len(valid) == len(test) == USERS


def test_columns_beyond_the_schema_are_kept(folder):
    change(folder / "users.parquet", country=pl.lit("NL"))
    assert Dataset.open(folder).users.columns == ["user_index", "user_id", "country"]


def test_integer_ids_of_any_width_are_ids(folder):
    change(folder / "items.parquet", item_id=pl.int_range(pl.len(), dtype=pl.UInt16))
    assert Dataset.open(folder).items["item_id"].to_list() == [0, 1, 2, 3, 4]


WRONG_TYPES = {
    "index as text": (
        "items.parquet",
        {"item_index": pl.col("item_index").cast(pl.String)},
        "column 'item_index' is String, expected Int32",
    ),
    "missing column": ("items.parquet", {"train_count": None}, "column 'train_count' is missing, expected Int64"),
    "two faults": (
        "users.parquet",
        {"user_index": pl.col("user_index").cast(pl.Int64), "user_id": None},
        "column 'user_index' is Int64, expected Int32; column 'user_id' is missing, expected an integer or String",
    ),
    "ids as floats": (
        "users.parquet",
        {"user_id": pl.lit(1.5)},
        "column 'user_id' is Float64, expected an integer or String",
    ),
    "wrong type inside of lists": (
        "targets.parquet",
        {"targets": pl.col("targets").cast(pl.List(pl.Int64))},
        "column 'targets' is List(Int64), expected List(Int32)",
    ),
    "time as a date": (
        "events.parquet",
        {"timestamp": pl.col("timestamp").cast(pl.Datetime("us"))},
        "column 'timestamp' is Datetime(time_unit='us', time_zone=None), expected Int64",
    ),
    "flag as a number": (
        "events.parquet",
        {"positive": pl.col("positive").cast(pl.Int8)},
        "column 'positive' is Int8, expected Boolean",
    ),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_wrong_types_are_refused_on_opening(folder, case):
    name, changes, message = WRONG_TYPES[case]
    change(folder / name, **changes)
    with pytest.raises(ArtifactError, match=re.escape(f"{name}' does not keep its schema: {message}; {AGAIN}")):
        Dataset.open(folder)


WRONG_VALUES = {
    "null key": (
        "users.parquet",
        {"user_id": ["a", None, "b", None]},
        "column 'user_id' is null in 2 rows, expected a value",
    ),
    "rows out of order": (
        "items.parquet",
        {"item_index": [0, 2, 1, 3, 4]},
        "'item_index is the row number' does not hold in 2 rows, the first with item_index = 2",
    ),
    "negative count": (
        "items.parquet",
        {"train_count": [1, -1, 1, 1, -2]},
        "column 'train_count' holds -1 (2 rows out of range), expected from 0",
    ),
    "events not sorted by user": (
        "events.parquet",
        {"user_index": [1, 0, 2, 3]},
        "'rows are sorted by user_index' does not hold in 1 rows, the first with user_index = 0",
    ),
    "user beyond the last": (
        "events.parquet",
        {"user_index": [0, 0, 1, 4]},
        "column 'user_index' reaches 4, expected at most 3",
    ),
    "item beyond the last": (
        "events.parquet",
        {"item_index": [4, 0, 5, 1]},
        "column 'item_index' reaches 5, expected at most 4",
    ),
    "fourth split": (
        "events.parquet",
        {"split": [0, 0, 1, 3]},
        "column 'split' holds 3 (1 rows out of range), expected from 0 to 2",
    ),
    "not a number": (
        "events.parquet",
        {"watch_ratio": [None, 0.5, float("nan"), 1.0]},
        "column 'watch_ratio' is nan in 1 rows, expected a number or null",
    ),
    "session without events": (
        "sessions.parquet",
        {"event_end": [2, 2, 4]},
        "'event_end is after event_start' does not hold in 1 rows, the first with event_start = 2, event_end = 2",
    ),
    "history that ends before it starts": (
        "targets.parquet",
        {"history_end": pl.col("history_start") - 1},
        "'history_end is not before history_start' does not hold in 8 rows, the first with history_start = 0, "
        "history_end = -1",
    ),
    "history beyond the arrays": (
        "targets.parquet",
        {"history_end": pl.lit(37, pl.Int64)},
        "column 'history_end' reaches 37, expected at most 36",
    ),
    "target beyond the last item": (
        "targets.parquet",
        {"targets": [[0], [1], [2], [0, 5], [0], [1], [2], [3]]},
        "column 'targets' reaches 5, expected at most 4",
    ),
    "null inside of a list": (
        "targets.parquet",
        {"targets": [[0], [1, None], [2], [3], [0], [1], [2], [3]]},
        "column 'targets' is null inside of its lists in 1 rows, expected a value",
    ),
    "no rows": ("items.parquet", {}, "it has 0 rows, expected 5"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values_are_refused_on_reading(folder, case):
    name, changes, message = WRONG_VALUES[case]
    if changes:
        change(folder / name, **changes)
    else:
        pl.read_parquet(folder / name).clear().write_parquet(folder / name)
    with pytest.raises(ArtifactError, match=re.escape(message) + f".*{AGAIN}") as refused:
        read_all(folder)
    assert str(folder / name) in str(refused.value)


def test_every_broken_rule_is_told_at_once(folder):
    change(folder / "events.parquet", item_index=[4, None, 2, -1], split=[0, 0, 1, 9])
    with pytest.raises(ArtifactError) as refused:
        read_all(folder)
    for problem in ("'item_index' is null in 1 rows", "'item_index' holds -1", "'split' holds 9"):
        assert problem in str(refused.value)


def test_a_history_may_be_empty(folder):
    change(folder / "targets.parquet", history_end=pl.col("history_start"))
    targets = Dataset.open(folder).targets(TEST)
    assert targets.history_end.tolist() == targets.history_start.tolist()


def test_a_table_without_rows_is_a_table(folder):
    """A split may have no target; whoever needs one says so itself."""
    pl.read_parquet(folder / "targets.parquet").clear().write_parquet(folder / "targets.parquet")
    assert len(Dataset.open(folder).targets(TEST)) == 0


@pytest.mark.parametrize("name", DATASET_TABLES)
def test_a_damaged_file_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=f"{name}' cannot be read: .*; {AGAIN}"):
        Dataset.open(folder)


@pytest.mark.parametrize("name", DATASET_TABLES)
def test_a_missing_table_is_named_by_whoever_asks_for_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}' cannot be read: .*; {AGAIN}"):
        read_all(folder)


OFFSETS = {
    "negative": ("train_end", lambda a: np.where(np.arange(len(a)) == 2, -1, a), r"user 2 has start, .* \[18, -1, "),
    "not ascending": ("offsets", lambda a: np.array([0, 9, 8, 27, 36]), r"user 1 has start, .* \[9, 16, 17, 8\]"),
    "does not start at 0": ("offsets", lambda a: a + 1, r"offsets.npy goes from 1 to 37, expected from 0 to 36"),
    "too short": ("item", lambda a: a[:-1], r"behaviour.npy has 36 entries, expected 35 \(35 events, 4 users\)"),
    "other users": ("offsets", lambda a: a[:-1], r"offsets.npy has 4 entries, expected 5"),
    "a grid": ("gap", lambda a: a.reshape(6, 6), r"gap.npy' has shape \(6, 6\), expected one dimension"),
    "other type": ("item", lambda a: a.astype(np.int64), r"item.npy' holds int64, expected int32"),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_history_arrays_that_do_not_fit_together_are_refused(folder, case):
    name, damage, message = OFFSETS[case]
    path = folder / "history" / f"{name}.npy"
    array = np.load(path)
    np.save(path, damage(array).astype(array.dtype) if case != "other type" else damage(array))
    with pytest.raises(ArtifactError, match=f"{message}.*; {AGAIN}"):
        Dataset.open(folder)


def test_sizes_of_another_data_set_are_refused(folder):
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"num_users": 4', '"num_users": 5'))
    with pytest.raises(
        ArtifactError, match=r"holds the histories of 4 users, dataset.json says 5; run `prepare` again"
    ):
        Dataset.open(folder)


def test_a_curve_that_ran_off_is_still_a_curve(tmp_path):
    values = [0.5, float("nan"), float("inf"), None]
    pl.DataFrame({"step": range(4), "name": "loss", "value": values}).write_parquet(tmp_path / "curves.parquet")
    assert len(read_table(tmp_path / "curves.parquet", StepCurvesTable, "run `train` again")) == 4


def test_other_artefacts_say_their_own_way_out(tmp_path):
    pl.DataFrame({"system": ["a"], "exclude_seen": [1], "user_id": [7]}).write_parquet(tmp_path / "per_user.parquet")
    with pytest.raises(ArtifactError, match=r"'exclude_seen' is Int64, expected Boolean; run `evaluate` again"):
        read_table(tmp_path / "per_user.parquet", PerUserTable, "run `evaluate` again")
    pl.DataFrame({"step": [1], "value": [0.5]}).write_parquet(tmp_path / "curves.parquet")
    with pytest.raises(ArtifactError, match=r"'name' is missing, expected String; run `train` again"):
        read_table(tmp_path / "curves.parquet", CurvesTable, "run `train` again")


def test_a_slice_has_no_negative_number_of_rows(tmp_path):
    values = {
        "system": "a",
        "exclude_seen": True,
        "slice": "all",
        "metric": "hr@1",
        "mean": None,
        "low": None,
        "high": 0.1,
    }
    for rows in (0, -1):
        frame = pl.DataFrame([values | {"rows": rows}], schema=types(MetricsTable))
        frame.write_parquet(tmp_path / f"{rows}.parquet")
    assert len(read_table(tmp_path / "0.parquet", MetricsTable, AGAIN)) == 1
    with pytest.raises(ArtifactError, match=r"column 'rows' holds -1 \(1 rows out of range\), expected from 0"):
        read_table(tmp_path / "-1.parquet", MetricsTable, AGAIN)


OTHER_TABLES = (PerUserTable, MetricsTable, ComparisonsTable, StepCurvesTable, SemanticIdsTable)


@pytest.mark.parametrize("table", [*DATASET_TABLES.values(), *OTHER_TABLES])
def test_every_column_is_a_named_one_with_a_word_on_it(table):
    names = {value for key, value in vars(Columns).items() if key.isupper()}
    assert set(table.column_names()) <= names
    assert all(column.description for column in table.columns().values())
