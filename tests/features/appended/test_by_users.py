"""What is made of a merged log some users at a time is what is made of all events at once, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.appended.dataset import Certain, prepare_by_users, why_all_at_once
from features.appended.kept_rows import only_grows
from features.build import FeaturesConfig, prepare_from_log
from features.log import append
from features.log.append import Merge
from features.log.encode import ReadLog, read_log
from features.log.encoded_log import StoredLog
from features.log.event_log import Core
from features.log.quarantine import QuarantineConfig
from features.sources.base import RawTables
from recsys.contracts.errors import DataError
from tests.features.log.test_append import DAY_US, FILES, START_US, logs, tables, tree_hashes
from tests.features.log.test_append import events as any_events


@st.composite
def events(draw: st.DrawFn) -> pl.DataFrame:
    """Few users, items and instants in four files, so that repeats, ties and users on the edge of the k-core are common."""
    count = draw(st.integers(20, 60))
    column = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    return pl.DataFrame(
        {
            "file": pl.Series(column(st.integers(0, 3)), dtype=pl.Int32),
            "user_id": column(st.sampled_from(["7", "07", "a", "é", "z", "A", "b", "c"])),
            "item_id": pl.Series(column(st.integers(-2, 6)), dtype=pl.Int64),
            "timestamp": [START_US + step * (DAY_US // 7) for step in column(st.integers(0, 20))],
            "like": column(st.sampled_from([True, True, False, None])),
        }
    )


CONFIGS: list[dict[str, Any]] = [
    {"k_core": {"user": 2, "item": 2}},
    {"k_core": {"user": 3, "item": 0}, "duplicates": "drop"},
    {"k_core": {"user": 0, "item": 2}, "duplicates": "keep", "eval_rows": "per_event"},
    {"split": {"kind": "leave_last_out"}, "task": "session", "session_length": 2},
    {"sessions": {"by": "chunk"}, "task": "session", "session_length": 2},
    {"split": {"valid_from": "2022-04-15", "test_from": "2022-04-16"}},
]


def tree_or_refusal(folder: Path, work: Any) -> dict[str, bytes] | str:
    """Every file that the work left, or what it was refused with."""
    try:
        work()
    except DataError as error:
        return str(error)
    return tree_hashes(folder)


@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: "-".join(values))
@given(rows=events(), new=st.lists(st.sampled_from(FILES), max_size=2, unique=True))
@settings(max_examples=25, deadline=None)
def test_users_by_users_equals_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], rows: pl.DataFrame, new: list[str]
) -> None:
    at_once, by_users = both_ways(tmp_path_factory.mktemp("data"), rows, new, values)
    assert by_users == at_once


@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: "-".join(values))
@given(rows=events(), new=st.lists(st.sampled_from(FILES), max_size=2, unique=True))
@settings(max_examples=25, deadline=None)
def test_without_signals_every_event_is_one_of_a_history(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], rows: pl.DataFrame, new: list[str]
) -> None:
    at_once, by_users = both_ways(tmp_path_factory.mktemp("data"), rows.drop("like"), new, values)
    assert by_users == at_once


@given(rows=any_events(), new=st.lists(st.sampled_from(FILES), max_size=2, unique=True))
@settings(max_examples=60, deadline=None)
def test_positions_tie_breaks_and_events_without_a_time(
    tmp_path_factory: pytest.TempPathFactory, rows: pl.DataFrame, new: list[str]
) -> None:
    values = {"split": {"valid_from": "2022-04-16", "test_from": "2022-04-18"}, "sessions": {"by": "gap"}}
    at_once, by_users = both_ways(tmp_path_factory.mktemp("data"), rows, new, values)
    assert by_users == at_once


def both_ways(folder: Path, rows: pl.DataFrame, new: list[str], values: dict[str, Any]) -> tuple[Any, Any]:
    """The files, or the refusal, of preparing everything, and of appending the files ``new``."""
    config = FeaturesConfig.model_validate({**values, "quarantine": {"max_share": 1.0}})
    raw = tables(rows, ("like",) if "like" in rows.columns else ())
    assert why_all_at_once(raw, config) is None
    whole, earlier, added = logs(raw, new)
    core = earlier_core(raw, earlier, config, folder / "earlier")
    refused = [read_log(raw, QuarantineConfig(), need_session_id=False).refused for _ in range(2)]
    once, by = (ReadLog(whole, each, len(rows)) for each in refused)
    at_once = tree_or_refusal(folder / "once", lambda: prepare_from_log(raw, once, config, folder / "once", {}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(append.runs_of_users, "__defaults__", (9,))
        merge = Merge.of(StoredLog.open(folder / "earlier" / "log"), added)
        certain = Certain(merge.marks(core), START_US + DAY_US)
        work = lambda: prepare_by_users(raw, by.without_events(), merge, certain, config, folder / "by")  # noqa: E731
        by_users = tree_or_refusal(folder / "by", work)
    if isinstance(at_once, dict):
        del at_once["log/read.json"]
    return at_once, by_users


def earlier_core(raw: RawTables, log: Any, config: FeaturesConfig, folder: Path) -> Core:
    """Prepare the earlier files; return what is certain of them: nothing where they were refused or may lose events."""
    nothing = Core(*(np.zeros(len(ids), bool) for ids in (log.user_ids, log.item_ids)))
    log.save(folder / "log")
    read = ReadLog(log, read_log(raw, QuarantineConfig(), need_session_id=False, only=()).refused, len(log))
    try:
        prepare_from_log(raw, read, config, folder / "data", {})
        core = Core.load(folder / "data" / "log")
    except DataError:
        return nothing
    return core if only_grows(log, config.duplicates, {}) else nothing


def test_a_like_that_may_be_taken_back_is_not_certain() -> None:
    rows = pl.DataFrame({"file": [0], "user_id": ["a"], "item_id": [1], "timestamp": [START_US], "like": [True]})
    log = read_log(tables(rows), QuarantineConfig(), need_session_id=False).log
    assert only_grows(log, "merge", {"like": "any"})
    assert only_grows(log, "keep", {"like": "last"})
    assert not only_grows(log, "merge", {"like": "last"})
    assert not only_grows(log, "drop", {})
