"""Rows of (user, history, target) joined to events again, and targets event by event."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import HistoryRowsSource
from features.sources.history_rows import HistoryRowsFile, RowFilter, join_histories
from features.splits import SplitConfig
from recsys.contracts.columns import TEST, VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError

SEQUENCES = {7: [3, 5, 8, 3, 9, 4], 8: [5, 3, 3, 8, 4, 9]}
"""User 7 and user 8, six events each; the last but one is validation, the last is test."""
LONGEST = 2
"""Events that the files keep of a history."""


def rows_of(sequence: list[int], places: range) -> dict[str, list]:
    """What a published file holds of these places of a sequence."""
    histories = [sequence[max(0, place - LONGEST) : place] for place in places]
    return {"history_item_id": histories, "item_id": [sequence[place] for place in places]}


def published(folder: Path, train_from: int = 1) -> HistoryRowsSource:
    """Three files with every position from ``train_from`` on as a row; the train file names users otherwise."""
    for name, places in (("train", range(train_from, 4)), ("valid", range(4, 5)), ("test", range(5, 6))):
        tables = [
            pl.DataFrame(rows_of(sequence, places)).with_columns(user=pl.lit(user))
            for user, sequence in SEQUENCES.items()
        ]
        table = pl.concat(tables)
        if name == "train":
            table = table.with_columns(user="A" + pl.col("user").cast(pl.String))
        table.write_parquet(folder / f"{name}.parquet")
    files = [HistoryRowsFile(file="train.parquet", split="train", user_id="user")]
    files += [
        HistoryRowsFile(file=f"{name}.parquet", split=name, user_id="user", user_prefix="A")
        for name in ("valid", "test")
    ]
    return HistoryRowsSource(path=folder, files=tuple(files))


def test_whole_sequences_come_back_from_their_rows(tmp_path: Path) -> None:
    """Five rows of a sequence of six: the first row's history [3] and the targets 5, 8, 3, 9, 4."""
    raw = published(tmp_path).read(seed=0)
    for user, sequence in SEQUENCES.items():
        own = raw.interactions.collect().filter(pl.col("user_id") == f"A{user}").sort("position")
        assert own["item_id"].to_list() == sequence
        assert own["split"].to_list() == ["train"] * 4 + ["valid", "test"]
    assert raw.notes["history_rows"] == 10
    assert raw.notes["context_events"] == 2  # the first event of each user is nobody's target


def test_history_of_a_user_without_train_rows_is_context(tmp_path: Path) -> None:
    """Train rows from place 3 on: [5, 8] -> 3 is the first row of user 7, so 5 and 8 are known and 3 is lost."""
    raw = published(tmp_path, train_from=3).read(seed=0)
    own = raw.interactions.collect().filter(pl.col("user_id") == "A7").sort("position")
    assert own["item_id"].to_list() == [5, 8, 3, 9, 4]
    assert own["split"].to_list() == ["train", "train", "train", "valid", "test"]


def test_missing_rows_leave_a_gap_that_the_next_history_fills() -> None:
    """After 3 5, the history [5, 8, 2] agrees with the end on 5 and adds 8 2."""
    rows = pl.DataFrame(
        {
            "user_id": [7, 7],
            "history": [[3], [5, 8, 2]],
            "item_id": [5, 9],
            "split_code": pl.Series([0, 1], dtype=pl.Int8),
        }
    )
    events, facts = join_histories(rows)
    assert events["item_id"].to_list() == [3, 5, 8, 2, 9]
    assert events["split"].to_list() == ["train"] * 4 + ["valid"]
    assert facts["context_events"] == 3


def test_history_that_adds_events_behind_a_valid_target_is_refused() -> None:
    rows = pl.DataFrame(
        {
            "user_id": [7, 7],
            "history": [[3], [5, 8]],
            "item_id": [5, 9],
            "split_code": pl.Series([1, 2], dtype=pl.Int8),
        }
    )
    with pytest.raises(DataError, match=r"user 7 has a row whose history adds \[8\] behind a valid target"):
        join_histories(rows)


def test_parts_of_a_file_are_read_in_the_order_in_which_they_are_listed(tmp_path: Path) -> None:
    """The file has the end of the sequence first; listed by part it is 1 2 3 4, as it stands it would be 3 4 1 2."""
    pl.DataFrame(
        {"user_id": [7, 7], "history_item_id": [[3], [1]], "item_id": [4, 2], "part": ["end", "start"]}
    ).write_parquet(tmp_path / "train.parquet")

    def items(*parts: str) -> list[int]:
        files = [
            HistoryRowsFile(file="train.parquet", split="train", only=RowFilter(column="part", values=(part,)))
            for part in parts
        ]
        return HistoryRowsSource(path=tmp_path, files=tuple(files)).read(0).interactions.collect()["item_id"].to_list()

    assert items("start", "end") == [1, 2, 3, 4]
    assert items("end", "start") == [3, 4, 1, 2]


