"""The duration-aware percentile as a signal: by hand, monotone, blind to what comes later, and refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.audit.contract import write_contract
from features.build import FeaturesConfig, prepare
from features.derived.watch_percentile import DerivedSignal, duration_buckets, quantile_bound, with_derived_signals
from features.sources import TableSource
from features.user_histories import user_histories
from recsys.config import validate
from recsys.contracts.columns import TEST, TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from tests.toy.logs import START, US, log_of

SIGNAL = DerivedSignal(name="long_view", min_events=4)


def log(watch_s: list[float | None], duration_s: list[float | None]):  # type: ignore[no-untyped-def]
    """One user, one event a second."""
    rows = {
        "user_id": [7] * len(watch_s),
        "item_id": list(range(len(watch_s))),
        "timestamp": [START + place * US for place in range(len(watch_s))],
        "watch_time_ms": [None if value is None else value * 1000.0 for value in watch_s],
        "duration_ms": [None if value is None else value * 1000.0 for value in duration_s],
    }
    return log_of(rows)


def signal_of(log, split, signal=SIGNAL):  # type: ignore[no-untyped-def]
    found, facts = with_derived_signals(log, np.array(split, np.int8), (signal,))
    bit = 1 << found.signals.index(signal.name)
    return (found.signal_values & bit > 0).tolist(), (found.signal_known & bit > 0).tolist(), facts[signal.name]


def test_bounds_by_hand() -> None:
    """Four items of 10 s (bucket 8 to 16) watched 1 2 3 4 s: 3 of 4 are at most 3, so 3 and 4 are long. Four of 40 s (32 to
    64) watched 10 20 30 40 s: from 30. Watching 4 s of 40 would be long by watch time of the short ones, and is not."""
    watch, duration = [1, 2, 3, 4, 10, 20, 30, 40], [10] * 4 + [40] * 4
    true, known, facts = signal_of(log(watch, duration), [TRAIN] * 8)
    assert true == [False, False, True, True, False, False, True, True]
    assert known == [True] * 8
    assert [
        (row["from_s"], row["to_s"], row["train_events"], row["bound_s"], row["of"]) for row in facts["buckets"]
    ] == [
        (8.0, 16.0, 4, 3.0, "bucket"),
        (32.0, 64.0, 4, 30.0, "bucket"),
    ]
    assert facts["share_of_train"] == 0.5


def test_a_bucket_of_few_events_takes_the_bound_of_all() -> None:
    """All train watch times: 1 2 3 4 100. Four of five are at most 4 (0.8 of them). The bucket of 300 s has one."""
    true, _, facts = signal_of(log([1, 2, 3, 4, 100], [10, 10, 10, 10, 300]), [TRAIN] * 5)
    assert true == [False, False, True, True, True]
    assert (facts["buckets"][1]["of"], facts["buckets"][1]["bound_s"]) == ("all", 4.0)


def test_later_events_change_nothing() -> None:
    """The train events keep their bits, and the bounds theirs, whatever test events there are."""
    watch, duration = [1, 2, 3, 4], [10] * 4
    before, _, facts = signal_of(log(watch, duration), [TRAIN] * 4)
    for later in (0.1, 500.0):
        after, _, same = signal_of(log([*watch, *[later] * 50], [*duration, *[10] * 50]), [TRAIN] * 4 + [TEST] * 50)
        assert after[:4] == before
        assert same["buckets"] == facts["buckets"]
        assert after[4:] == [later >= 3] * 50
    new_bucket, _, _ = signal_of(log([*watch, 3.0, 2.0], [*duration, 5000, 5000]), [TRAIN] * 4 + [TEST] * 2)
    assert new_bucket[4:] == [True, False]  # of all: 3 of 4 are at most 3


def test_more_watching_is_never_less_of_the_signal() -> None:
    rng = np.random.default_rng(0)
    duration, watch = rng.uniform(1, 600, 400), rng.exponential(30, 400)
    true, _, facts = signal_of(log(watch.tolist(), duration.tolist()), [TRAIN] * 400)
    bucket = duration_buckets(duration * 1000, 2.0)
    for number in np.unique(bucket):
        inside = bucket == number
        ordered = np.array(true)[inside][np.argsort(watch[inside])]
        assert (np.diff(ordered.astype(int)) >= 0).all()
    assert 0.2 < facts["share_of_train"] < 0.4


def test_what_is_not_known_stays_unknown() -> None:
    watch, duration = [1, 2, 3, 4, None, 9, 9], [10, 10, 10, 10, 10, None, 0]
    true, known, facts = signal_of(log(watch, duration), [TRAIN] * 7)
    assert known == [True] * 4 + [False] * 3
    assert true[4:] == [False] * 3
    assert facts["unknown_events"] == 3


def test_whole_powers_open_their_bucket() -> None:
    assert duration_buckets(np.array([1e3, 1e4, 1e5, 1e6]), 10.0).tolist() == [0, 1, 2, 3]
    assert [quantile_bound(np.arange(1.0, 11.0), share) for share in (0.1, 0.7, 0.75, 1.0)] == [1.0, 7.0, 8.0, 10.0]


def two_users(watch_s: list[list[float]], duration_s: list[list[float]]):  # type: ignore[no-untyped-def]
    """Users 1 and 2, one event a second each."""
    lengths = [len(own) for own in watch_s]
    return log_of(
        {
            "user_id": [1 + place for place, length in enumerate(lengths) for _ in range(length)],
            "item_id": [number for length in lengths for number in range(length)],
            "timestamp": [START + number * US for length in lengths for number in range(length)],
            "watch_time_ms": [value * 1000.0 for own in watch_s for value in own],
            "duration_ms": [value * 1000.0 for own in duration_s for value in own],
        }
    )


def test_a_user_is_measured_by_his_own_habits() -> None:
    """User 1 watches 1 2 3 4 s of 10 s items, user 2 watches 5 6 7 8 s: each has two long views, where all users together
    (of the eight, six are at most 6 s) would give user 1 none and user 2 three. The one item of 40 s of user 2 is measured
    by all users: it is the only one there."""
    log, split = two_users([[1, 2, 3, 4], [5, 6, 7, 8, 9]], [[10] * 4, [10] * 4 + [40]]), [TRAIN] * 9
    own = SIGNAL.model_copy(update={"min_user_events": 4, "min_events": 1})
    true, _, facts = signal_of(log, split, own)
    assert true == [False, False, True, True, False, False, True, True, True]
    assert (facts["events_by_own_bound"], facts["events_by_all_users"]) == (8, 1)
    for everybody in (own.model_copy(update={"within": "all"}), own.model_copy(update={"min_user_events": 5})):
        true, _, facts = signal_of(log, split, everybody)
        assert true == [False] * 5 + [True] * 4
    assert "events_by_own_bound" not in signal_of(log, split, own.model_copy(update={"within": "all"}))[2]


def test_the_own_quantile_is_the_papers_count() -> None:
    """An event is true if at least three quarters of its user's train watch times of the bucket are no longer than it."""
    rng = np.random.default_rng(3)
    watch = [rng.integers(1, 30, 60).astype(float).tolist() for _ in range(2)]
    length = [rng.choice([9.0, 12.0, 40.0, 300.0], 60).tolist() for _ in range(2)]
    split = rng.choice([TRAIN, TEST], 120, p=[0.8, 0.2]).astype(np.int8)
    signal = SIGNAL.model_copy(update={"min_user_events": 1})
    true, _, _ = signal_of(two_users(watch, length), split, signal)
    flat, user = np.concatenate(watch), np.repeat([0, 1], 60)
    bucket = duration_buckets(np.concatenate(length) * 1000, 2.0)
    for event in range(120):
        own = flat[(user == user[event]) & (bucket == bucket[event]) & (split == TRAIN)]
        if len(own):
            assert true[event] == ((own <= flat[event]).mean() >= 0.75), event


