"""What a frame may be made of: no rows at all, lists in any container, times and ids of any type."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys.contracts.errors import DataError
from serving.answers.scorer import Scorer
from serving.config import ServingLimits
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.registry.conftest import (
    ITEMS,
    LIMITS,
    SECOND,
    START,
    as_pandas,
    history,
    listed,
    times,
)

EMPTY: dict[str, Callable[[Any], pd.DataFrame]] = {
    "pandas": lambda model: model.predict(pd.DataFrame([history(1, 0, timestamps=times(0))]).head(0)),
    "pandas, never any": lambda model: model.predict(pd.DataFrame({"user_id": [], "item_ids": []})),
    "pandas, no columns": lambda model: model.predict(pd.DataFrame()),
    "Polars": lambda model: model.predict(pl.DataFrame([history(1, 0)]).head(0)),
    "Polars, never any": lambda model: model.predict(pl.DataFrame({"user_id": [], "item_ids": []})),
    "split": lambda model: as_split_of(model, [], ["user_id", "item_ids"]),
    "no rows": lambda model: model.predict([]),
}


def as_split_of(model: Any, data: list[Any], names: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(data, columns=names)
    return model.predict(frame)


@pytest.mark.parametrize("name", EMPTY)
def test_no_rows_get_an_answer_without_rows(loaded: Any, name: str) -> None:
    some = as_pandas(loaded, [history(1, 0)], {"k": 2})
    none = EMPTY[name](loaded)
    assert len(none) == 0
    assert list(none.columns) == list(some.columns)
    assert none.drop(columns="user_id").dtypes.to_dict() == some.drop(columns="user_id").dtypes.to_dict()
    assert none["user_id"].dtype == (some["user_id"].dtype if name in ("pandas", "Polars") else object)


@pytest.mark.parametrize(
    "values",
    [
        [np.array([107, 114]), (107, 114), pd.Series([107, 114]), pl.Series([107, 114])],
        [np.array([107.0, np.nan]), [107, pd.NA], [107, None], [107, float("nan")]],
        [np.array([], np.int64), None, pd.NA, float("nan")],
    ],
)
def test_lists_in_any_container(loaded: Any, values: list[Any]) -> None:
    frame = pd.DataFrame({"user_id": list(range(len(values))), "item_ids": pd.Series(values, dtype=object)})
    answers = loaded.predict(frame, params={"k": 3})
    each = [answers[answers["user_id"] == user]["item_id"].tolist() for user in range(len(values))]
    assert all(other == each[0] for other in each)


@pytest.mark.parametrize(
    "values",
    [
        [pd.Timestamp("2023-11-14T22:13:20", tz="UTC"), pd.Timestamp("2023-11-14T23:13:29", tz="Europe/Berlin")],
        np.array(["2023-11-14T22:13:20", "2023-11-14T22:13:29"], "datetime64[ns]"),
        np.array(["2023-11-14T22:13:20", "2023-11-14T22:13:29"], "datetime64[s]"),
        np.array([START, START + 9 * SECOND], np.uint64),
        np.array([START, START + 9 * SECOND], np.float64),
    ],
)
def test_times_in_any_type(loaded: Any, values: Any) -> None:
    frame = pd.DataFrame({"user_id": [1], "item_ids": [[ITEMS[0], ITEMS[1]]], "timestamps": [values]})
    expected = as_pandas(loaded, [history(1, 0, 1, timestamps=times(0, 9))], {"k": 4})
    assert listed(loaded.predict(frame, params={"k": 4})) == listed(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([START], np.float32), "timestamps hold Float32, which knows the seconds of today to 128 s only"),
        (np.array([START], np.float16), "timestamps hold Float32"),
        ([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02", tz="UTC")], "timestamps mixes types"),
        ([pd.Timedelta("1s")], "timestamps holds"),
        (np.array([[START]]), "has 2 dimensions in row 0"),
    ],
)
def test_times_of_no_use(loaded: Any, values: Any, message: str) -> None:
    items = [ITEMS[0]] * len(values)
    frame = pd.DataFrame({"user_id": [1], "item_ids": [items], "timestamps": [values]})
    with pytest.raises(DataError) as refused:
        loaded.predict(frame)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "dtype", [pl.Datetime("ms"), pl.Datetime("ns", "Asia/Tokyo"), pl.Datetime("us", "UTC"), pl.Date]
)
def test_polars_times_of_any_unit_and_zone(loaded: Any, dtype: Any) -> None:
    days = pl.Series([dt.datetime(2024, 3, 1), dt.datetime(2024, 3, 5)])
    zone = getattr(dtype, "time_zone", None)
    typed = days.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).cast(dtype) if zone else days.cast(dtype)
    frame = pl.DataFrame({"user_id": [1], "item_ids": [[ITEMS[0], ITEMS[1]]], "timestamps": [typed]})
    micros = days.dt.epoch("us").to_list()
    expected = as_pandas(loaded, [history(1, 0, 1, timestamps=micros)], {"k": 4})
    assert listed(loaded.predict(frame, params={"k": 4})) == listed(expected)


@pytest.mark.parametrize(
    ("user_ids", "message"),
    [
        (pl.Series([2**63 + 1], dtype=pl.UInt64), "does not fit into 64 bits"),
        (pl.Series([None, "a"], dtype=pl.Categorical), "user_id is null in 1 of 2 rows"),
        (pl.Series([1.0, None]), "user_id is null in 1 of 2 rows"),
        (pl.Series([dt.date(2024, 1, 1)]), "user_id are Date, expected integers or text"),
        (pl.Series([b"a"]), "user_id are Binary"),
        (pl.Series([[1]]), "user_id are List"),
        (pl.Series([7, -(2**63)]), "row 1 (-9223372036854775808)"),
        (pl.Series([2.0**24], dtype=pl.Float32), "user_id hold 16777216.0 (Float32), expected whole ids"),
    ],
)
def test_polars_users_of_no_use(loaded: Any, user_ids: pl.Series, message: str) -> None:
    frame = pl.DataFrame({"user_id": user_ids, "item_ids": [[ITEMS[0]]] * len(user_ids)})
    with pytest.raises(DataError) as refused:
        loaded.predict(frame)
    assert message in str(refused.value)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int32, pl.UInt64, pl.Float64])
def test_polars_users_of_any_whole_number(loaded: Any, dtype: Any) -> None:
    frame = pl.DataFrame({"user_id": pl.Series([1, 2]).cast(dtype), "item_ids": [[ITEMS[0]], [ITEMS[1]]]})
    expected = as_pandas(loaded, [history(1, 0), history(2, 1)], {"k": 3})
    assert listed(loaded.predict(frame, params={"k": 3})) == listed(expected)


def test_what_is_not_known_and_what_is_to_come_is_said_once(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    late = [START + 50 * 365 * 86_400 * SECOND]
    rows = [history(user, 0, timestamps=late) for user in range(3)] + [history(9, 0, timestamps=None)]
    loaded.predict(pd.DataFrame(rows))
    assert sum("later than now" in line for line in caplog.messages) == 1
    assert sum("timestamps of some users are not known" in line for line in caplog.messages) == 1


def test_users_of_another_type_than_the_model_knows(bundle: Path) -> None:
    scorer = Scorer.open(bundle)
    model = RecommenderModel()
    model.scorer = scorer
    with pytest.raises(DataError, match="user_id hold Int64, the model's ids are String"):
        model.predict(None, pd.DataFrame([history(7, 0)]), {})  # type: ignore[arg-type]


def test_limits_come_from_the_bundle(loaded: Any, bundle: Path) -> None:
    assert loaded.unwrap_python_model().scorer.catalogue.limits == LIMITS
    assert Scorer.open(bundle).catalogue.limits == ServingLimits()
    assert dataclasses.asdict(Scorer.open(bundle).catalogue)["limits"] is not None
