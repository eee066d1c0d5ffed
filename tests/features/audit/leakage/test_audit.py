"""Leaks planted one at a time in small data sets: each is found, counted and priced exactly, and sound data have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.audit.leakage.asked_rows import Arrays, asked_rows, most_frequent
from features.audit.leakage.audit import CHECKS, QUICK, AuditInputs, audit, mapped_columns
from features.audit.leakage.histories import successors
from features.audit.leakage.statistics import AGGREGATE
from features.build import FeaturesConfig, prepare
from features.sources import TableSource
from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import Artifact, Manifest

START = 1_650_000_000
DAY = 86_400
LAST_OUT = {"split": {"kind": "leave_last_out"}}


def data_of(folder: Path, rows: list[tuple[Any, ...]], features: dict[str, Any], **options: Any) -> Dataset:
    """Prepare rows of user, item, seconds after the start, and what else ``options`` name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["user_id", "item_id", "timestamp", *options.pop("names", [])]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("timestamp") + START)
    table.write_parquet(folder / "interactions.parquet")
    prepare(TableSource(path=folder, timestamp_unit="s", **options), FeaturesConfig(**features), folder / "out", seed=0)
    return Dataset.open(folder / "out")


def findings(dataset: Dataset, kind: str = "leave_last_out", **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Everything that was found, by code and split."""
    quick = options.pop("quick", False)
    found = audit(dataset, AuditInputs(split_kind=kind, **options), quick=quick)
    assert json.loads(json.dumps(found)) == found
    return {(finding["code"], finding["split"]): finding for finding in found["findings"]}


def sound_rows(users: int = 12) -> list[tuple[int, int, int]]:
    """Each user takes ten different items, one a day, no two events at the same second."""
    return [(user, (3 * user + 7 * step) % 80, step * DAY + user) for user in range(users) for step in range(10)]


@pytest.fixture
def sound(tmp_path: Path) -> Dataset:
    return data_of(tmp_path / "sound", sound_rows(), {"split": {"valid_share": 0.2, "test_share": 0.2}})


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("eval_rows", ["per_user", "per_event"])
def test_a_split_in_time_without_ties_and_repeats_has_nothing(tmp_path: Path, quick: bool, eval_rows: str) -> None:
    features = {"split": {"valid_share": 0.2, "test_share": 0.2}, "eval_rows": eval_rows}
    dataset = data_of(tmp_path, sound_rows(), features)
    assert findings(dataset, "global_temporal", quick=quick) == {}


def rewrite(dataset: Dataset, table: str, *expressions: pl.Expr) -> Dataset:
    """Change columns of a written table, and open the data set again."""
    path = dataset.path / table
    pl.read_parquet(path).with_columns(*expressions).write_parquet(path)
    return Dataset.open(dataset.path)


@pytest.mark.parametrize(("shift", "users"), [(1, 3), (2, 5), (1, 12)])
def test_histories_that_run_into_their_target(sound: Dataset, shift: int, users: int) -> None:
    """The first users' test histories end one or two events too late: the target itself is in them."""
    wrong = (pl.col("split") == TEST) & (pl.col("user_index") < users)
    ended = pl.when(wrong).then(pl.col("history_end") + shift).otherwise("history_end").alias("history_end")
    found = findings(rewrite(sound, "targets.parquet", ended), "global_temporal")[("future_events", "test")]
    assert (found["severity"], found["rows"], found["of"]) == ("severe", users, 12)
    assert found["hr_bound"] == found["hr_at_10"] == pytest.approx(users / 12, abs=1e-6)
    assert f"hold {users * shift} events" in found["words"]
    assert found["examples"] == ["0", "1", "2"]


def test_an_event_of_the_history_dated_after_the_target(sound: Dataset) -> None:
    """User 4's first event gets a date after everything: one row, one event, and its item is no right one."""
    times = np.array(sound.history.timestamp)
    times[sound.history.offsets[4]] = times.max() + 1
    np.save(sound.path / "history" / "timestamp.npy", times)
    found = findings(Dataset.open(sound.path), "global_temporal")
    for split in ("test", "valid"):
        assert found[("future_events", split)]["rows"] == 1
        assert found[("future_events", split)]["hr_at_10"] == 0.0
        assert found[("future_events", split)]["examples"] == ["4"]
    assert found[("train_after_target", "test")]["severity"] == "severe"


def test_rows_per_event_that_run_one_event_too_far(tmp_path: Path) -> None:
    """Two test rows per user; only the second one of user 0 looks at its own target."""
    features = {"split": {"valid_share": 0.2, "test_share": 0.2}, "eval_rows": "per_event"}
    dataset = data_of(tmp_path, sound_rows(), features)
    number = pl.int_range(pl.len()).over("split", "user_index")
    wrong = (pl.col("split") == TEST) & (pl.col("user_index") == 0) & (number == 1)
    ended = pl.when(wrong).then(pl.col("history_end") + 1).otherwise("history_end").alias("history_end")
    found = findings(rewrite(dataset, "targets.parquet", ended), "global_temporal")
    assert found[("future_events", "test")]["rows"] == 1
    assert found[("future_events", "test")]["of"] == 24


def tied_rows() -> list[tuple[int, int, int]]:
    """Users 0-2: the last two events at one instant. In training 8 -> 9 is a tie of users 3-7; users 0, 1 go 8 -> 9 too."""
    rows = [(user, 10 * user + 20 + step, step * DAY + user) for user in range(8) for step in range(3)]
    for user in range(8):
        at = 3 * DAY + user
        if user < 3:
            last = [(8, at), (9 if user < 2 else 1, at)]
        else:
            last = [(8, at), (9, at), (10 * user + 50, at + 2 * DAY), (10 * user + 51, at + 3 * DAY)]
        rows += [(user, item, time) for item, time in last]
    return rows


def test_ties_are_counted_and_priced(tmp_path: Path) -> None:
    """Three of eight test rows tie; 8 events of 50 tie with the one before; 8 -> 9 is a train tie, which hits two rows."""
    dataset = data_of(tmp_path, tied_rows(), LAST_OUT)
    found = findings(dataset)[("ties", "test")]
    assert (found["rows"], found["of"], found["severity"]) == (3, 8, "warning")
    assert (found["hr_bound"], found["hr_at_10"]) == (3 / 8, 2 / 8)
    assert "as 8 of all 50 events" in found["words"]
    quick = findings(dataset, quick=True)[("ties", "test")]
    assert (quick["rows"], quick["hr_at_10"]) == (3, None)


def test_the_same_event_on_both_sides(tmp_path: Path) -> None:
    """User 0's test event stands in train as well, and user 1's; user 2 took the same item at another time: no leak."""
    rows = [(user, 10 * user + step, step * DAY + user, "train") for user in range(6) for step in range(3)]
    rows += [(user, 70 + user, 5 * DAY + user, "valid") for user in range(6)]
    rows += [(user, 80 + user, 6 * DAY + user, "test") for user in range(6)]
    rows += [(0, 80, 6 * DAY, "train"), (1, 81, 6 * DAY + 1, "train"), (2, 82, 4 * DAY, "train")]
    folder = tmp_path / "both"
    with pytest.raises(Exception, match="not in order of time"):
        data_of(
            folder,
            rows,
            {"split": {"kind": "given"}, "duplicates": "keep"},
            names=["split"],
            columns={"split": "split"},
        )
    # a split column that goes backwards is refused where rows are read; here it is in the arrays
    dataset = data_of(
        tmp_path / "planted", rows[:-3], {"split": {"kind": "given"}}, names=["split"], columns={"split": "split"}
    )
    times = np.array(dataset.history.timestamp)
    items = np.load(dataset.path / "history" / "item.npy")
    for user in (0, 1):  # the second train event of both becomes a copy of the test event
        first, last = dataset.history.offsets[user] + 1, dataset.history.offsets[user + 1] - 1
        times[first], items[first] = times[last], items[last]
    np.save(dataset.path / "history" / "timestamp.npy", times)
    np.save(dataset.path / "history" / "item.npy", items)
    found = findings(Dataset.open(dataset.path), "given")
    leak = found[("targets_in_training", "test")]
    assert (leak["rows"], leak["of"], leak["severity"]) == (2, 6, "severe")
    assert leak["hr_bound"] == leak["hr_at_10"] == pytest.approx(2 / 6, abs=1e-6)
    assert leak["examples"] == ["0", "1"]
    assert ("targets_in_training", "valid") not in found
    assert found[("repeated_targets", "test")]["rows"] == 2


def last_out_rows() -> list[tuple[int, int, int]]:
    """User 0 ends on day 5 with item 99; users 1-4 go on to day 12 and take 99 on day 6 in training; 5 is early too."""
    rows = [(0, step, step * DAY) for step in range(4)] + [(0, 98, 4 * DAY), (0, 99, 5 * DAY), (1, 50, -40 * DAY)]
    for user in range(1, 5):
        rows += [(user, 10 * user + step, step * DAY + user) for step in range(4)]
        rows += [(user, 99, 6 * DAY + user), (user, 60 + user, 11 * DAY + user), (user, 70 + user, 12 * DAY + user)]
    return rows


def test_training_after_other_users_targets(tmp_path: Path) -> None:
    """Only user 0's test target (day 5) is before train events (day 6), which hold its item four times; four are later.

    The day after its day the most taken item is 99: a hit in one of five rows. The day before nobody took it.
    """
    dataset = data_of(tmp_path, last_out_rows(), LAST_OUT)
    found = findings(dataset)[("train_after_target", "test")]
    assert (found["rows"], found["of"], found["severity"]) == (1, 5, "warning")
    assert "4 of 25 train events are later than the first target" in found["words"]
    assert (found["hr_bound"], found["hr_at_10"], found["hr_without"]) == (0.2, 0.2, 0.0)
    assert found["examples"] == ["0"]


@pytest.mark.parametrize(("last_train", "rows"), [(-1, 0), (0, 0), (1, 1)])
def test_a_train_event_at_the_instant_of_a_target_is_not_later(tmp_path: Path, last_train: int, rows: int) -> None:
    """User 0's test target is on day 5; the last train event of user 1 a second before it, with it, or behind it."""
    events = [(0, step, step * DAY) for step in range(4)] + [(0, 98, 5 * DAY - 9), (0, 99, 5 * DAY)]
    events += [(1, 50, DAY), (1, 51, 5 * DAY + last_train), (1, 60, 8 * DAY), (1, 61, 9 * DAY)]
    found = findings(data_of(tmp_path, events, LAST_OUT)).get(("train_after_target", "test"))
    assert (found["rows"] if found else 0) == rows


def test_an_order_without_times_is_said_to_be_unknown(tmp_path: Path) -> None:
    rows = {"user_id": [1] * 4 + [2] * 4, "item_id": [1, 2, 3, 4, 5, 6, 7, 8], "position": [0, 1, 2, 3] * 2}
    pl.DataFrame(rows).write_parquet(tmp_path / "interactions.parquet")
    source = TableSource(path=tmp_path, timestamp_unit="none", columns={"position": "position"})
    prepare(source, FeaturesConfig(**LAST_OUT), tmp_path / "out", seed=0)
    found = findings(Dataset.open(tmp_path / "out"))
    assert set(found) == {("no_times", "test"), ("no_times", "valid")}
    assert (found[("no_times", "test")]["severity"], found[("no_times", "test")]["rows"]) == ("note", 2)


def test_users_held_out_but_for_one(tmp_path: Path) -> None:
    """Users 0-3 train, 10-13 are test; user 13 has a train event, of an item that it is asked for."""
    rows = [(user, 10 * user + step, step * DAY + user, "train") for user in range(4) for step in range(3)]
    for user in range(10, 14):
        rows += [(user, 50 + step, (5 + step) * DAY + user, "test") for step in range(2)]
    rows += [(user, 60 + user, 5 * DAY + user, "valid") for user in (20, 21)]
    rows += [(13, 50, DAY, "train")]
    dataset = data_of(tmp_path, rows, {"split": {"kind": "given"}}, names=["split"], columns={"split": "split"})
    found = findings(dataset, "given")[("users_on_both_sides", "test")]
    assert (found["rows"], found["of"], found["severity"]) == (1, 4, "severe")
    assert (found["hr_bound"], found["hr_at_10"], found["examples"]) == (0.25, 0.25, ["13"])
    assert ("users_on_both_sides", "test") not in findings(dataset, "global_temporal")


def test_popularity_of_the_test_period(sound: Dataset) -> None:
    """train_count says 1000 for the items of the first three test rows: ten items of which three rows' are right."""
    targets, honest = sound.targets(TEST), sound.items["train_count"]
    leaked = np.unique(targets.items[:3])
    counts = (
        pl.when(pl.col("item_index").is_in(leaked.tolist())).then(1000).otherwise("train_count").alias("train_count")
    )
    dataset = rewrite(sound, "items.parquet", counts.cast(pl.Int64))
    found = findings(dataset, "global_temporal")
    leak = found[("popularity_of_later_events", "test")]
    assert (leak["rows"], leak["of"], leak["unit"]) == (len(leaked), sound.spec.num_items, "items")
    rows = asked_rows(Arrays.of(dataset), TEST, dataset.targets(TEST))
    right = [set(part) for part in np.split(rows.targets.items, rows.targets.item_offsets[1:-1])]
    for name, values in (("hr_at_10", dataset.items["train_count"]), ("hr_without", honest)):
        top = set(most_frequent(values.to_numpy()).tolist())
        assert leak[name] == pytest.approx(np.mean([bool(items & top) for items in right]), abs=1e-6)
    assert leak["hr_at_10"] > leak["hr_without"]
    assert ("popularity_of_later_events", "valid") not in found  # it is about the items, so it is said once


def test_columns_that_count_behaviour_are_named(sound: Dataset) -> None:
    columns = {
        "title": "items.title",
        "n_clicks": "items.categories",
        "avg_rating": "items.text",
        "country": "users.country",
    }
    found = findings(sound, "global_temporal", columns=columns)
    assert list(found) == [("aggregated_columns", "test")]
    leak = found[("aggregated_columns", "test")]
    assert (leak["rows"], leak["of"], leak["examples"]) == (2, 4, ["n_clicks", "avg_rating"])
    assert leak["hr_at_10"] >= leak["hr_without"]


@pytest.mark.parametrize(
    "name", ["n_interactions", "num_views", "ctr", "total_sales", "item_rank", "show_cnt", "Rating"]
)
def test_names_that_sum_up(name: str) -> None:
    assert AGGREGATE.search(name)


@pytest.mark.parametrize(
    "name", ["title", "brand", "genres", "country", "categories", "author", "narrator", "discount", "scores_by"]
)
def test_names_that_do_not(name: str) -> None:
    assert not AGGREGATE.search(name)


def test_a_session_of_training_once_more(tmp_path: Path) -> None:
    """User 0's test session 1 2 3 is its train session, user 1's is user 0's; user 2's is in another order.

    User 3's two items are those of its train session, and too few to mean anything.
    """
    sessions = {
        0: [[1, 2, 3], [9, 8, 7], [1, 2, 3]],
        1: [[4, 5, 6], [19, 18, 17], [1, 2, 3]],
        2: [[7, 8, 9], [29, 28, 27], [3, 2, 1]],
        3: [[31, 32], [39, 38], [31, 32]],
    }
    rows = [
        (user, item, day * DAY + 60 * place + user)
        for user, days in sessions.items()
        for day, items in enumerate(days)
        for place, item in enumerate(items)
    ]
    split = {"valid_from": "2022-04-16T05:00:00Z", "test_from": "2022-04-17T05:00:00Z"}
    found = findings(data_of(tmp_path, rows, {"split": split}), "global_temporal")
    leak = found[("repeated_sessions", "test")]
    assert (leak["rows"], leak["of"], leak["severity"]) == (2, 3, "severe")
    assert "1 of them one of the same user" in leak["words"]
    assert leak["hr_bound"] == pytest.approx(2 / 4, abs=1e-6)


def artefact(kind: str, parent: str, digest: str = "ab" * 32) -> Artifact:
    values = {"kind": kind, "digest": digest, "code_version": "c", "seed": 0, "parents": {"prepare": parent}}
    return Artifact(Path("nowhere"), Manifest(**values, config={}, summary={}, files=()))  # type: ignore[arg-type]


def test_embeddings_fitted_on_later_events_of_the_same_data(tmp_path: Path) -> None:
    """User 0's step 98 -> 99 is never taken in training; with 98 before every 99 of training it is, in all four."""
    dataset = data_of(tmp_path / "a", last_out_rows(), LAST_OUT)
    inputs = {"digest": "this", "artefacts": (artefact("embeddings", "this"),)}
    found = findings(dataset, **inputs)[("fitted_on_later_events", "test")]
    assert (found["rows"], found["of"], found["hr_bound"]) == (1, 5, 0.0)
    rows = last_out_rows() + [(user, 98, 6 * DAY + user - 10) for user in range(1, 5)]
    found = findings(data_of(tmp_path / "b", rows, LAST_OUT), **inputs)[("fitted_on_later_events", "test")]
    assert (found["rows"], found["hr_bound"]) == (1, 0.2)
    assert "embeddings (abababababababab)" in found["words"]


def test_embeddings_fitted_on_other_data(tmp_path: Path, sound: Dataset) -> None:
    """The other data are the same log two days later (all targets are before its train events), two years earlier, gone."""
    split = {"split": {"valid_share": 0.2, "test_share": 0.2}}
    later = data_of(tmp_path / "later", [(u, i, t + 5 * DAY) for u, i, t in sound_rows()], split)
    early = data_of(tmp_path / "early", [(u, i, t - 700 * DAY) for u, i, t in sound_rows()], split)
    places = {"later": later.path, "early": early.path}

    def found(parent: str) -> dict[tuple[str, str], dict[str, Any]]:
        given = {"digest": "this", "artefacts": (artefact("semantic_ids", parent),), "data_of": places.get}
        return findings(sound, "global_temporal", **given)

    leak = found("later")[("fitted_on_other_data", "test")]
    assert (leak["rows"], leak["of"], leak["severity"], leak["hr_bound"]) == (12, 12, "severe", 1.0)
    assert found("early") == {}
    assert found("gone")[("fitted_on_unknown_data", "test")]["severity"] == "warning"


def test_train_rows_that_reach_into_the_window(tmp_path: Path) -> None:
    """A train row of user 0 is moved behind the end of its train events, onto the items that it is asked for."""
    features = {"task": "session", "session_length": 2, "split": {"valid_share": 0.2, "test_share": 0.2}}
    dataset = data_of(tmp_path, sound_rows(), features)
    assert ("train_rows_in_window", "test") not in findings(dataset, "global_temporal")
    test = dataset.targets(TEST)
    table = pl.read_parquet(dataset.path / "targets.parquet")
    row = table.filter((pl.col("split") == TEST) & (pl.col("user_index") == 0)).with_columns(
        split=pl.lit(TRAIN, pl.Int8)
    )
    pl.concat([table, row]).write_parquet(dataset.path / "targets.parquet")
    leak = findings(Dataset.open(dataset.path), "global_temporal")[("train_rows_in_window", "test")]
    assert (leak["rows"], leak["of"], leak["examples"]) == (1, len(test), ["0"])


def test_a_train_row_that_begins_where_training_ends(tmp_path: Path) -> None:
    """User 0's row of validation as a train row: it begins right behind the last train event."""
    features = {"task": "session", "session_length": 2, "split": {"valid_share": 0.2, "test_share": 0.2}}
    dataset = data_of(tmp_path, sound_rows(), features)
    table = pl.read_parquet(dataset.path / "targets.parquet")
    row = table.filter((pl.col("split") == VALID) & (pl.col("user_index") == 0))
    pl.concat([table, row.with_columns(split=pl.lit(TRAIN, pl.Int8))]).write_parquet(dataset.path / "targets.parquet")
    found = findings(Dataset.open(dataset.path), "global_temporal")
    assert found[("train_rows_in_window", "valid")]["rows"] == 1
    assert ("train_rows_in_window", "test") not in found


def test_successors_by_hand() -> None:
    """1 -> 5 twice, 1 -> 4 and 1 -> 6 once; 2 -> 1 once; ties go to the lower index."""
    before, after = np.array([1, 1, 1, 1, 2], np.int32), np.array([6, 5, 5, 4, 1], np.int32)
    found = successors(7, before, after, np.array([1, 2, 3, 1], np.int32), np.array([True, True, True, False]))
    assert found[:, :3].tolist() == [[5, 4, 6], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]]


def test_what_is_looked_for_is_named(sound: Dataset) -> None:
    found = audit(sound, AuditInputs("global_temporal"), quick=True)
    assert set(found["checked"]) == set(QUICK) < set(CHECKS)
    assert (found["severe"], found["priced"], found["rows"]) == (0, False, {"test": 12, "valid": 12})
    assert set(audit(sound, AuditInputs("global_temporal"))["checked"]) == set(CHECKS)


def test_the_columns_that_a_source_uses(tmp_path: Path) -> None:
    pl.DataFrame({"user_index": [0], "user_id": ["a"], "follow_count": [3]}).write_parquet(tmp_path / "users.parquet")
    source = {"item_columns": {"title": ["name"], "categories": [{"column": "n_clicks"}], "author": None}}
    assert mapped_columns(source, tmp_path / "users.parquet") == {
        "name": "items.title",
        "n_clicks": "items.categories",
        "follow_count": "users.follow_count",
    }
