"""Rows of the same user, item and instant: merged, dropped or kept, and never lost."""

import numpy as np
import polars as pl
import pytest

from features.log import repeats
from features.log.signal_bits import check_signal_count, merge_bits
from recsys.contracts.errors import ConfigError
from tests.toy.logs import START, US, kept_of, read_rows


def views_and_likes() -> dict[str, list]:
    """40 views of users 1 to 40 and, at the same second, 20 likes of users 1 to 20: a row per deed."""
    users = [*range(1, 41), *range(1, 21)]
    return {
        "user_id": users,
        "item_id": [10 + user % 5 for user in users],
        "timestamp": [START + user * US for user in users],
        "view": [True] * 40 + [False] * 20,
        "like": [False] * 40 + [True] * 20,
    }


def test_a_like_of_the_same_second_as_a_view_is_kept() -> None:
    kept = kept_of(views_and_likes(), ("view", "like"))
    assert len(kept.log) == 40
    assert np.bincount(kept.log.signal_values, minlength=4).tolist() == [0, 20, 0, 20]  # view only, view and like
    assert len(kept.merged) == 20
    assert kept.merged.select("row", "into_row").rows() == [(40 + place, place) for place in range(20)]
    assert kept.merged["like"].to_list() == [True] * 20
    assert kept.merged["file"].unique().to_list() == ["log"]


def test_drop_refuses_the_later_rows_and_keeps_all_they_say() -> None:
    kept = kept_of(views_and_likes(), ("view", "like"), duplicates="drop")
    assert np.bincount(kept.log.signal_values, minlength=4).tolist() == [0, 40, 0, 0]
    assert kept.dropped["like"].to_list() == [True] * 20
    assert len(kept.merged) == 0
    assert len(kept_of(views_and_likes(), ("view", "like"), duplicates="keep").log) == 60


def test_another_item_between_two_rows_of_an_event_does_not_part_them() -> None:
    """Rows 0 and 2 are the same user, item and instant, with another item between; row 3 is a later repeat visit."""
    rows = {"user_id": [7] * 4, "item_id": [1, 2, 1, 1], "timestamp": [START, START, START, START + US]}
    kept = kept_of(rows)
    assert kept.log.item_ids[kept.log.item].to_list() == [1, 2, 1]
    assert kept.merged.select("row", "into_row").rows() == [(2, 0)]
    dropped = kept_of(rows, duplicates="drop").dropped
    assert dropped["row"].to_list() == [2]
    assert len(kept_of(rows, duplicates="keep").log) == 4


@pytest.mark.parametrize(
    ("rule", "value"),
    [("any", True), ("all", False), ("first", False), ("last", True)],
)
def test_every_rule_by_hand(rule: str, value: bool) -> None:
    """Known values in order: no, yes, yes; the unknown ones at the ends count for no rule."""
    rows = {
        "user_id": [7] * 5,
        "item_id": [1] * 5,
        "timestamp": [START] * 5,
        "liked": [None, False, True, True, None],
    }
    kept = kept_of(rows, ("liked",), rules={"liked": rule})
    assert len(kept.log) == 1
    assert bool(kept.log.signal_values[0]) is value
    assert kept.log.signal_known.tolist() == [1]


@pytest.mark.parametrize("values", [[True, None], [None, True], [None, True, None], [True]])
@pytest.mark.parametrize("rule", ["any", "all", "first", "last"])
def test_the_one_known_value_decides_under_every_rule(rule: str, values: list) -> None:
    """Wherever in its group it stands, and that of another user before or behind it, which is not known at all."""
    known = np.array([value is not None for value in values], np.uint8)
    true = np.array([value is True for value in values], np.uint8)
    for before, behind in ((0, 0), (1, 0), (0, 1)):
        bits, is_known = (np.pad(part, (before, behind)) for part in (true, known))
        starts = np.array([0, before] if before else [0, len(values)] if behind else [0])
        found, some = merge_bits(bits, is_known, starts, [rule])
        assert [found.tolist(), some.tolist()] == [[0] * before + [1] + [0] * behind] * 2


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_pieces_part_no_group(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 1 2 1 2 1 at one instant: rows 2 and 4 repeat row 0, row 3 repeats row 1, however the log is cut."""
    monkeypatch.setattr(repeats, "_PIECE", piece)
    kept = kept_of({"user_id": [7] * 5 + [8], "item_id": [1, 2, 1, 2, 1, 1], "timestamp": [START] * 6})
    assert kept.merged.select("row", "into_row").rows() == [(2, 0), (3, 1), (4, 0)]


def test_as_many_signals_as_fit_a_behaviour_code() -> None:
    names = [f"signal {place}" for place in range(8)]
    check_signal_count(names[:7])
    with pytest.raises(ConfigError, match=r"declares 8 signals.*at most 7 fit"):
        check_signal_count(names)


def test_what_no_row_knows_stays_unknown() -> None:
    rows = {
        "user_id": [7] * 2,
        "item_id": [1] * 2,
        "timestamp": [START] * 2,
        "liked": pl.Series([None, None], dtype=pl.Boolean),
    }
    for rule in ("any", "all", "first", "last"):
        kept = kept_of(rows, ("liked",), rules={"liked": rule})
        assert kept.log.signal_known.tolist() == [0]
        assert kept.log.signal_values.tolist() == [0]


def test_times_watched_take_the_longest_and_sessions_the_first_known() -> None:
    rows = {
        "user_id": [7, 7, 7, 8],
        "item_id": [1, 1, 1, 1],
        "timestamp": [START] * 4,
        "session_id": [None, "b", "c", "d"],
        "watch_time_ms": pl.Series([2.0, None, 5.0, None], dtype=pl.Float32),
        "duration_ms": pl.Series([None, None, None, 9.0], dtype=pl.Float32),
    }
    kept = kept_of(rows)
    sessions = ["b", "c", "d"]
    assert [sessions[code] for code in kept.log.session] == ["b", "d"]
    assert kept.log.watch_time[0] == 5.0
    assert np.isnan(kept.log.watch_time[1])
    assert np.isnan(kept.log.duration[0])
    assert kept.log.duration[1] == 9.0


def test_prehistory_and_positions_repeat_by_place() -> None:
    """Without a time the place is the instant: items 1 1 2 at places 4 4 4 are two events; item 1 at place 5 is another."""
    rows = {"user_id": [7] * 4, "item_id": [1, 1, 2, 1], "position": [4, 4, 4, 5]}
    assert len(kept_of(rows).log) == 3
    early = rows | {"timestamp": [None] * 3 + [START], "prehistory": [True] * 3 + [False]}
    assert len(kept_of(early).log) == 3
    # a timed event never repeats one of the prehistory, whatever its place: even one that reads like its time
    assert kept_of(early).log.prehistory.tolist() == [True, True, False]
    assert len(kept_of(early | {"position": [4, 4, START, None], "item_id": [1] * 4}).log) == 3


def test_rows_alike_in_everything_are_one_event() -> None:
    read = read_rows({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": [START] * 3})
    assert len(read.log) == 3
    kept = kept_of({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": [START] * 3})
    assert len(kept.log) == 1
    assert kept.merged["into_row"].to_list() == [0, 0]
