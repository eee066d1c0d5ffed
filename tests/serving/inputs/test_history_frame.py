"""Frames of outside ids become histories in the model's indices; bad frames are refused by name."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from recsys.contracts.errors import DataError
from serving.answers.scorer import Scorer
from serving.bundle.catalogue import Catalogue, read_catalogue
from serving.bundle.layout import read_info
from serving.inputs.history_frame import map_frame
from serving.inputs.history_times import times_us

START = 1_700_000_000_000_000
"""Some time in 2023, in microseconds."""


@pytest.fixture(scope="module")
def catalogue(bundle: Path) -> Catalogue:
    return read_catalogue(bundle, read_info(bundle))


def test_hand_worked_frame(catalogue: Catalogue) -> None:
    """Item ids are 100 + 7 * index, so 107 is 1 and 121 is 3; 999 is unknown.

    The gap from 107 to 121 is 3 s: bucket 2 + floor(log2 3) = 3, counted from 999, which stands between them at 1 s:
    2 s -> 2 + floor(log2 2) = 3. Watch ratio 0.5 is bucket 6. User u1 has index 1, a stranger -1.
    """
    second = 1_000_000
    frame = pl.DataFrame(
        {
            "user_id": ["u1", "stranger", "u0"],
            "item_ids": [[107, 999, 121], [], None],
            "timestamps": [[START, START + second, START + 3 * second], [], []],
            "behaviours": [[2, 1, None], [], []],
            "watch_ratios": [[0.5, None, None], [], []],
        },
        schema_overrides={"timestamps": pl.List(pl.Int64)},
    )
    mapped = map_frame(frame, catalogue)
    histories = mapped.histories
    assert histories.user_index.tolist() == [1, -1, 0]
    assert list(zip(histories.start.tolist(), histories.end.tolist(), strict=True)) == [(0, 2), (2, 2), (2, 2)]
    assert histories.item.tolist() == [1, 3]
    assert histories.gap.tolist() == [0, 3]
    assert histories.behaviour.tolist() == [2, 0]
    assert histories.watch.tolist() == [6, 0]
    assert mapped.num_unknown.tolist() == [1, 0, 0]


def test_unseen_users_get_rows_of_their_own(catalogue: Catalogue, steered_bundle: Path) -> None:
    """Five known users and 16 rows for others: "ada" hashes to 5 and 7 to 7, so they are 5 + 5 and 5 + 7; u1 stays 1.

    The steered toy has 4 such rows, where they are 5 + 5 % 4 and 5 + 7 % 4; without any, a stranger is -1.
    """
    frame = pl.DataFrame({"user_id": ["ada", "u1", "7"], "item_ids": [[107], [107], [107]]})
    with_rows = dataclasses.replace(catalogue, unseen_user_rows=16)
    assert map_frame(frame, with_rows).histories.user_index.tolist() == [10, 1, 12]
    assert map_frame(frame, Scorer.open(steered_bundle).catalogue).histories.user_index.tolist() == [6, 1, 8]
    assert map_frame(frame, catalogue).histories.user_index.tolist() == [-1, 1, -1]


def test_datetimes_and_microseconds_mean_the_same(catalogue: Catalogue) -> None:
    times = [datetime(2024, 1, 1, 0, 0, 0), datetime(2024, 1, 1, 0, 1, 0)]
    frame = pl.DataFrame({"user_id": [1], "item_ids": [[107, 121]], "timestamps": [times]})
    micros = frame.with_columns(pl.col("timestamps").list.eval(pl.element().dt.epoch("us")))
    by_user_text = [part.with_columns(pl.col("user_id").cast(pl.String)) for part in (frame, micros)]
    gaps = [map_frame(part, catalogue).histories.gap.tolist() for part in by_user_text]
    assert gaps[0] == gaps[1] == [0, 2 + 5]  # 60 s: floor(log2 60) = 5


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["a"]}, "lack the column 'item_ids'"),
        ({"user_id": [None], "item_ids": [[107]]}, "user_id is null in 1 of 1 rows"),
        ({"user_id": ["a", "a"], "item_ids": [[107], [107]]}, "'a' occurs more than once"),
        ({"user_id": ["a"], "item_ids": [107]}, "expected a list per user"),
        ({"user_id": ["a"], "item_ids": [["x"]]}, "item_ids hold String, the model's ids are Int64"),
        ({"user_id": ["a"], "item_ids": [[107]], "clicks": [1]}, "column 'clicks', which the model would not read"),
        (
            {"user_id": ["a"], "item_ids": [[107]], "behaviours": [[1, 2]]},
            "1 item_ids but another number of behaviours",
        ),
        ({"user_id": ["a"], "item_ids": [[107]], "behaviours": [[9]]}, "integer codes from 0 .not known. to 2"),
        ({"user_id": ["a"], "item_ids": [[107, 121]], "timestamps": [[START + 5, START + 4]]}, "run backwards"),
        ({"user_id": ["a"], "item_ids": [[107]], "timestamps": [["now"]]}, "has the time 'now', expected ISO text"),
    ],
)
def test_bad_frames_are_refused(catalogue: Catalogue, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        map_frame(pl.DataFrame(columns), catalogue)


def test_a_source_without_signals_has_one_behaviour(catalogue: Catalogue) -> None:
    """Its training events all have code 1 + 0; a frame without behaviours must mean the same, not "not known"."""
    spec = catalogue.spec.model_copy(update={"signals": (), "num_behaviours": 2})
    plain = dataclasses.replace(catalogue, spec=spec)
    frame = pl.DataFrame({"user_id": ["somebody"], "item_ids": [catalogue.item_ids[:2].to_list()]})
    assert map_frame(frame, plain).histories.behaviour.tolist() == [1, 1]


def test_what_the_model_was_trained_with_is_missed_once(catalogue: Catalogue) -> None:
    spec = catalogue.spec.model_copy(update={"signals": ("like",), "num_behaviours": 3})
    frame = pl.DataFrame({"user_id": ["somebody"], "item_ids": [catalogue.item_ids[:2].to_list()]})
    reports: set[str] = set()
    mapped = map_frame(frame, dataclasses.replace(catalogue, spec=spec), reports=reports)
    assert mapped.histories.behaviour.tolist() == [0, 0]
    (line,) = reports
    assert line.startswith("histories lack timestamps and behaviours, which the model was trained with")


@pytest.mark.parametrize("written", ["A1", " A1", "A1\t", "\ufeffA1", "A1\u200b", "\u00a0A1\r\n"])
def test_blanks_around_text_are_no_part_of_an_id(catalogue: Catalogue, written: str) -> None:
    """As in `prepare`: A1 is item 0 and user 1, whatever surrounds it; twice is twice."""
    ids = pl.Series(["A1", *(f"B{number}" for number in range(11))])
    texts = dataclasses.replace(catalogue, item_ids=ids, user_ids=pl.Series(["u0", "A1", "u2", "u3", "u4"]))
    frame = pl.DataFrame({"user_id": [written], "item_ids": [[written, "NULL", "a1", "A 1"]]})
    mapped = map_frame(frame, texts)
    assert mapped.user_ids.to_list() == ["A1"]
    assert mapped.histories.user_index.tolist() == [1]
    assert mapped.histories.item.tolist() == [0]
    assert mapped.num_unknown.tolist() == [3]
    twice = pl.DataFrame(
        {"user_id": [written, "A1"], "item_ids": [[], []]}, schema_overrides={"item_ids": pl.List(pl.String)}
    )
    with pytest.raises(DataError, match="'A1' occurs more than once"):
        map_frame(twice, texts)


@pytest.mark.parametrize("times", [[None, START], [START, None], [None, START, START + 3_000_000, None]])
def test_no_gap_is_counted_from_or_to_a_time_that_is_not_known(catalogue: Catalogue, times: list) -> None:
    """Of the four events only the third has a known one in front: 3 s, bucket 3. The first time is no year 0."""
    frame = pl.DataFrame({"user_id": ["u1"], "item_ids": [[107] * len(times)], "timestamps": [times]})
    assert map_frame(frame, catalogue).histories.gap.tolist() == [0, 0, 3, 0][: len(times)]


def test_events_at_one_instant_do_not_run_backwards(catalogue: Catalogue) -> None:
    times = [START, START, START + 1]
    frame = pl.DataFrame({"user_id": ["u1"], "item_ids": [[107, 114, 121]], "timestamps": [times]})
    assert len(map_frame(frame, catalogue).histories.item) == 3
    with pytest.raises(DataError, match="run backwards"):
        map_frame(frame.with_columns(timestamps=pl.Series([[START, START, START - 1]])), catalogue)


def test_the_borders_of_codes_and_ratios(catalogue: Catalogue) -> None:
    highest = catalogue.spec.num_behaviours - 1
    frame = pl.DataFrame({"user_id": ["u1"], "item_ids": [[107, 114]], "behaviours": [[0, highest]]})
    assert map_frame(frame, catalogue).histories.behaviour.tolist() == [0, highest]
    for code in (-1, highest + 1):
        with pytest.raises(DataError, match=f"has the behaviour {code} "):
            map_frame(frame.with_columns(behaviours=pl.Series([[0, code]])), catalogue)
    bare = frame.drop("behaviours")
    map_frame(bare.with_columns(watch_ratios=pl.Series([[0.0, 1e6]])), catalogue)
    for ratio in (-0.01, float("inf")):
        with pytest.raises(DataError, match=f"has the watch ratio {ratio} "):
            map_frame(bare.with_columns(watch_ratios=pl.Series([[0.0, ratio]])), catalogue)


@pytest.mark.parametrize("nobody", ["NULL", "", " nan ", None])
def test_a_text_that_stands_for_nothing_is_no_user(catalogue: Catalogue, nobody: str | None) -> None:
    frame = pl.DataFrame({"user_id": ["u1", nobody], "item_ids": [[107], [107]]})
    with pytest.raises(DataError, match=r"user_id is null in 1 of 2 rows; .* row 1"):
        map_frame(frame, catalogue)


def test_every_user_begins_anew(catalogue: Catalogue) -> None:
    """u0's only event lies before the last one of u1: no gap, and no step back."""
    frame = pl.DataFrame({"user_id": ["u1", "u0"], "item_ids": [[107], [107]], "timestamps": [[START + 9], [START]]})
    assert map_frame(frame, catalogue).histories.gap.tolist() == [0, 0]


