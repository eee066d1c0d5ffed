"""Good sessions: OneRec's three bounds by hand, and what reads only them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.session_quality import HighQualityConfig, good_sessions
from features.sources import TableSource
from recsys.config import validate
from recsys.contracts.columns import TEST, TRAIN, VALID
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from tests.toy.logs import US, log_of

DAY, START = 86_400, 1_650_000_000

SESSIONS = (
    # (items, seconds watched of each, like)
    ([1, 2, 3, 1], [5.0, 5.0, 0.5, 5.0], [0, 0, 0, 0]),  # A: 2 distinct items watched a second or more; 15.5 s; no like
    ([2, 3, 4], [1.0, 1.0, 1.0], [1, 0, 0]),  # B: 3 watched; 3 s; 1 like
    ([5, 1], [40.0, None], [1, 1]),  # C: 1 watched, the other not known; 40 s; 2 likes
)
"""One user; day 0, 1 and 2. Days 10 and 20 hold validation and test."""


def source(folder: Path, *, watch: bool = True, likes: bool = True) -> TableSource:
    rows = [
        (7, item, START + day * DAY + place * 60, None if seconds is None else seconds * 1000, like)
        for day, (items, watched, liked) in enumerate(SESSIONS)
        for place, (item, seconds, like) in enumerate(zip(items, watched, liked, strict=True))
    ]
    rows += [(7, item, START + day * DAY, 100.0, 0) for day, item in ((10, 1), (20, 2))]
    names = ["user_id", "item_id", "timestamp", "watched", "like"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "interactions.parquet")
    columns = {"watch_time": "watched"} if watch else {}
    signals = [{"name": "like", "column": "like"}] if likes else []
    return TableSource(path=folder, timestamp_unit="s", columns=columns, signals=signals)


def config(**bounds: object) -> FeaturesConfig:
    values = {
        "task": "session",
        "session_length": 4,
        "split": {"valid_from": "2022-04-20", "test_from": "2022-04-30"},
        "sessions": {"high_quality": {"min_watched": 0, **bounds}} if bounds else {},
    }
    return validate(FeaturesConfig, values, "test")


def targets_of(folder: Path) -> list[list[int]]:
    data = Dataset.open(folder)
    train, names = data.targets(TRAIN), data.items["item_id"].to_numpy()
    return [names[part].tolist() for part in np.split(train.items, train.item_offsets[1:-1])]


A, B, C = [1, 2, 3], [2, 3, 4], [5, 1]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [A, B, C]),
        ({"min_watched": 2}, [A, B]),
        ({"min_watched": 3}, [B]),
        ({"min_watched": 2, "watched_seconds": 2.0}, [A]),
        ({"min_watched": 3, "watched_seconds": 0.5}, [A, B]),
        ({"min_watch_seconds": 15.5}, [A, C]),
        ({"min_watch_seconds": 15.6}, [C]),
        ({"min_interactions": 1}, [B, C]),
        ({"min_interactions": 2}, [C]),
        ({"min_watched": 2, "min_watch_seconds": 10, "needs": "all"}, [A]),
        ({"min_watched": 3, "min_interactions": 2, "needs": "any"}, [B, C]),
        ({"min_watched": 2, "min_interactions": 1, "interactions": ["like"]}, [B]),
    ],
)
def test_bounds_by_hand(tmp_path: Path, bounds: dict, expected: list[list[int]]) -> None:
    report = prepare(source(tmp_path), config(**bounds), tmp_path / "out", seed=0)
    assert targets_of(tmp_path / "out") == expected
    if bounds:
        counts = report["high_quality_sessions"]
        assert (counts["train"], counts["train_good"]) == (3, len(expected))


def test_only_the_training_targets_are_chosen(tmp_path: Path) -> None:
    """Sessions, histories, validation and test are those of a preparation without the bound."""
    prepare(source(tmp_path), config(), tmp_path / "all", seed=0)
    prepare(source(tmp_path), config(min_watched=3), tmp_path / "good", seed=0)
    everything, good = Dataset.open(tmp_path / "all"), Dataset.open(tmp_path / "good")
    for name in ("sessions.parquet", "events.parquet"):
        assert pl.read_parquet(tmp_path / "all" / name).equals(pl.read_parquet(tmp_path / "good" / name))
    np.testing.assert_array_equal(everything.history.item, good.history.item)
    for split in (VALID, TEST):
        np.testing.assert_array_equal(everything.targets(split).items, good.targets(split).items)
    assert good.targets(TRAIN).history_end.tolist() == [4]  # B's history is the whole of A, good or not


@pytest.mark.parametrize(
    ("have", "bounds", "words"),
    [
        (
            {"watch": False},
            {"min_watched": 2},
            r"high_quality\.min_watched counts watch time, and the source has none; map",
        ),
        ({"watch": False}, {"min_watch_seconds": 9}, r"high_quality\.min_watch_seconds counts watch time"),
        ({"likes": False}, {"min_interactions": 1}, r"counts signals, and there are no signals of the source \(none\)"),
        ({}, {"min_interactions": 1, "interactions": ["share"]}, "'share' is none of the signals of the source .like."),
    ],
)
def test_what_the_source_cannot_say_is_refused_by_name(tmp_path: Path, have: dict, bounds: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        prepare(source(tmp_path, **have), config(**bounds), tmp_path / "out", seed=0)
    assert refused.value.exit_code == 2


def test_no_good_session_is_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 train sessions is good \(\{'min_watched': 0\} of them pass"):
        prepare(source(tmp_path), config(min_watched=9), tmp_path / "out", seed=0)


def test_a_good_session_of_another_split_is_none_to_train_on() -> None:
    """A view in train, a like in test, one like asked for."""
    log = log_of(
        {"user_id": [7, 7], "item_id": [1, 2], "timestamp": [START * US, START * US + 1], "like": [False, True]},
        ("like",),
    )
    bounds = HighQualityConfig(min_watched=0, min_interactions=1)
    with pytest.raises(DataError, match="none of 1 train sessions is good"):
        good_sessions(log, np.array([TRAIN, TEST], np.int8), np.array([0, 1], np.int32), bounds)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_watched": 0}, "all bounds are 0, so every session is good"),
        ({"interactions": ["like"]}, "min_interactions is 0"),
        ({"min_watched": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_ask_for_nothing(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(HighQualityConfig, values, "test")


def test_next_items_are_not_chosen_by_session() -> None:
    with pytest.raises(ConfigError, match="the task is next_item"):
        validate(FeaturesConfig, {"sessions": {"high_quality": {}}}, "test")