def test_csv_with_lists_as_text_is_read_alike(tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_text("user_id,history_item_id,item_id\nA7,\"['a', 'b']\",c\n")
    source = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="train.csv", split="train"),))
    assert source.read(0).interactions.collect()["item_id"].to_list() == ["a", "b", "c"]
    csv.write_text('user_id,history_item_id,item_id\nA7,"[3, 5]",8\n')
    assert source.read(0).interactions.collect()["item_id"].to_list() == ["3", "5", "8"]
    declared = HistoryRowsSource(path=tmp_path, files=source.files, types={"item_id": "integer"})
    assert declared.read(0).interactions.collect()["item_id"].to_list() == [3, 5, 8]


@pytest.mark.parametrize(
    ("history", "ids"),
    [
        ("[007, 7]", ["007", "7"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a,b', 'c d']", ["a,b", "c d"]),
        (r"['it\'s']", ["it's"]),
        ("[3 5  8]", ["3", "5", "8"]),
        ("(3, 5,)", ["3", "5"]),
        ("[]", []),
        ("", []),
        ("[9e12, true]", ["9e12", "true"]),
    ],
)
def test_ids_in_a_list_of_a_text_file_come_as_they_are_written(tmp_path: Path, history: str, ids: list[str]) -> None:
    quoted = history.replace('"', '""')
    (tmp_path / "train.csv").write_text(f'user_id,history_item_id,item_id\n01,"{quoted}",0009\n')
    raw = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="train.csv", split="train"),)).read(0)
    events = raw.interactions.collect()
    assert events["item_id"].to_list() == [*ids, "0009"]
    assert events["user_id"].unique().to_list() == ["01"]


def test_a_row_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        'user_id,history_item_id,item_id\nA7,"[3]",5\nA7,3,5\nA7,"[3, 5]"\nNULL,"[3]",5\nA7,"[3, ""x]",5\n'
    )
    source = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="train.csv", split="train"),))
    refused = source.read(0).interactions.collect().drop_nulls("refused")
    assert [(row + 1, reason) for row, reason in refused.select("row", "refused").iter_rows()] == [
        (3, "history_item_id is not a list of item ids"),
        (4, "too few fields"),
        (5, "null user_id"),
        (6, "history_item_id is not a list of item ids"),
    ]


def test_text_and_integer_ids_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('user_id,history_item_id,item_id\n7,"[3]",5\n')
    pl.DataFrame({"user_id": [7], "history_item_id": [[3, 5]], "item_id": [8]}).write_parquet(tmp_path / "test.parquet")
    files = (HistoryRowsFile(file="train.csv", split="train"), HistoryRowsFile(file="test.parquet", split="test"))
    with pytest.raises(DataError, match=r"integer in 'test.parquet'|text in 'train.csv'"):
        HistoryRowsSource(path=tmp_path, files=files).read(0)
    types = {"user_id": "integer", "item_id": "integer"}
    events = HistoryRowsSource(path=tmp_path, files=files, types=types).read(0).interactions.collect()
    assert events["item_id"].to_list() == [3, 5, 8]


def test_files_of_the_same_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.csv").write_text('user_id,history_item_id,item_id\n7,"[3]",5\n')
    names = ("a/rows.csv", "b/rows.csv")
    files = tuple(HistoryRowsFile(file=name, split="train") for name in names)
    source = HistoryRowsSource(path=tmp_path, files=files)
    before = source.fingerprint()
    assert sorted(before) == sorted(names)
    (tmp_path / "a/rows.csv").write_text('user_id,history_item_id,item_id\n7,"[3]",6\n')
    assert source.fingerprint() != before


def test_missing_file_and_history_of_another_type_are_refused(tmp_path: Path) -> None:
    source = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="train.parquet", split="train"),))
    with pytest.raises(DataError, match=r"train.parquet' does not exist .*; files there: none"):
        source.read(0)
    pl.DataFrame({"user_id": [7], "history_item_id": [3], "item_id": [5]}).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        DataError, match=r"column 'history_item_id' \(for history\) is Int64, expected lists of item ids"
    ):
        source.read(0)