def test_as_many_items_as_the_bundle_reads(catalogue: Catalogue) -> None:
    three = dataclasses.replace(catalogue, limits=catalogue.limits.model_copy(update={"max_history_items": 3}))
    assert len(map_frame(pl.DataFrame({"user_id": ["u1"], "item_ids": [[107] * 3]}), three).histories.item) == 3
    with pytest.raises(DataError, match="has 4 item_ids, at most 3 are read"):
        map_frame(pl.DataFrame({"user_id": ["u1"], "item_ids": [[107] * 4]}), three)


@pytest.mark.parametrize("stray", [START // 10**6, START // 1000, 0])
def test_one_time_of_two_in_another_unit_is_named(catalogue: Catalogue, stray: int) -> None:
    """The median of both is a plausible time, so it says nothing of a unit."""
    frame = pl.DataFrame({"user_id": ["u1"], "item_ids": [[107, 114]], "timestamps": [[stray, START]]})
    with pytest.raises(DataError, match=f"user_id 'u1': the time {stray} among 2 lies outside the years"):
        map_frame(frame, catalogue)


def test_blanks_around_a_time_are_no_part_of_it() -> None:
    texts = pl.Series([" 2023-11-14 22:13:20 GMT\u00a0", "\ufeff2023-11-14T22:13:20Z", None])
    assert times_us(texts, pl.Series([1, 1, 1])).to_list() == [1_700_000_000_000_000, 1_700_000_000_000_000, None]