def source(folder: Path, **changes: object) -> TableSource:
    count = 60
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(6), 10),
            "item_id": np.tile(np.arange(10), 6),
            "timestamp": 1_650_000_000 + np.tile(np.arange(10), 6) * 86_400,
            "watched": rng.uniform(0, 40_000, count),
            "length": rng.uniform(5_000, 60_000, count),
            "like": rng.random(count) < 0.3,
        }
    )
    frame.write_parquet(folder / "interactions.parquet")
    options = {
        "columns": {"watch_time": "watched", "duration": "length"},
        "signals": [{"name": "like", "column": "like"}],
        **changes,
    }
    return TableSource(path=folder, timestamp_unit="s", **options)


def config(**signal: object) -> FeaturesConfig:
    values = {
        "split": {"kind": "leave_last_out"},
        "derived_signals": [{"name": "long_view", "min_events": 5, **signal}],
    }
    return validate(FeaturesConfig, values, "test")


def test_it_stands_behind_the_signals_of_the_source(tmp_path: Path) -> None:
    report = prepare(source(tmp_path), config(), tmp_path / "out", seed=0)
    data = Dataset.open(tmp_path / "out")
    assert (data.spec.signals, data.spec.num_behaviours) == (("like", "long_view"), 5)
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    codes = 1 + events["like"].cast(pl.Int32) + 2 * events["long_view"].cast(pl.Int32)
    np.testing.assert_array_equal(np.asarray(data.history.behaviour), codes.to_numpy())
    share = events.filter(pl.col("split") == TRAIN)["long_view"].mean() if "split" in events.columns else None
    assert share is None or share == pytest.approx(report["derived_signals"]["long_view"]["share_of_train"])
    assert sum(row["train_events"] for row in report["derived_signals"]["long_view"]["buckets"]) == 48
    taken = int(events["long_view"].sum())
    assert report["signals"]["long_view"] == {"true": taken, "false": len(events) - taken, "not_known": 0}


