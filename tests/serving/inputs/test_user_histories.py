"""Files of users: ids of a CSV file are text, or whole numbers where the model's are; a file is checked as a whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from recsys.contracts.errors import DataError
from serving.bundle.catalogue import Catalogue, read_catalogue
from serving.bundle.layout import read_info
from serving.inputs import user_histories
from serving.inputs.history_frame import map_frame
from serving.inputs.user_histories import FrameUsers

START = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def catalogue(bundle: Path) -> Catalogue:
    """The toy catalogue, of a model whose users are integers."""
    return dataclasses.replace(read_catalogue(bundle, read_info(bundle)), user_ids=pl.Series([7, 8, 9, 10, 11]))


def users_of(path: Path, *lines: str) -> FrameUsers:
    path.write_text("\n".join(["user_id,item_ids", *lines]) + "\n")
    return FrameUsers(path)


def test_whole_numbers_are_the_models_users(catalogue: Catalogue, tmp_path: Path) -> None:
    """7 and 9 are users 0 and 2; 100 is item 0; -3 is a stranger."""
    users = users_of(tmp_path / "users.csv", '7,"[100]"', ' 9 ,"[100, 107]"', "-3,")
    users.check(catalogue)
    mapped = users.shard(0, 3, catalogue)
    assert mapped.user_ids.to_list() == [7, 9, -3]
    assert mapped.histories.user_index.tolist() == [0, 2, -1]
    assert mapped.histories.item.tolist() == [0, 0, 1]


@pytest.mark.parametrize("user", ["007", "7.0", "+7", "seven", "1e3", "99999999999999999999"])
def test_other_texts_are_refused(catalogue: Catalogue, tmp_path: Path, user: str) -> None:
    users = users_of(tmp_path / "users.csv", "8,", f"{user},")
    with pytest.raises(DataError) as refused:
        users.check(catalogue)
    assert f"user_id is '{user}' (1 such rows), the model's users are integers" in str(refused.value)


def test_a_declared_unit_holds_for_the_whole_file(catalogue: Catalogue, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user_id": [7, 8], "item_ids": [[100, 107], [100]], "timestamps": [[START, START + 9_000_000], None]}
    )
    seconds = frame.with_columns(pl.col("timestamps").list.eval(pl.element() // 1_000_000))
    frame.write_parquet(tmp_path / "us.parquet")
    seconds.write_parquet(tmp_path / "s.parquet")
    gaps = [
        FrameUsers(tmp_path / name, unit).shard(0, 2, catalogue).histories.gap.tolist()  # type: ignore[arg-type]
        for name, unit in (("us.parquet", "us"), ("s.parquet", "s"))
    ]
    assert gaps[0] == gaps[1] == [0, 5, 0]  # 9 s: 2 + floor(log2 9)
    with pytest.raises(DataError, match="user_id 7: timestamps in the wrong unit: as 'us' the median 1700000004"):
        FrameUsers(tmp_path / "s.parquet").check(catalogue)


def test_what_is_not_known_is_said_once_for_a_file(
    catalogue: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = users_of(tmp_path / "users.csv", *(f'{user},"[100]"' for user in range(7, 12)))
    users.check(catalogue)
    for user in range(5):
        users.shard(user, user + 1, catalogue)
    assert sum("histories lack timestamps" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(("room", "maps"), [(10**9, 1), (0, 4), (4 * 20 + 10 * 7, 2), (4 * 20 + 10 * 7 - 1, 4)])
def test_rows_that_the_check_has_mapped_are_not_mapped_again(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, maps: int
) -> None:
    """Seven users with 1 to 7 events, read by four: 20 bytes a user and 7 an event, so that the first four take 150."""
    monkeypatch.setattr(user_histories, "READ_AHEAD", 4)
    monkeypatch.setattr(user_histories, "KEPT_BYTES", room)
    items = [[100 + 7 * event for event in range(1 + user)] for user in range(7)]
    frame = pl.DataFrame({"user_id": [7, 3, 9, 8, 5, 11, 1], "item_ids": items})
    frame.write_parquet(tmp_path / "users.parquet")
    fresh, users = (FrameUsers(tmp_path / "users.parquet") for _ in range(2))
    users.check(catalogue)
    mapped: list[int] = []

    def counting(block: pl.DataFrame, *others: object, **more: object) -> object:
        mapped.append(len(block))
        return map_frame(block, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(user_histories, "map_frame", counting)
    shards = ((0, 2), (2, 4), (3, 6), (4, 7))
    found = [users.shard(first, last, catalogue) for first, last in shards]
    assert len(mapped) == maps  # users 3 to 5 lie in two of the blocks
    for (first, last), mine in zip(shards, found, strict=True):
        theirs = fresh.shard(first, last, catalogue)
        assert mine.user_ids.equals(theirs.user_ids)
        assert mine.num_unknown.tolist() == theirs.num_unknown.tolist()
        assert mine.histories.user_index.tolist() == theirs.histories.user_index.tolist()
        events = mine.histories.event_rows()
        assert mine.histories.lengths.tolist() == theirs.histories.lengths.tolist()
        assert mine.histories.item[events].tolist() == theirs.histories.item.tolist()
    other = dataclasses.replace(catalogue, digests={"train": "another"}, user_ids=pl.Series([3, 7, 8, 9, 10]))
    assert users.shard(0, 2, other).histories.user_index.tolist() == [1, 0]
