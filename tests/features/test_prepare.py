"""The whole stage: what is written keeps the contract, adds up, and never lets a history see its targets."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.build import FeaturesConfig, foresee, prepare
from features.histories import event_watch_ratio
from features.items import ItemsConfig, build_item_table, frequency_index
from features.log.signal_bits import behaviour_bytes
from features.sources import SimulatedSource, TableSource
from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.tables import DATASET_TABLES
from tests.toy.logs import log_of

DAY = 86_400
START = 1_650_000_000
SMALL = SimulatedSource(users=60, items=80, events=3000, topics=4)


def table_source(folder: Path, rows: dict[str, list[Any]], **options: Any) -> TableSource:
    pl.DataFrame(rows).write_parquet(folder / "interactions.parquet")
    return TableSource(path=folder, **({"timestamp_unit": "s"} | options))


def five_events(folder: Path) -> TableSource:
    """User 7 with five events, item 30 twice; user 8 with two."""
    return table_source(
        folder,
        {
            "user_id": [7, 7, 7, 7, 7, 8, 8],
            "item_id": [10, 20, 30, 40, 30, 10, 20],
            "timestamp": [START + k * DAY for k in range(5)] + [START, START + DAY],
        },
    )


def test_user_7_by_hand(tmp_path: Path) -> None:
    """Leave-last-out: history 10 20 30 -> 40 (valid), history 10 20 30 40 -> 30 (test); user 8 has too few."""
    config = FeaturesConfig(split={"kind": "leave_last_out"})
    report = prepare(five_events(tmp_path), config, tmp_path / "out", seed=0)
    data = Dataset.open(tmp_path / "out")
    item_id = data.items["item_id"].to_numpy()
    assert item_id.tolist() == [10, 20, 30, 40]
    assert data.users["user_id"].to_list() == [7, 8]
    assert item_id[data.history.item].tolist() == [10, 20, 30, 40, 30, 10, 20]
    assert data.history.offsets.tolist() == [0, 5, 7]
    assert data.history.train_end.tolist() == [3, 7]
    assert data.history.valid_end.tolist() == [4, 7]
    # 86,400 s: 2 + floor(log2(86400)) = 18
    assert data.history.gap.tolist() == [0, 18, 18, 18, 18, 0, 18]
    valid, test = data.targets(VALID), data.targets(TEST)
    assert (valid.history_start.tolist(), valid.history_end.tolist()) == ([0], [3])
    assert (item_id[valid.items].tolist(), item_id[test.items].tolist()) == ([40], [30])
    assert test.history_end.tolist() == [4]
    assert len(data.targets(TRAIN)) == 0
    assert data.items["train_count"].to_list() == [2, 2, 1, 0]
    assert report["positive_events_per_split"] == {"train": 5, "valid": 1, "test": 1}


def test_session_rows_by_hand(tmp_path: Path) -> None:
    """Session 1 has items a b c a d (a repeated): rows of two are [a b] and [c d]; session 2 has e: row [e]."""
    minute = 60
    times = [0, 1, 2, 3, 4, 100]
    rows = {
        "user_id": [7] * 8,
        "item_id": [1, 2, 3, 1, 4, 5, 1, 2],
        "timestamp": [START + t * minute for t in times] + [START + 10 * DAY, START + 20 * DAY],
    }
    config = FeaturesConfig(
        task="session",
        session_length=2,
        split={"valid_from": "2022-04-20", "test_from": "2022-04-30"},
    )
    prepare(table_source(tmp_path, rows), config, tmp_path / "out", seed=0)
    data = Dataset.open(tmp_path / "out")
    train = data.targets(TRAIN)
    item_id = data.items["item_id"].to_numpy()
    pieces = [item_id[p].tolist() for p in np.split(train.items, train.item_offsets[1:-1])]
    assert pieces == [[1, 2], [3, 4], [5]]
    assert train.history_end.tolist() == [0, 2, 5]
    strict = FeaturesConfig(**{**config.model_dump(), "sessions": {"min_positive": 2}})
    prepare(table_source(tmp_path, rows), strict, tmp_path / "out2", seed=0)
    assert len(Dataset.open(tmp_path / "out2").targets(TRAIN)) == 2


def test_everything_adds_up_and_keeps_the_schema(tmp_path: Path) -> None:
    """Rows in = quarantined + merged + removed by the k-core + kept, with all four at work."""
    world, log = SMALL.simulate(1)
    del world
    rows = log.drop("row", "prehistory").with_columns(timestamp=pl.col("timestamp") // 1_000_000)
    rows = pl.concat([rows, rows.head(20), rows.tail(15).with_columns(user_id=pl.lit(None, pl.Int64))])
    rows.write_parquet(tmp_path / "interactions.parquet")
    source = TableSource(
        path=tmp_path,
        timestamp_unit="s",
        columns={"session_id": "session_id", "watch_time": "watch_time_ms", "duration": "duration_ms"},
        signals=[{"name": n, "column": n} for n in ("long_view", "like")],
        positive=["long_view", "like"],
    )
    config = FeaturesConfig(task="session", session_length=3, k_core={"user": 5, "item": 4})
    report = prepare(source, config, tmp_path / "out", seed=0)
    assert report["quarantined"] == {"null user_id": 15}
    assert report["merged"] == 20
    assert report["k_core_removed"] > 0
    assert report["rows_in"] == 35 + report["k_core_removed"] + report["kept"]
    data = Dataset.open(tmp_path / "out")
    assert len(data.events) == report["kept"] == sum(report["events_per_split"].values())
    assert len(pl.read_parquet(tmp_path / "out" / "quarantine.parquet")) == 15
    assert len(pl.read_parquet(tmp_path / "out" / "merged.parquet")) == 20
    assert json.loads((tmp_path / "out" / "data_report.json").read_text())["kept"] == report["kept"]
    for name, table in DATASET_TABLES.items():  # the declared columns come first, in the declared order
        written = pl.read_parquet(tmp_path / "out" / name)
        assert written.columns[: len(table.column_names())] == table.column_names()
    sessions = data.sessions
    assert data.events["watch_time_ms"].dtype == pl.Float32
    assert data.events["like"].dtype == pl.Boolean
    # sessions tile the events, and each has one user and one split
    assert sessions["event_start"].to_list() == [0, *sessions["event_end"].to_list()[:-1]]
    per_session = data.events.group_by("session_index").agg(
        pl.col("user_index").n_unique(), pl.col("split").n_unique().alias("splits")
    )
    assert per_session["user_index"].max() == per_session["splits"].max() == 1
    kept_users = np.diff(data.history.offsets)
    assert kept_users.min() >= 5


@pytest.mark.parametrize("task", ["next_item", "session"])
@pytest.mark.parametrize("kind", ["global_temporal", "leave_last_out"])
def test_no_history_reaches_its_targets(tmp_path: Path, task: str, kind: str) -> None:
    """Targets are exactly the distinct items after the history and inside the window, and train is the prefix."""
    config = FeaturesConfig(task=task, session_length=1 if task == "next_item" else 4, split={"kind": kind})
    prepare(SMALL, config, tmp_path, seed=5)
    data = Dataset.open(tmp_path)
    history = data.history
    positive = data.events.filter("positive")
    assert np.array_equal(positive["item_index"].to_numpy(), history.item)
    split = positive["split"].to_numpy()
    for user in range(data.spec.num_users):
        start, train_end, valid_end, end = (
            int(a)
            for a in (
                history.offsets[user],
                history.train_end[user],
                history.valid_end[user],
                history.offsets[user + 1],
            )
        )
        assert start <= train_end <= valid_end <= end
        expected = [TRAIN] * (train_end - start) + [VALID] * (valid_end - train_end) + [TEST] * (end - valid_end)
        assert split[start:end].tolist() == expected
        assert (np.diff(history.timestamp[start:end]) >= 0).all()
    for code, lower, upper in (
        (VALID, history.train_end, history.valid_end),
        (TEST, history.valid_end, history.offsets[1:]),
    ):
        targets = data.targets(code)
        assert np.array_equal(targets.history_end, lower[targets.user_index])
        assert np.array_equal(targets.history_start, history.offsets[targets.user_index])
        for row, user in enumerate(targets.user_index):
            wanted = list(dict.fromkeys(history.item[lower[user] : upper[user]].tolist()))
            assert targets.items[targets.item_offsets[row] : targets.item_offsets[row + 1]].tolist() == wanted
    train = data.targets(TRAIN)
    assert (len(train) > 0) == (task == "session")
    assert (np.diff(train.item_offsets) <= config.session_length).all()
    assert (train.history_end < history.train_end[train.user_index]).all()
    if kind == "global_temporal":
        assert (
            positive.filter(pl.col("split") == TRAIN)["timestamp"].max()
            < positive.filter(pl.col("split") == TEST)["timestamp"].min()
        )


def test_prehistory_is_train_and_its_unknown_signals_count_as_no(tmp_path: Path) -> None:
    """Five earlier positives in chunks of two: rows [1 2], [3 4], [5]; the time gap to the first timed event is unknown."""
    pl.DataFrame(
        {"user_id": [7] * 5, "item_id": [1, 2, 3, 4, 5], "position": [0, 1, 2, 3, 4], "liked": [1] * 5}
    ).write_parquet(tmp_path / "earlier.parquet")
    source = table_source(
        tmp_path,
        {
            "user_id": [7, 7, 7],
            "item_id": [6, 7, 8],
            "timestamp": [START, START + DAY, START + 2 * DAY],
            "is_like": [1, 0, 1],
            "is_share": [1, 1, 0],
        },
        signals=[{"name": "like", "column": "is_like"}, {"name": "share", "column": "is_share"}],
        prehistory={"file": "earlier.parquet", "signals": [{"name": "like", "column": "liked"}]},
    )
    config = FeaturesConfig(
        task="session", session_length=2, split={"valid_from": "2022-04-16", "test_from": "2022-04-17"}
    )
    report = prepare(source, config, tmp_path / "out", seed=0)
    data = Dataset.open(tmp_path / "out")
    assert data.items["item_id"].to_numpy()[data.history.item].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert data.history.behaviour.tolist() == [2] * 5 + [4, 3, 2]
    assert data.history.gap.tolist()[:7] == [0, 0, 0, 0, 0, 0, 18]
    assert np.asarray(data.history.timestamp).tolist()[4:6] == [-1, START * 10**6]
    assert data.targets(TRAIN).history_end.tolist() == [0, 2, 4, 5]
    assert (report["prehistory_events"], report["sessions"]["chunked_prehistory"]) == (5, True)
    assert data.events["timestamp"].null_count() == 5


def test_behaviour_and_watch_ratio_by_hand() -> None:
    """Signals (yes, unknown) give 1 + 1 = 2; both unknown give 0; 5 of 20 s are a quarter; of 0 s nothing is known.

    Nor of a duration that is next to nothing: 5 / 1e-44 is no number that a float32 holds.
    """
    log = log_of(
        {
            "user_id": [7, 7, 7],
            "item_id": [1, 2, 3],
            "timestamp": [START * 10**6] * 3,
            "a": [True, None, None],
            "b": pl.Series([None] * 3, dtype=pl.Boolean),
            "watch_time_ms": pl.Series([5.0, 5.0, 5.0], dtype=pl.Float32),
            "duration_ms": pl.Series([20.0, 0.0, 1e-44], dtype=pl.Float32),
        },
        ("a", "b"),
    )
    assert behaviour_bytes(log.signal_values, log.signal_known, 2).tolist() == [2, 0, 0]
    ratio = event_watch_ratio(log)
    assert ratio[0] == np.float32(0.25)
    assert np.isnan(ratio[1:]).all()


def test_items_without_metadata_and_cold_items() -> None:
    """Item 2 has no row, item 3 only blanks, item 9 no events, item 1 is listed twice: the first row counts."""
    items = pl.DataFrame(
        {
            "item_id": [9, 1, 1, 3],
            "title": ["nine", "one", "again", None],
            "text": pl.Series([None] * 4, dtype=pl.String),
            "categories": [["a", "x"], ["a", "y"], ["b"], None],
            "author_id": ["m", "m", "n", None],
        }
    )
    found = build_item_table(pl.Series([1, 2, 3]), items, ItemsConfig())
    assert found.table["has_metadata"].to_list() == [True, False, False]
    assert found.table["title"].to_list() == ["one", None, None]
    assert found.facts["catalogue_rows_without_events_left_out"] == 1
    assert found.facts["catalogue_rows_repeated"] == 1
    cold = build_item_table(pl.Series([1, 2, 3]), items, ItemsConfig(keep_items_without_events=True, category="first"))
    assert cold.table["item_id"].to_list() == [1, 2, 3, 9]
    assert cold.event_item_index.tolist() == [0, 1, 2]
    assert cold.table["category_index"].to_list() == [1, 0, 0, 1]
    assert cold.num_categories == 2


def test_frequent_values_get_small_numbers() -> None:
    """x three times, then a and b once each, by name."""
    index, count = frequency_index(pl.Series(["b", "x", "x", "a", "x", None]))
    assert (index.tolist(), count) == ([3, 1, 1, 2, 1, 0], 4)


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    config = FeaturesConfig(task="session", session_length=5)
    for name in ("a", "b"):
        prepare(SMALL, config, tmp_path / name, seed=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 32
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_order_of_rows_in_the_file_does_not_matter(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    rows = {
        "user_id": ["u7", "u8", "u7", "u8", "u7", "u8"],
        "item_id": ["c", "a", "b", "c", "a", "b"],
        "timestamp": [START + k * DAY for k in range(6)],
    }
    config = FeaturesConfig(split={"kind": "leave_last_out"})
    prepare(table_source(tmp_path / "a", rows), config, tmp_path / "out_a", seed=0)
    reverse = {name: values[::-1] for name, values in rows.items()}
    prepare(table_source(tmp_path / "b", reverse), config, tmp_path / "out_b", seed=0)
    for file in ("history/item.npy", "targets.parquet", "items.parquet", "events.parquet"):
        assert (tmp_path / "out_a" / file).read_bytes() == (tmp_path / "out_b" / file).read_bytes(), file


def test_refusals_with_their_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty split 'valid'.*features.split"):
        prepare(
            table_source(tmp_path, {"user_id": [7, 8], "item_id": [1, 1], "timestamp": [START, START + 1]}),
            FeaturesConfig(split={"kind": "leave_last_out"}),
            tmp_path / "out",
            seed=0,
        )
    assert not (tmp_path / "out").exists()  # refused before anything is written
    doubled = {"user_id": [7] * 10, "item_id": [1] * 10, "timestamp": [START] * 10}
    strict = FeaturesConfig(duplicates="drop")
    with pytest.raises(DataError, match=r"9 of 10 rows \(90.0%\).*duplicate: 9.*features.duplicates: keep"):
        prepare(table_source(tmp_path, doubled), strict, tmp_path / "out", seed=0)
    with pytest.raises(DataError, match="duplicate: 9"):
        foresee(table_source(tmp_path, doubled), strict, seed=0)
    assert foresee(five_events(tmp_path), FeaturesConfig(split={"kind": "leave_last_out"}), seed=0).report["kept"] == 7
    with pytest.raises(ValidationError, match="task next_item predicts 1 item"):
        FeaturesConfig(session_length=3)
    with pytest.raises(ValidationError, match="no training row could have so many"):
        FeaturesConfig(task="session", session_length=3, sessions={"min_positive": 4})


@pytest.mark.data
def test_beauty_has_the_published_counts(tmp_path: Path) -> None:
    root = os.environ.get("RECSYS_DATA")
    if not root:
        pytest.skip("RECSYS_DATA is not set")
    source = TableSource(
        path=Path(root) / "amazon14_beauty", timestamp_unit="none", columns={"position": "position", "split": "split"}
    )
    report = prepare(source, FeaturesConfig(split={"kind": "leave_last_out"}), tmp_path / "a", seed=0)
    assert (report["users"], report["items"], report["kept"]) == (22_363, 12_101, 198_502)
    # the published split is leave-last-out, so reading it must give the same targets
    prepare(source, FeaturesConfig(split={"kind": "given"}), tmp_path / "b", seed=0)
    for file in ("targets.parquet", "history/train_end.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_report_says_where_every_row_went_and_what_the_events_are_like(tmp_path: Path) -> None:
    """Two files: 8 rows of user 7, of which one is a repeat and four tie, and one row without a user; 2099 is the future."""
    future = 4_070_908_800  # 2099-01-01
    rows = {
        "user_id": [7] * 8,
        "item_id": [1, 1, 2, 3, 4, 5, 6, 8],
        "timestamp": [START, START, START, START, START, START, START + DAY, future],
        "liked": [0, 1, None, 0, 0, 1, 1, 1],
    }
    for name, part in (("part-2", pl.DataFrame(rows)), ("part-10", pl.DataFrame(rows).tail(1))):
        bad = part.with_columns(user_id=pl.lit(None, pl.Int64)) if name == "part-10" else part
        bad.write_parquet(tmp_path / f"{name}.parquet")
    source = TableSource(
        path=tmp_path, interactions="part-*.parquet", timestamp_unit="s", signals=[{"name": "liked", "column": "liked"}]
    )
    config = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 0.5})
    report = prepare(source, config, tmp_path / "out", seed=0)
    assert (report["rows_in"], report["merged"], report["kept"]) == (9, 1, 7)
    assert report["files"] == [
        {"file": "part-2.parquet", "rows_in": 8, "quarantined": 0},
        {"file": "part-10.parquet", "rows_in": 1, "quarantined": 1},
    ]
    assert report["ties"] == {"events": 4, "share": 0.571429, "by_file_order": 4, "by_file_order_share": 0.571429}
    assert report["signals"] == {"liked": {"true": 4, "false": 2, "not_known": 1}}
    assert (report["first_event"], report["last_event"]) == ("2022-04-15T05:20:00+00:00", "2099-01-01T00:00:00+00:00")
    assert report["future_events"] == 1
    assert any("57.1% of the events have the same time" in warning for warning in report["warnings"])
    assert any("1 events are later than now" in warning for warning in report["warnings"])
    strict = FeaturesConfig(**{**config.model_dump(), "quarantine": {"max_share": 0.5, "not_after": "2030-01-01"}})
    report = prepare(source, strict, tmp_path / "strict", seed=0)
    assert report["quarantined"] == {"null user_id": 1, "timestamp after 2030-01-01T00:00:00": 1}
    assert report["future_events"] == 0
