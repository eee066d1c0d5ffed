"""One request in five dresses — pandas, Polars, and JSON as `mlflow models serve` takes it — gets one answer, or one
refusal.

The model goes through MLflow itself: saved with the signature of a registered one, loaded, and called as MLflow's own server
calls it.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from recsys.contracts.errors import ConfigError, DataError
from tests.serving.registry.conftest import (
    ITEMS,
    NAN,
    START,
    Dress,
    Rows,
    as_inputs,
    as_pandas,
    every_dress,
    history,
    listed,
    times,
)

SAME: dict[str, tuple[Rows, Rows]] = {
    "one of two users without times": (
        [history(1, 0, 1, timestamps=times(0, 9)), history(2, 2, 3, timestamps=None)],
        [history(1, 0, 1, timestamps=times(0, 9)), history(2, 2, 3, timestamps=[None, None])],
    ),
    "nobody's times": ([history(1, 0, 1, timestamps=None)], [history(1, 0, 1)]),
    "a key that one row lacks": (
        [history(1, 0, 1, timestamps=times(0, 9)), history(2, 2)],
        [history(1, 0, 1, timestamps=times(0, 9)), history(2, 2, timestamps=[None])],
    ),
    "history null, as a left join leaves it": (
        [{"user_id": 1, "item_ids": None}, history(2, 3)],
        [{"user_id": 1, "item_ids": []}, history(2, 3)],
    ),
    "all histories null": (
        [{"user_id": 1, "item_ids": None}, {"user_id": 2, "item_ids": None}],
        [{"user_id": 1, "item_ids": []}, {"user_id": 2, "item_ids": []}],
    ),
    "one of two users without behaviours": (
        [history(1, 0, 1, behaviours=[2, 1]), history(2, 2, behaviours=None)],
        [history(1, 0, 1, behaviours=[2, 1]), history(2, 2, behaviours=[0])],
    ),
    "an unknown behaviour": ([history(1, 0, 1, behaviours=[2, None])], [history(1, 0, 1, behaviours=[2, 0])]),
    "one of two users without watch ratios": (
        [history(1, 0, watch_ratios=[0.5]), history(2, 2, 3, watch_ratios=None)],
        [history(1, 0, watch_ratios=[0.5]), history(2, 2, 3, watch_ratios=[None, None])],
    ),
    "a watch ratio that is NaN": (
        [history(1, 0, 1, watch_ratios=[0.5, NAN])],
        [history(1, 0, 1, watch_ratios=[0.5, None])],
    ),
    "an item that is null is one unknown": (
        [history(1, 0, None, 2)],
        [{"user_id": 1, "item_ids": [ITEMS[0], 999, ITEMS[2]]}],
    ),
    "ISO text is a time": (
        [history(1, 0, 1, timestamps=["2023-11-14T22:13:20Z", "2023-11-14T22:13:29.000+00:00"])],
        [history(1, 0, 1, timestamps=times(0, 9))],
    ),
    "ISO text of another zone": (
        [history(1, 0, 1, timestamps=["2023-11-14 23:13:20+01:00", "2023-11-14 17:13:29-0500"])],
        [history(1, 0, 1, timestamps=times(0, 9))],
    ),
    "ISO text of the forms that prepare reads": (
        [
            history(
                1,
                0,
                1,
                2,
                timestamps=["2023-11-14t23:13:20+01", "2023-11-14 22:13:29 GMT", "2023-11-14T22:13:31.5z[UTC]"],
            )
        ],
        [history(1, 0, 1, 2, timestamps=[START, START + 9_000_000, START + 11_500_000])],
    ),
    "text that stands for no time": (
        [history(1, 0, 1, timestamps=["NULL", "2023-11-14T22:13:20"])],
        [history(1, 0, 1, timestamps=[None, START])],
    ),
    "times as decimals, which gaps make of integers": (
        [history(1, 0, 1, timestamps=[float(START), None])],
        [history(1, 0, 1, timestamps=[START, None])],
    ),
    "Datetime without a zone is UTC": (
        [history(1, 0, 1, timestamps=[dt.datetime(2023, 11, 14, 22, 13, 20), dt.datetime(2023, 11, 14, 22, 13, 29)])],
        [history(1, 0, 1, timestamps=times(0, 9))],
    ),
    "text users": ([history("007", 0, 1)], [history("7", 0, 1)]),
    "a row that says nothing": ([history(1, 0, words=None)], [history(1, 0)]),
    "a row that denies nothing": ([history(1, 0, deny_item_ids=None), history(2, 1)], [history(1, 0), history(2, 1)]),
    "denied twice, beside an unknown item": (
        [history(1, 0, deny_item_ids=[ITEMS[5], ITEMS[5], 4711]), history(2, 1)],
        [history(1, 0, deny_item_ids=[ITEMS[5]]), history(2, 1, deny_item_ids=[])],
    ),
    "a row without weights": ([history(1, 0, objective=None)], [history(1, 0)]),
}


@every_dress
@pytest.mark.parametrize("name", SAME)
def test_both_ways_to_say_it_get_the_same_answer(loaded: Any, dress: Dress, name: str) -> None:
    given, meant = SAME[name]
    expected = listed(as_pandas(loaded, meant, {"k": 4}))
    found = listed(dress(loaded, given, {"k": 4}))
    assert len(found) == 4 * len(given)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert list(dict.fromkeys(row[0] for row in found)) == [row["user_id"] for row in given]


REFUSED: dict[str, tuple[Rows, str]] = {
    "null user": ([history(1, 0), history(None, 1)], "user_id is null in 1 of 2 rows"),
    "only null users": ([history(None, 0)], "user_id is null in 1 of 1 rows"),
    "NaN user": ([history(1.0, 0), history(NAN, 1)], "user_id is null in 1 of 2 rows"),
    "empty user": ([history("a", 0), history("", 1)], "user_id is null in 1 of 2 rows; every row needs its user: row 1"),
    "blank user": ([history("a", 0), history(" \t", 1)], "user_id is null in 1 of 2 rows"),
    "user NULL": ([history("NULL", 0), history("a", 1)], "user_id is null in 1 of 2 rows; every row needs its user: row 0"),
    "user nan": ([history("nan", 0), history("b", 1), history("None", 1)], "user_id is null in 2 of 3 rows"),
    "user 1 and '1'": ([history(1, 0), history("1", 1)], "user_id mixes types (1 integers, the first in row 0: 1"),
    "a user of fractions": ([history(1.5, 0)], "user_id hold 1.5 (Float64), expected whole ids"),
    "NumPy's missing number as a user": (
        [history(1, 0), history(-(2**63), 1)],
        "user_id is null in 1 of 2 rows; every row needs its user: row 1 (-9223372036854775808)",
    ),
    "bytes as a list": ([{"user_id": 1, "item_ids": bytearray(b"ab")}], "item_ids"),
    "a user twice": ([history(3, 0), history(4, 0), history(3, 1)], "user_id 3 occurs more than once"),
    "a user that is a flag": ([history(True, 0)], "user_id are Boolean, expected integers or text"),
    "a user beyond 64 bits": ([history(2**64, 0)], "does not fit into 64 bits"),
    "text items for integers": ([{"user_id": 1, "item_ids": ["107"]}], "item_ids hold String, the model's ids are Int64"),
    "mixed items": ([{"user_id": 1, "item_ids": [107, "114"]}], "item_ids mixes types"),
    "an item of fractions": ([{"user_id": 1, "item_ids": [107.5]}], "item_ids hold 107.5 (Float64), expected whole ids"),
    "a history as text": ([{"user_id": 1, "item_ids": "[107]"}], "expected a list per user"),
    "a history as a number": ([{"user_id": 1, "item_ids": 107}], "expected a list per user"),
    "lists in a list": ([{"user_id": 1, "item_ids": [[107]]}], "item_ids"),
    "another number of times": ([history(1, 0, 1, timestamps=times(0))], "2 item_ids but another number of timestamps (1)"),
    "times of an empty history": ([{"user_id": 1, "item_ids": None, "timestamps": times(0)}], "0 item_ids but "
    "another number"),
    "times in seconds": ([history(1, 0, 1, timestamps=[1_700_000_000, 1_700_000_009])], "declare timestamp_unit: s; "
    "timestamps"),
    "times in milliseconds": ([history(1, 0, timestamps=[1_700_000_000_000])], "multiply by 1000, or give Datetime values"),
    "times in nanoseconds": ([history(1, 0, timestamps=[1_700_000_000 * 10**9])], "declare timestamp_unit: ns"),
    "one user of a batch in seconds": (
        [history(user, 0, timestamps=times(user)) for user in range(1, 5)] + [history(9, 0, timestamps=[1_700_000_000])],
        "user_id 9: timestamps in the wrong unit: as 'us' the median 1700000000",
    ),
    "one time of a list in seconds": (
        [history(1, 0, 1, 2, timestamps=[1_700_000_000, *times(1, 2)])],
        "user_id 1: the time 1700000000 among 3 lies outside the years 1990 to 2100",
    ),
    "a placeholder": ([history(1, 0, 1, 2, timestamps=[0, *times(1, 2)])], "the time 0 among 3 lies outside"),
    "times beyond 2100": ([history(1, 0, timestamps=["2150-01-01"])], "the time 2150-01-01T00:00:00+00:00 lies outside"),
    "times backwards": ([history(1, 0, 1, timestamps=times(9, 0))], "timestamps of a user run backwards"),
    "a time that is no date": ([history(1, 0, timestamps=["01/02/2024"])], "has the time '01/02/2024', expected ISO text"),
    "digits as text": ([history(1, 0, timestamps=["1700000000"])], "has the time '1700000000', expected ISO text"),
    "an offset that is none": (
        [history(1, 0, timestamps=["2023-11-14T22:13:20+25:00"])],
        "has the time '2023-11-14T22:13:20+25:00', expected ISO text",
    ),
    "a zone by its name alone": (
        [history(1, 0, timestamps=["2023-11-14T22:13:20[Europe/Paris]"])],
        "expected ISO text",
    ),
    "a date that is none": ([history(1, 0, timestamps=["2024-02-30"])], "has the time '2024-02-30', expected ISO text"),
    "zones and none": (
        [history(1, 0, 1, timestamps=["2024-05-01T00:00:00", "2024-05-01T00:00:00Z"])],
        "timestamps mix texts with a zone",
    ),
    "numbers and texts as times": ([history(1, 0, 1, timestamps=[START, "2024-05-01"])], "timestamps mixes types"),
    "an infinite time": ([history(1, 0, timestamps=[float("inf")])], "outside the years 1990 to 2100"),
    "flags as times": ([history(1, 0, timestamps=[True])], "timestamps hold Boolean"),
    "a code too high": ([history(5, 0, behaviours=[9])], "user_id 5 has the behaviour 9 (1 such events), expected "
    "integer codes"),
    "a negative code": ([history(5, 0, behaviours=[-1])], "has the behaviour -1"),
    "a code of fractions": ([history(5, 0, behaviours=[1.5])], "has the behaviour 1.5"),
    "a code as text": ([history(5, 0, behaviours=["2"])], "behaviours hold String"),
    "an endless code": ([history(5, 0, behaviours=[float("inf")])], "has the behaviour inf"),
    "a negative ratio": ([history(5, 0, watch_ratios=[-0.5])], "user_id 5 has the watch ratio -0.5"),
    "an endless ratio": ([history(5, 0, watch_ratios=[float("inf")])], "has the watch ratio inf"),
    "a ratio as text": ([history(5, 0, watch_ratios=["0.5"])], "watch_ratios hold String"),
    "flags as ratios": ([history(5, 0, watch_ratios=[True])], "watch_ratios hold Boolean"),
    "a column of another name": ([history(1, 0, timestamp=times(0))], "have the column 'timestamp', which the model "
    "would not"),
    "its closest name": ([history(1, 0, timestamp=times(0))], "did you mean 'timestamps'?"),
    "no items": ([{"user_id": 1}], "lack the column 'item_ids'"),
    "no users": ([{"user": 1, "item_ids": [107]}], "lack the column 'user_id'"),
    "too long a history": ([history(1, *[0] * 21)], "user_id 1 has 21 item_ids, at most 20 are read"),
    "too many rows": ([history(user, 0) for user in range(7)], "the call has 7 users, the bundle of 'toy' answers at "
    "most 6"),
    "weights that are no text": ([history(1, 0, objective=3)], "column 'objective' is Int64, expected JSON text"),
    "words for a policy without": ([history(1, 0, words="toys")], "the policy reads no words"),
    "denied items that are no ids": ([history(1, 0, deny_item_ids=[7.5])], "column 'deny_item_ids' holds lists of Float64, "
    "expected lists of Int64"),
    "more denied items than are read": ([history(1, 0, deny_item_ids=ITEMS[:1] * 21)], "at most 20 are read"),
    "weights for a policy without": ([history(1, 0, objective='{"like": 1}')], "it cannot be steered"),
}  # fmt: skip


@every_dress
def test_what_a_row_denies_is_out_of_its_list_alone(loaded: Any, dress: Dress) -> None:
    """User 1 has seen 0 and denies 5, user 2 has seen 1: of 12 items 10 and 11 are left."""
    rows = [history(1, 0, deny_item_ids=[ITEMS[5]]), history(2, 1, deny_item_ids=None)]
    answer = dress(loaded, rows, {"k": 12})
    given = {user: set(part["item_id"]) for user, part in answer.groupby("user_id")}
    assert given == {1: set(ITEMS) - {ITEMS[0], ITEMS[5]}, 2: set(ITEMS) - {ITEMS[1]}}


@every_dress
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_by_name(loaded: Any, dress: Dress, name: str) -> None:
    rows, message = REFUSED[name]
    with pytest.raises((DataError, ConfigError)) as refused:
        dress(loaded, rows, {"k": 3})
    assert isinstance(refused.value, MlflowException)  # so that MLflow's server answers with the words and status 400
    assert refused.value.get_http_status_code() == 400
    if dress is as_inputs and "mixes types" in message:
        return  # MLflow puts what comes as `inputs` into NumPy arrays, which makes texts of both
    assert message in str(refused.value)
