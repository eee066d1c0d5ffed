"""Sorting new files into a sorted log gives what reading all files at once gives, to the byte."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log.append import Merge, difference_of, merge_ids, runs_of_users
from features.log.encode import read_log
from features.log.encoded_log import EncodedLog, StoredLog
from features.log.quarantine import QuarantineConfig
from features.sources.base import EventStream, RawTables

DAY_US = 86_400_000_000
START_US = 1_650_000_000_000_000
FILES = ("day=1", "day=2", "day=3", "day=4")


def tables(events: pl.DataFrame, signals: tuple[str, ...] = ("like",), has_timestamps: bool = True) -> RawTables:
    """A source of four files."""
    ordered = events.sort("file", maintain_order=True).with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).over("file").alias("row")
    )
    stream = EventStream.from_frame(ordered, *FILES)
    return RawTables(stream, None, None, signals, signals, has_timestamps)


def logs(raw: RawTables, new: list[str]) -> tuple[EncodedLog, EncodedLog, EncodedLog]:
    """The log of all files, of the earlier ones, of the new ones."""
    earlier = [file for file in FILES if file not in new]
    read = {name: read_log(raw, QuarantineConfig(), need_session_id=False, only=only).log
            for name, only in (("all", None), ("earlier", earlier), ("new", new))}  # fmt: skip
    return read["all"], without_unread(read["earlier"], earlier), read["new"]


def without_unread(log: EncodedLog, files: list[str]) -> EncodedLog:
    """The log as it was read when only these files were there."""
    from dataclasses import replace

    starts = log.file_starts
    place = np.searchsorted(starts, log.record, side="right") - 1
    kept = [log.files.index(file) for file in files]
    counts, spans = ([values[place] for place in kept] for values in (log.file_records, log.file_spans))
    new_starts = dict(zip(kept, np.concatenate([[0], np.cumsum(spans)]).tolist(), strict=False))
    record = np.array([log.record[row] - starts[file] + new_starts[file] for row, file in enumerate(place)], np.int64)
    return replace(log, files=tuple(files), file_records=tuple(counts), file_spans=tuple(spans), record=record)


@st.composite
def events(draw: st.DrawFn) -> pl.DataFrame:
    """Events of few users and items at few instants, so that ties and repeats are common."""
    count = draw(st.integers(4, 40))
    column = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    rows = {
        "file": pl.Series(column(st.integers(0, 3)), dtype=pl.Int32),
        "prehistory": column(st.booleans()) if draw(st.booleans()) else [False] * count,
        "user_id": column(st.sampled_from(["7", "07", "a", "é", "z", "A"])),
        "item_id": pl.Series(column(st.integers(-2, 5)), dtype=pl.Int64),
        "timestamp": [START_US + day * DAY_US for day in column(st.integers(0, 5))],
        "like": column(st.sampled_from([True, False, None])),
    }
    if draw(st.booleans()):
        rows["position"] = pl.Series(column(st.integers(0, 3)), dtype=pl.Int64)
    if draw(st.booleans()):
        numbers = pl.Series([None, 0, 1, 2], dtype=pl.Int64)
        texts = pl.Series([None, "10", "9", "a", "B", "é"], dtype=pl.String)
        values = draw(st.sampled_from([numbers, texts]))
        rows["tie_break"] = values.gather(pl.Series(column(st.integers(0, len(values) - 1))))
    if draw(st.booleans()):
        rows["session_id"] = pl.Series(column(st.sampled_from([None, "s1", "s2", "s10"])), dtype=pl.String)
        rows["watch_time_ms"] = pl.Series(column(st.sampled_from([None, 1.5, 2.0])), dtype=pl.Float32)
    frame = pl.DataFrame(rows)
    if "position" not in rows:
        frame = frame.with_columns(prehistory=pl.lit(False))
    return frame


@given(rows=events(), new=st.lists(st.sampled_from(FILES), max_size=3, unique=True))
@settings(max_examples=80, deadline=None)
def test_merging_equals_reading_at_once(
    tmp_path_factory: pytest.TempPathFactory, rows: pl.DataFrame, new: list[str]
) -> None:
    whole, earlier, added = logs(tables(rows), new)
    folder = tmp_path_factory.mktemp("logs")
    earlier.save(folder / "earlier")
    rows: list[EncodedLog] = []
    merge = Merge.of(StoredLog.open(folder / "earlier"), added)
    merge.write(folder / "merged", runs_of_users(merge.starts, 5), lambda first, run: rows.append(run.log))
    assert [record for part in rows for record in part.record] == whole.record.tolist()
    whole.save(folder / "whole")
    assert tree_hashes(folder / "merged") == tree_hashes(folder / "whole")


def tree_hashes(folder: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_ids_by_hand() -> None:
    """b comes between a and c, d after all; a and c move by none and one."""
    ids, places = merge_ids(pl.Series(["a", "c"]), pl.Series(["b", "c", "d"]))
    assert ids.to_list() == ["a", "b", "c", "d"]
    assert places.left is not None
    assert places.right is not None
    assert (places.left.tolist(), places.right.tolist()) == ([0, 2], [1, 2, 3])
    assert merge_ids(pl.Series([1, 5]), pl.Series([5]))[1].left is None


@pytest.mark.parametrize("text", [False, True])
def test_merged_ids_stand_where_a_naive_sort_puts_them(text: bool) -> None:
    rng = random.Random(5)
    for _ in range(200):
        numbers = [sorted({rng.randrange(12) for _ in range(rng.randrange(9))}) for _ in range(2)]
        one, other = (sorted(map(str, side)) if text else side for side in numbers)
        dtype = pl.String() if text else pl.Int64()
        ids, places = merge_ids(pl.Series(one, dtype=dtype), pl.Series(other, dtype=dtype))
        merged = sorted({*one, *other})
        assert ids.to_list() == merged
        assert places.right is not None
        assert places.right.tolist() == [merged.index(name) for name in other]
        left = range(len(one)) if places.left is None else places.left.tolist()
        assert list(left) == [merged.index(name) for name in one]


def test_logs_that_differ_are_refused(tmp_path: Path) -> None:
    """Text ids do not meet integers."""
    left = pl.DataFrame({"file": [0, 1], "user_id": [1, 2], "item_id": [1, 2], "timestamp": [START_US, START_US]})
    numbers = read_log(tables(left, ()), QuarantineConfig(), need_session_id=False).log
    texts = read_log(tables(left.cast({"user_id": pl.String}), ()), QuarantineConfig(), need_session_id=False).log
    numbers.save(tmp_path / "numbers")
    told = [pl.lit(value, kind).alias("tie_break") for value, kind in ((1, pl.Int64), ("one", pl.String))]
    sequences, words = (
        read_log(tables(left.with_columns(each), ()), QuarantineConfig(), need_session_id=False).log for each in told
    )
    assert difference_of(sequences, words) == "'tie_break' is text in some of the files and numbers in others"
    with pytest.raises(ValueError, match="ids of 'user' are Int64 in the files read earlier and String now"):
        Merge.of(StoredLog.open(tmp_path / "numbers"), texts)
