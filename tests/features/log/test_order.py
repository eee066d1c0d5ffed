"""Sorting by digits and by piles gives what one stable sort gives; ids and batches do not change it."""

import numpy as np
import polars as pl
import pytest

from features.log import arrays, order
from features.log.arrays import GrowingArray, IdColumn, TextTable, encode_ids
from features.log.order import in_order, sort_columns, stable_order

SEED = 5


@pytest.mark.parametrize("low", [0, -(1 << 40), -5])
@pytest.mark.parametrize("span", [3, 70_000, 1 << 45])
def test_the_order_by_digits_is_the_stable_order(low: int, span: int) -> None:
    rng = np.random.default_rng(SEED)
    first, second = rng.integers(0, 40, 500).astype(np.int32), low + rng.integers(0, span, 500)
    expected = np.lexsort((second, first))
    found = stable_order([first, second])
    assert found is not None
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000])
def test_whole_seconds_are_sorted_like_any_number(scale: int) -> None:
    rng = np.random.default_rng(SEED)
    time = 1_650_000_000_000_000 + rng.integers(0, 1_000_000, 400) * scale
    found = stable_order([time])
    assert found is not None
    assert found.tolist() == np.argsort(time, kind="stable").tolist()


def test_a_placeholder_far_from_all_other_numbers_comes_first() -> None:
    key = np.array([np.iinfo(np.int64).max, 4, np.iinfo(np.int64).min, 4])
    found = stable_order([key])
    assert found is not None
    assert found.tolist() == [2, 1, 3, 0]


def test_rows_in_order_are_left_alone() -> None:
    assert stable_order([np.array([1, 1, 2]), np.array([5, 5, 0])]) is None
    assert in_order([np.empty(0, np.int64)])
    assert not in_order([np.array([1, 1]), np.array([2, 1])])


@pytest.mark.parametrize("place", [3, 4, 5, 7, 8])
def test_order_and_repeats_are_seen_across_the_border_of_slices(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With slices of four rows, a step back or a repeat at row 4 lies between two of them."""
    monkeypatch.setattr(order, "_SLICE", 4)
    key = np.arange(9)
    assert in_order([key])
    key[place] = key[place - 1]
    assert in_order([key])
    assert np.flatnonzero(order.same_as_before([key])).tolist() == [place]
    assert not order.same_as_before([key, np.arange(9)]).any()
    key[place] = key[place - 1] - 1
    assert not in_order([key])


def test_one_time_that_is_no_whole_second_is_not_rounded_to_one() -> None:
    """The first thousand times are whole seconds, so a glance takes them for such; the last two differ by 1 us."""
    time = np.append(np.arange(1500, 0, -1) * 1_000_000, [2_000_000_001, 2_000_000_000])
    found = stable_order([time])
    assert found is not None
    assert found.tolist() == [*range(1499, -1, -1), 1501, 1500]


def test_more_users_than_piles_can_be_numbered() -> None:
    """Piles have numbers of 16 bits; users 65,536 and 65,537 are not those of number 0 and 1."""
    columns = {"user": np.array([65_537, 0, 200_000, 65_536, 1], np.int32)}
    sort_columns(columns, lambda part: [part["user"]], "user")
    assert columns["user"].tolist() == [0, 1, 65_536, 65_537, 200_000]


@pytest.mark.parametrize("pile_rows", [1, 7, 100, 100_000])
def test_piles_of_any_size_give_the_same_order(pile_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_PILE_ROWS", pile_rows)
    rng = np.random.default_rng(SEED)
    user, time = rng.integers(0, 90, 1000).astype(np.int32), rng.integers(0, 50, 1000)
    expected = np.lexsort((time, user))
    columns = {"user": user.copy(), "time": time.copy(), "row": np.arange(1000)}
    sort_columns(columns, lambda part: [part["user"], part["time"]], "user")
    assert columns["row"].tolist() == expected.tolist()
    assert columns["time"].tolist() == time[expected].tolist()


def test_one_user_of_all_rows_and_no_rows_at_all() -> None:
    columns = {"user": np.zeros(4, np.int32), "time": np.array([3, 1, 2, 1])}
    sort_columns(columns, lambda part: [part["user"], part["time"]], "user")
    assert columns["time"].tolist() == [1, 1, 2, 3]
    empty = {"user": np.empty(0, np.int32)}
    sort_columns(empty, lambda part: [part["user"]], "user")
    assert not len(empty["user"])


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_an_array_grows_by_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", block)
    column = GrowingArray(np.int64)
    for batch in ([1, 2], [], [3, 4, 5, 6, 7], [8]):
        column.append(np.array(batch))
    assert len(column) == 8
    assert column.finish().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


IDS = {
    "text": ["z", "a", "", "ä", "a", "7", "07"],
    "dense numbers": [3, 1, 2, 1],
    "sparse numbers": [9_000_000_000, -5, 12, -5],
    "numbers at both ends": [np.iinfo(np.int64).max, np.iinfo(np.int64).min + 1, 0],
    "one number": [4],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("block", [2, 1000])
def test_ids_get_ascending_codes(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code = place among the sorted distinct ids, whatever the batches; and every id comes back as it was."""
    monkeypatch.setattr(arrays, "_BLOCK", block)
    ids = IDS[kind]
    column = IdColumn(pl.Series(ids).dtype)
    for value in ids:
        column.append(pl.Series([value]))
    codes, distinct = column.finish()
    assert distinct.to_list() == sorted(set(ids))
    assert distinct.gather(pl.Series(codes)).to_list() == ids
    at_once, same = encode_ids(pl.Series(ids))
    assert at_once.tolist() == codes.tolist()
    assert same.equals(distinct)


@pytest.mark.parametrize("ids", [["b", None, "a"], [7, None, 3], [None, None]])
def test_a_missing_id_has_no_code(ids: list) -> None:
    series = pl.Series(ids, dtype=pl.String if ids[0] in ("b", None) else pl.Int64)
    codes, distinct = encode_ids(series)
    assert [None if code < 0 else distinct[int(code)] for code in codes] == ids


@pytest.mark.parametrize("slots", [2, 8, 4096])
def test_a_table_of_texts_gives_every_text_one_code(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that begins with two slots grows many times and is full of collisions, as a dict would."""
    monkeypatch.setattr(arrays, "_FEWEST_SLOTS", slots)
    rng = np.random.default_rng(SEED)
    table, seen = TextTable(), {}
    for size in (1, 5, 300, 0, 3000):
        texts = pl.Series([f"user {number}" for number in rng.integers(0, 2000, size)], dtype=pl.String)
        for text, code in zip(texts, table.encode(texts).tolist(), strict=True):
            assert seen.setdefault(text, code) == code
        assert 2 * len(table) <= len(table._code_at)  # a full table would be searched for ever
    assert len(table) == len(seen) == len(set(seen.values()))
    assert dict(zip(table.texts(), range(len(table)), strict=True)) == seen


@pytest.mark.parametrize("slot", [0, 2**64 - 1])
def test_texts_that_agree_in_one_hash_are_told_apart_by_the_other(slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one hash the same for all texts, every search walks over every text, and from the last slot on to the first."""
    original = pl.Series.hash
    same = pl.Series([slot], dtype=pl.UInt64)
    monkeypatch.setattr(
        pl.Series,
        "hash",
        lambda self, seed: same.new_from_index(0, len(self)) if seed == 1 else original(self, seed),
    )
    table, texts = TextTable(), pl.Series(["a", "b", "a", "c", "b"])
    for _ in range(2):
        codes = table.encode(texts)
        assert table.texts().gather(pl.Series(codes)).equals(texts)
    assert len(table) == 3