def read_rows(prepared: Dataset, targets: Targets, longest: int) -> Counter:
    """``(user_id, history, item)`` of every row, in ids of the source."""
    users, items = prepared.users["user_id"].to_list(), prepared.items["item_id"].to_list()
    history = np.asarray(prepared.history.item)
    spans = zip(targets.user_index, targets.history_start, targets.history_end, targets.items, strict=True)
    return Counter(
        (users[user], tuple(items[i] for i in history[max(start, end - longest) : end]), items[item])
        for user, start, end, item in spans
    )


def test_every_event_of_the_window_is_a_row_of_its_own(tmp_path: Path) -> None:
    """Two test events of user 7: the second row's history holds the first, and a repeat is asked for again."""
    pl.DataFrame({"user_id": [7] * 3, "history_item_id": [[], [3], [3, 5]], "item_id": [3, 5, 8]}).write_parquet(
        tmp_path / "train.parquet"
    )
    pl.DataFrame({"user_id": [7], "history_item_id": [[5, 8]], "item_id": [6]}).write_parquet(
        tmp_path / "valid.parquet"
    )
    pl.DataFrame({"user_id": [7, 7], "history_item_id": [[8, 6], [6, 3]], "item_id": [3, 3]}).write_parquet(
        tmp_path / "test.parquet"
    )
    files = tuple(HistoryRowsFile(file=f"{name}.parquet", split=name) for name in ("train", "valid", "test"))
    source = HistoryRowsSource(path=tmp_path, files=files)

    def evaluated(rows: str) -> Counter:
        config = FeaturesConfig(split=SplitConfig(kind="given"), eval_rows=rows)
        prepare(source, config, tmp_path / rows, seed=0)
        prepared = Dataset.open(tmp_path / rows)
        return read_rows(prepared, prepared.targets(TEST), longest=2)

    assert evaluated("per_event") == Counter({(7, (8, 6), 3): 1, (7, (6, 3), 3): 1})
    assert evaluated("per_user") == Counter({(7, (8, 6), 3): 1})


def test_sessions_are_not_asked_for_event_by_event() -> None:
    with pytest.raises(ValueError, match="eval_rows 'per_event' asks for single items"):
        FeaturesConfig(task="session", session_length=2, eval_rows="per_event")


@pytest.mark.data
def test_official_valid_and_test_rows_of_industrial_come_back_exactly(tmp_path: Path) -> None:
    """Every row of the published files, with its history of at most 10, is a row of ours and there are no others."""
    root = os.environ.get("RECSYS_DATA")
    if root is None:
        pytest.skip("RECSYS_DATA is not set")
    folder = Path(root) / "minionerec_industrial"
    from pipelines.config import load_run_config

    recipe = Path(__file__).resolve().parents[3] / "pipelines" / "recipes" / "industrial.yaml"
    config = load_run_config(recipe, [f"source.path={folder}"])
    prepare(config.source, config.features, tmp_path, seed=0)
    prepared = Dataset.open(tmp_path)
    assert prepared.spec.num_items == 3686
    for split, name in ((VALID, "valid"), (TEST, "test")):
        table = pl.read_parquet(folder / f"{name}.parquet", columns=["user_id", "history_item_id", "item_id"])
        official = Counter((f"A{user}", tuple(history), item) for user, history, item in table.iter_rows())
        assert read_rows(prepared, prepared.targets(split), longest=10) == official


@pytest.mark.parametrize(
    "written", ['"[1, null]"', '"[1, None]"', '"[nan, 2]"', r'"[1, \N]"', "\"['', '2']\"", "\"['NULL']\""]
)
def test_nothing_inside_a_list_is_no_item(tmp_path: Path, written: str) -> None:
    (tmp_path / "t.csv").write_text(f'user_id,history_item_id,item_id\nA7,"[3]",5\nA7,{written},5\n')
    source = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="t.csv", split="train"),))
    events = source.read(0).interactions.collect()
    assert events.filter(pl.col("refused").is_null())["item_id"].to_list() == ["3", "5"]
    assert events.drop_nulls("refused").select("row", "refused").rows() == [(2, "history_item_id has a null entry")]


@pytest.mark.parametrize("history", [[1, None], [None], [None, None, 2]])
def test_null_inside_a_list_is_refused_where_it_stands(tmp_path: Path, history: list[int | None]) -> None:
    table = pl.DataFrame({"user_id": [7, 7], "history_item_id": [[3], history], "item_id": [5, 5]})
    table.write_parquet(tmp_path / "t.parquet")
    source = HistoryRowsSource(path=tmp_path, files=(HistoryRowsFile(file="t.parquet", split="train"),))
    events = source.read(0).interactions.collect()
    assert events.drop_nulls("refused").select("file", "row", "refused").rows() == [
        (0, 1, "history_item_id has a null entry")
    ]
    assert events.filter(pl.col("refused").is_null())["item_id"].to_list() == [3, 5]
