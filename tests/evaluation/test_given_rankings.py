"""Somebody else's lists: places, unknown items, users without a list, seen items, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.columns import TEST, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.data.histories import Histories
from recsys.evaluation.baselines.config import BaselinesConfig
from recsys.evaluation.baselines.registry import build_baselines
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.given_rankings import GivenRanking, files_of, fingerprint, read_ranking_of
from tests.toy.dataset import ring_prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"))


def write(path: Path, rows: list[tuple[Any, Any, Any]], **columns: Any) -> Path:
    names = [Columns.USER_ID, Columns.ITEM_ID, Columns.RANK]
    pl.DataFrame(rows, schema=names, orient="row").with_columns(**columns).write_parquet(path)
    return path


def read(path: Path, prepared: Dataset, width: int = 10) -> GivenRanking:
    return read_ranking_of("shop", path, prepared, prepared.targets(TEST), width)


def item(prepared: Dataset, index: int) -> str:
    return str(prepared.items[Columns.ITEM_ID][index])


def test_lists_are_ordered_by_rank_and_unknown_items_keep_their_place(tmp_path: Path, prepared: Dataset) -> None:
    """Rows come in any order, ranks may have gaps; u0 has an item of another shop between two known ones."""
    rows = [
        ("u0", item(prepared, 7), 9),
        ("u0", item(prepared, 3), 1),
        ("u0", "of another shop", 4),
        ("u2", item(prepared, 5), 1),
        ("nobody", item(prepared, 5), 1),
    ]
    found = read(write(tmp_path / "lists.parquet", rows), prepared)
    assert found.items[:3].tolist() == [[3, -1, 7], [-1, -1, -1], [5, -1, -1]]
    assert found.notes == (
        "shop: 58 of 60 users have no list, which counts as an empty one",
        "shop: 1 of 4 items are not in the data set; they keep their places and hit nothing",
        "shop: the ranks of 1 users have gaps; the items behind a gap move up",
        "shop: lists of 1 users who have no row in the split are passed over",
    )
    wide = found.ranked(prepared, prepared.targets(TEST), 5, exclude_seen=False)
    assert wide.items[0].tolist() == [3, -1, 7, -1, -1]
    assert wide.scores[0].tolist() == [-1.0, -np.inf, -3.0, -np.inf, -np.inf]


def test_without_seen_items_those_behind_move_up(tmp_path: Path, prepared: Dataset) -> None:
    """u0 walked 0, 1, …, 7 before its test item 8: of the list 2, 8, 5, 9 the items 8 and 9 remain."""
    rows = [("u0", item(prepared, index), place + 1) for place, index in enumerate((2, 8, 5, 9))]
    found = read(write(tmp_path / "lists.parquet", rows), prepared)
    targets = prepared.targets(TEST)
    assert found.ranked(prepared, targets, 3, exclude_seen=True).items[0].tolist() == [8, 9, -1]
    assert found.ranked(prepared, targets, 3, exclude_seen=False).items[0].tolist() == [2, 8, 5]


def test_a_baselines_own_lists_come_back(tmp_path: Path, prepared: Dataset) -> None:
    """Written to a folder of shards and read again: filtered and unfiltered lists as the baseline gave them."""
    (markov,) = build_baselines(["markov"], BaselinesConfig())
    markov.fit(prepared, 0, "train")
    targets = prepared.targets(TEST)
    histories = Histories.from_targets(prepared.history, targets)
    full = markov.rank(histories, prepared.spec.num_items, False)
    users = prepared.users[Columns.USER_ID].gather(targets.user_index).to_list()
    rows = [
        (users[n], item(prepared, int(index)), place + 1)
        for n, items in enumerate(full.items)
        for place, index in enumerate(items)
        if index >= 0
    ]
    for number, part in enumerate((rows[:100], rows[100:])):
        write(tmp_path / f"part-{number}.parquet", part)
    found = read(tmp_path, prepared)
    assert found.notes == ()
    for exclude in (True, False):
        own = markov.rank(histories, 4, exclude)
        np.testing.assert_array_equal(found.ranked(prepared, targets, 4, exclude_seen=exclude).items, own.items)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("u0", "i", 1), ("u0", "j", 1)], {}, "has rank 1 more than once"),
        ([("u0", "i", 1), ("u0", "i", 2)], {}, "has item_id 'i' more than once"),
        ([("u0", "i", 0)], {}, "the smallest rank is 0, expected 1 for the best"),
        ([("u0", "i", None)], {}, "1 nulls in rank"),
        ([("u0", "i", 1)], {"rank": pl.lit(1.0)}, "rank is Float64, expected whole numbers"),
        ([(7, "i", 1)], {}, "user_id is Int64, in the data set it is String; write it as String"),
        ([("u0", 7, 1)], {}, "item_id is Int64, in the data set it is String"),
        ([("somebody", "i", 1)], {}, "has no list for any of the 60 users"),
    ],
)
def test_refusals(
    tmp_path: Path, prepared: Dataset, rows: list[tuple[Any, Any, Any]], columns: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "lists.parquet", rows, **columns)
    with pytest.raises(DataError, match=rf"evaluate\.rankings\.shop: .*{message}"):
        read(path, prepared)


def numbered(prepared: Dataset) -> Dataset:
    """The same data set with ids that are whole numbers."""
    numbers = replace(prepared)
    for table, name in (("users", Columns.USER_ID), ("items", Columns.ITEM_ID)):
        vars(numbers)[table] = getattr(prepared, table).with_columns(pl.int_range(pl.len()).alias(name))
    return numbers


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt32, pl.UInt64])
@pytest.mark.parametrize("column", [Columns.USER_ID, Columns.ITEM_ID, Columns.RANK])
def test_whole_numbers_of_any_width_are_one_kind(
    tmp_path: Path, prepared: Dataset, kind: type[pl.DataType], column: str
) -> None:
    """Also where the parts of a folder differ in it, and a part without rows says nothing."""
    write(tmp_path / "a.parquet", [(0, 3, 1)])
    write(tmp_path / "b.parquet", [(1, 4, 1)], **{column: pl.col(column).cast(kind)})
    pl.DataFrame(schema=dict.fromkeys((Columns.USER_ID, Columns.ITEM_ID, Columns.RANK), pl.Null)).write_parquet(
        tmp_path / "c.parquet"
    )
    for path in (tmp_path, tmp_path / "b.parquet"):
        found = read(path, numbered(prepared))
        assert found.items[1].tolist() == [4]
        assert found.items[0].tolist() == ([3] if path == tmp_path else [-1])


def test_an_id_that_fits_no_other_type_is_unknown(tmp_path: Path, prepared: Dataset) -> None:
    rows = [(0, 2**64 - 1, 1), (0, 3, 2**64 - 1)]
    kinds = {Columns.ITEM_ID: pl.UInt64, Columns.RANK: pl.UInt64}
    table = pl.DataFrame(rows, schema={Columns.USER_ID: pl.Int64, **kinds}, orient="row")
    table.write_parquet(tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", numbered(prepared)).items[0].tolist() == [-1, 3]
    write(tmp_path / "a.parquet", [(1, 4, 1)])  # 64 bits with a sign: no type of 64 bits holds both
    assert read(tmp_path, numbered(prepared)).items[:2].tolist() == [[-1, 3], [4, -1]]


@pytest.mark.parametrize("texts_first", [True, False])
def test_parts_of_two_kinds_are_named(tmp_path: Path, prepared: Dataset, texts_first: bool) -> None:
    one, two = ("a", "b") if texts_first else ("b", "a")
    write(tmp_path / f"{one}.parquet", [("u0", "i", 1)])
    write(tmp_path / f"{two}.parquet", [(7, "i", 1)])
    shown = {one: "String", two: "Int64"}
    with pytest.raises(DataError, match=f"user_id is {shown['a']} in 'a.parquet' and {shown['b']} in 'b.parquet'"):
        read(tmp_path, prepared)


def test_of_parts_of_three_types_the_one_that_is_no_number_is_named(tmp_path: Path, prepared: Dataset) -> None:
    write(tmp_path / "a.parquet", [(0, 3, 1)])
    write(tmp_path / "b.parquet", [(1, 3, 1)], user_id=pl.col("user_id").cast(pl.Int32))
    write(tmp_path / "c.parquet", [("u2", 3, 1)])
    with pytest.raises(DataError, match=r"user_id is Int64 in 'a\.parquet' and String in 'c\.parquet'"):
        read(tmp_path, numbered(prepared))


def test_the_part_without_a_column_is_named(tmp_path: Path, prepared: Dataset) -> None:
    write(tmp_path / "a.parquet", [("u0", "i", 1)])
    pl.DataFrame({"user_id": ["u0"], "item_id": ["i"], "place": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"'b\.parquet' has no column rank, but user_id, item_id, place"):
        read(tmp_path, prepared)


def test_a_table_without_rows_is_refused(tmp_path: Path, prepared: Dataset) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.parquet", [])
    with pytest.raises(DataError, match="has no rows; expected a Parquet file"):
        read(tmp_path, prepared)


def test_of_a_long_list_so_much_is_kept_as_can_come_to_be_looked_at(tmp_path: Path, prepared: Dataset) -> None:
    """A list of 100,000 unknown items, behind items of the history, takes the room of two places and the history."""
    history = [(int(i), n + 1) for n, i in enumerate(range(8))]  # u0 walked 0, 1, …, 7
    rows = [("u0", item(prepared, index), rank) for index, rank in history]
    rows += [("u0", item(prepared, 9), 9), *(("u0", f"x{n}", n + 10) for n in range(100_000))]
    targets = prepared.targets(TEST)
    found = read(write(tmp_path / "lists.parquet", rows), prepared, 2)
    longest = int((targets.history_end - targets.history_start).max())
    assert found.items.shape == (len(targets), 2 + longest)
    assert found.ranked(prepared, targets, 2, exclude_seen=True).items[0].tolist() == [9, -1]
    assert found.ranked(prepared, targets, 2, exclude_seen=False).items[0].tolist() == [0, 1]


def test_refuses_what_is_no_table(tmp_path: Path, prepared: Dataset) -> None:
    with pytest.raises(DataError, match=r"is not there; expected a Parquet file, or a folder"):
        read(tmp_path / "nothing.parquet", prepared)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet file"):
        read(tmp_path / "empty", prepared)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "text.parquet", prepared)
    pl.DataFrame({"user": ["u0"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="has no column user_id, but user"):
        read(tmp_path / "other.parquet", prepared)


def test_contents_count_and_places_do_not(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", [("u0", "i", 1)])
    same = write(tmp_path / "same.parquet", [("u0", "i", 1)])
    other = write(tmp_path / "other.parquet", [("u0", "j", 1)])
    assert fingerprint({"a": one}) == fingerprint({"a": same}) != fingerprint({"a": other})
    assert fingerprint({}) == {}


def test_names_are_distinct() -> None:
    with pytest.raises(ValidationError, match="rankings has the name 'sasrec', which another system of the table has"):
        EvaluateConfig.model_validate({"rankings": {"sasrec": "a.parquet"}})
    with pytest.raises(ValidationError, match="models has the name 'shop'"):
        EvaluateConfig.model_validate({"rankings": {"shop": "a.parquet"}, "models": {"shop": "models:/x/1"}})


def test_of_our_own_candidates_the_shards_alone_are_read(tmp_path: Path) -> None:
    """The batch job keeps tables of users beside its shards; in a folder of somebody else every file counts."""
    for name in ("part-00000-of-00001.parquet", "asked-00000-of-00001.parquet", "shortfalls-00000-of-00001.parquet"):
        pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / name)
    assert len(files_of("shop", tmp_path)) == 3
    (tmp_path / "candidates.json").write_text("{}")
    assert [path.name for path in files_of("shop", tmp_path)] == ["part-00000-of-00001.parquet"]