def test_the_contract_that_a_night_is_compared_by_knows_it(tmp_path: Path) -> None:
    """As the stage `prepare` goes on after the tables are written."""
    report = prepare(source(tmp_path), config(), tmp_path / "out", seed=0)
    contract = write_contract(tmp_path / "out", report)
    assert contract.signals == ("like", "long_view")
    assert contract.signal_rates["long_view"] == pytest.approx(
        pl.read_parquet(tmp_path / "out" / "events.parquet")["long_view"].mean(), abs=1e-3
    )


@pytest.mark.parametrize(
    ("columns", "signal", "words"),
    [
        ({}, {}, "'long_view' is a percentile of watch time by duration, and the source has no watch_time; map"),
        ({"watch_time": "watched"}, {}, r"the source has no duration; map source\.columns\.duration"),
        ({"watch_time": "watched", "duration": "length"}, {"name": "like"}, "has a signal 'like' already"),
    ],
)
def test_refusals(tmp_path: Path, columns: dict, signal: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(source(tmp_path, columns=columns), config(**signal), tmp_path / "out", seed=0)


def test_too_many_signals_and_no_measured_event(tmp_path: Path) -> None:
    many = tuple(DerivedSignal(name=f"s{number}") for number in range(8))
    with pytest.raises(ConfigError, match="at most 7 fit"):
        with_derived_signals(log([1.0], [10.0]), np.zeros(1, np.int8), many)
    with pytest.raises(DataError, match="no train event has both a watch time and a duration"):
        with_derived_signals(log([1.0, None], [10.0, 10.0]), np.array([TEST, TRAIN], np.int8), (SIGNAL,))


def test_histories_of_another_table_cannot_have_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are fitted by `prepare` on its train events"):
        user_histories(source(tmp_path), config(), 0)
